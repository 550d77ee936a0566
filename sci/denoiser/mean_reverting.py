"""Mean-reverting diffusion: noise blurs the data towards a known mean.

    dx = theta (mu - x) ds + sqrt(2 theta) std dw,    x_t = alpha data + (1 - alpha) mu + sigma noise

mu is a degraded image, a coarse field, a first guess: each item has its own. With z = x - mu this
is x's own story without a mean, z_t = alpha (data - mu) + sigma noise, so every sampler runs on z
and needs no formula of its own:

    denoiser = mean_reverting(network, GaussianPath(OrnsteinUhlenbeck(6.0, 0.2)), mean="degraded")
    samples = sampler(denoiser, like=data, condition={"degraded": mu})
    x = denoiser.network.restore(samples.state, {"degraded": mu})
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sci import tree
from sci.denoiser.network import Denoiser

__all__ = ["MeanReverting", "mean_reverting"]

# Kinds of z that are those of x too; the data prediction moves with the mean.
_KINDS = ("data", "noise", "score", "velocity")


class MeanReverting(nn.Module):
    """A network of x = z + mu as a network of z.

    Arguments:
        network: called as `network(x, t, condition)`; its `encode`, if any, is used.
        mean: the entry of the condition, a dict, that holds mu, a tree like the state; or a
            function of the condition that returns mu.
        predicts: what the network predicts about x: "data", "noise", "score", "velocity", or a
            tree of them.

    Raises:
        ValueError: for another kind.
    """

    def __init__(
        self,
        network: Callable[[Any, Tensor, Any], Any],
        mean: str | Callable[[Any], Any],
        predicts: Any = "noise",
    ):
        super().__init__()
        for kind in tree.flatten(predicts, str)[0]:
            if kind not in _KINDS:
                raise ValueError(
                    f"a mean-reverting network predicts one of {', '.join(_KINDS)}, got '{kind}'"
                )
        self.network = network
        self.mean = mean
        self.predicts = predicts

    def encode(self, condition: Any) -> dict[str, Any]:
        """mu and the encoding of the condition, made once a run."""
        encode = getattr(self.network, "encode", None)
        return {
            "mean": self._mean(condition),
            "condition": condition if encode is None else encode(condition),
        }

    def forward(self, state: Any, t: Tensor, condition: Any) -> Any:
        """The prediction for z; the data prediction less the mean."""
        if condition is None:
            raise ValueError("a mean-reverting network needs a condition, which holds the mean")
        mean = condition["mean"]
        outputs = self.network(_sum(state, mean), t, condition["condition"])
        leaves, structure = tree.flatten(outputs)
        kinds = tree.spread(self.predicts, structure, str, "predicts")
        means = tree.spread(mean, structure, Tensor, "the mean")
        return structure.unflatten(
            [
                leaf - middle if kind == "data" else leaf
                for leaf, middle, kind in zip(leaves, means, kinds, strict=True)
            ]
        )

    def shift(self, state: Any, condition: Any) -> Any:
        """z = x - mu, for losses and given starts.

        Arguments:
            state: the tree of x, each leaf (B, ...).
            condition: holds the mean.
        """
        return _sum(state, self._mean(condition), -1.0)

    def restore(self, state: Any, condition: Any) -> Any:
        """x = z + mu, for samples; arguments as for `shift`."""
        return _sum(state, self._mean(condition))

    def _mean(self, condition: Any) -> Any:
        if callable(self.mean):
            return self.mean(condition)
        if not isinstance(condition, dict) or self.mean not in condition:
            entries = sorted(condition) if isinstance(condition, dict) else type(condition).__name__
            raise KeyError(
                f"the mean is condition['{self.mean}'], got {entries}: "
                f"pass condition={{'{self.mean}': mean, ...}}"
            )
        return condition[self.mean]


def mean_reverting(
    network: Callable[[Any, Tensor, Any], Any],
    paths: Any,
    mean: str | Callable[[Any], Any],
    predicts: Any = "noise",
    mask: str | None = None,
) -> Denoiser:
    """A denoiser of z = x - mu from a network of x, for any sampler.

    Its `network` is a `MeanReverting`, whose `shift` and `restore` go from x to z and back. Train
    on `denoiser.loss(denoiser.network.shift(data, condition), condition)`.

    Arguments:
        network: called as `network(x, t, condition)`.
        paths: of z: usually a `GaussianPath` on `sci.schedules.OrnsteinUhlenbeck`.
        mean: the entry of the condition that holds mu, or a function of the condition.
        predicts: what the network predicts about x: "data", "noise", "score", "velocity", or a
            tree of them.
        mask: the entry of the condition that masks every leaf, see `sci.Denoiser`.

    Example:
        >>> import torch
        >>> from sci.paths import GaussianPath
        >>> from sci.samplers import ddim
        >>> from sci.schedules import OrnsteinUhlenbeck
        >>> path = GaussianPath(OrnsteinUhlenbeck(6.0, std=0.2))
        >>> denoiser = mean_reverting(lambda x, t, c: 0 * x + 3, path, "mean", "data")
        >>> condition = {"mean": torch.full((1, 2), 2.0)}
        >>> samples = ddim(4, final="data")(denoiser, like=torch.zeros(1, 2), condition=condition)
        >>> denoiser.network.restore(samples.state, condition)
        tensor([[3., 3.]])

    References:
        | Image restoration with mean-reverting stochastic differential equations
        | (Luo et al., 2023)
        | MRS: a fast sampler for mean reverting diffusion based on ODE and SDE solvers
        | (Li et al., 2025)
    """
    return Denoiser(MeanReverting(network, mean, predicts), paths, predicts, mask)


def _sum(state: Any, mean: Any, factor: float = 1.0) -> Any:
    leaves, structure = tree.flatten(state)
    means = tree.spread(mean, structure, Tensor, "the mean")
    return structure.unflatten(
        [x + factor * middle for x, middle in zip(leaves, means, strict=True)]
    )
