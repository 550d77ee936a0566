"""Noise with heavy tails: the perturbation of PFGM++ as a noise law.

The electric field of data charges in N + D dimensions, looked at along the radius of the D added
ones, is a flow of the usual form. Its noise has a direction that is uniform in the leaf's space
and the radius

    R = r sqrt(b / (1 - b)),    b ~ Beta(N / 2, D / 2),    r = sigma sqrt(D),

with N the degrees of freedom of the leaf under its mask. As b / (1 - b) is a ratio of chi-squares,
this is sigma times

    z sqrt(D / q),    z standard normal on the space,    q ~ chi-square with D degrees of freedom:

a multivariate Student law, one q an item. D -> infinity gives back Gaussian noise, D = 1 is the
Poisson flow.

References:
    | PFGM++: unlocking the potential of physics-inspired generative models (Xu et al., 2023)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sci.noise import Noise
from sci.paths.linear import KINDS, Path, like_time
from sci.schedules import Schedule
from sci.spaces import Space, widest

__all__ = ["HeavyTailedPath"]


class HeavyTailedPath(Path):
    """Data blurred by the noise of PFGM++ with D added dimensions.

    Losses, conversions and deterministic samplers are those of Gaussian paths. What the network
    learns is no score, so "score" is not among the kinds and stochastic samplers do not apply.

    Arguments:
        schedule: alpha and sigma; `EDM` in the paper.
        dimensions: D, > 0, infinity for Gaussian noise. Small D is robust to errors of the network
            and of the solver, large D is easy to learn; the paper likes 128 and 2048.
        space: where the leaf lives; Euclidean unless told.
        source_std: the scale that sampling starts from; the schedule's when None.
        span: the times between which sampling runs unless told; the schedule's when None.

    Raises:
        TypeError: when the schedule or the space is of another type.
        ValueError: when D or source_std is not positive, or the span is no interval in [0, 1].

    Example:
        >>> import torch
        >>> from sci.noise import Noise
        >>> from sci.schedules import EDM
        >>> path = HeavyTailedPath(EDM(), dimensions=3)
        >>> start = path.source(Noise(0, range(5)), "state", torch.zeros(5, 2))
        >>> start.shape
        torch.Size([5, 2])

    References:
        | PFGM++: unlocking the potential of physics-inspired generative models (Xu et al., 2023)
    """

    heads = frozenset(KINDS) - {"score"}

    def __init__(
        self,
        schedule: Schedule,
        dimensions: float = 128.0,
        space: Space | None = None,
        source_std: float | None = None,
        span: tuple[float, float] | None = None,
    ):
        if not dimensions > 0:
            raise ValueError(f"HeavyTailedPath: dimensions must be positive, got {dimensions}")
        super().__init__(schedule, space, source_std, span)
        self.dimensions = float(dimensions)

    def random(
        self, like: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The noise end in training; arguments as for `Path.random`."""
        noise = super().random(like, mask, generator)
        if math.isinf(self.dimensions):
            return noise
        device = torch.device("cpu") if generator is None else generator.device
        uniform = torch.rand(len(like), generator=generator, dtype=widest(device), device=device)
        return noise * like_time(self._stretch(uniform.cpu().double()), noise)

    def source(
        self, noise: Noise, leaf: int | str, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """What sampling starts from; arguments as for `Path.source`.

        Besides the normals it takes two uniforms an item, whatever the size of the item.
        """
        start = super().source(noise, leaf, like, mask)
        if math.isinf(self.dimensions):
            return start
        coarse, fine = noise.uniform(2, leaf, -1, draw=1).cpu().double().unbind(1)
        # A uniform is the middle of a cell of width 2^-23; a second one says where in the cell.
        return start * like_time(self._stretch(coarse + (fine - 0.5) * 2.0**-23), start)

    def _stretch(self, uniform: Tensor) -> Tensor:
        """sqrt(D / q) from uniforms, by the inverse distribution function."""
        from scipy.special import gammaincinv

        half = 0.5 * self.dimensions
        quantile = gammaincinv(half, uniform.numpy())
        return torch.from_numpy(np.sqrt(half / np.maximum(quantile, np.finfo(np.float64).tiny)))
