"""Time series: windows of regular series by diffusion, paths on any grid by neural stochastic equations.

No model of this wing is in this release, and nothing else of it: importing it gives an empty namespace.
"""
