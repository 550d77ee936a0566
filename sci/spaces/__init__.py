"""Spaces: where a leaf of a state lives, from vectors and adjacencies to rotations.

`sci.spaces.quaternions` has the algebra that rotations rest on.
"""

from sci.spaces.linear import Centred, Euclidean, Space, Symmetric, widest
from sci.spaces.rotations import Rotations

__all__ = ["Centred", "Euclidean", "Rotations", "Space", "Symmetric", "widest"]
