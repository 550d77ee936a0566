"""PDE fields: simulation of reference fields, learnt solvers, rollouts with their uncertainty.

No model of this wing is in this release, and nothing else of it: importing it gives an empty namespace.
"""
