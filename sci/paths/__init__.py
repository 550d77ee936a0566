"""Paths: how data become noise or another population, and what a network may predict on the way.

`GaussianPath` blurs data by noise, `HeavyTailedPath` by noise of heavier tails; `Interpolant` joins
two populations, `GeodesicPath` rotations, and `CategoricalPath` exchanges classes. A state of
several parts has a tree of paths with the state's names, under one clock t.

`sci.paths.kernels` has the formulae of discrete diffusion, `sci.schedules` alpha and sigma.
"""

from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.paths.heavy_tailed import HeavyTailedPath
from sci.paths.interpolants import Interpolant
from sci.paths.linear import KINDS, GaussianPath, Path, check_kind, like_time

__all__ = [
    "KINDS",
    "CategoricalPath",
    "GaussianPath",
    "GeodesicPath",
    "HeavyTailedPath",
    "Interpolant",
    "Path",
    "check_kind",
    "like_time",
]
