"""Protein backbones: frames (a rotation and a translation per residue), structures, designability.

No model of this wing is in this release, and nothing else of it: importing it gives an empty namespace.
"""
