"""Cell populations: how a population of single cells answers a perturbation, as a flow between distributions.

No model of this wing is in this release, and nothing else of it: importing it gives an empty namespace.
"""
