"""The discrete path: a leaf of classes, what a network predicts on it, and its losses.

    x_t = data with probability a(t), else a draw from the kernel's law m

A network sees classes x_t and predicts p(data | x_t), as probabilities ("data") or "logits"; every
step towards data follows from it by Bayes. `sci.paths.kernels` has the formulae.

References:
    | Structured denoising diffusion models in discrete state-spaces (Austin et al., 2021)
    | Pard: permutation-invariant autoregressive diffusion for graph generation
    | (Zhao, Ding, Akoglu, 2024)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.noise import Noise
from sci.paths import kernels
from sci.paths.linear import Path, check_kind, like_time
from sci.schedules import KeepTable, Schedule
from sci.spaces import Euclidean, Space, Symmetric, widest

__all__ = ["CategoricalPath"]


class CategoricalPath(Path):
    """Classes kept with probability alpha(t) and redrawn otherwise.

    A leaf is int64, (B, ...) on Euclidean space or (B, N, N) on symmetric space: then one draw
    serves an unordered pair, and the diagonal, like masked elements, is class 0. Kinds: "data",
    probabilities (B, ..., classes), and "logits". The network sees states 0, ..., states - 1.

    Arguments:
        schedule: alpha(t) is the keep probability: a schedule whose alpha grows from (nearly) 0 to
            (nearly) 1, or a table of keep probabilities from the source to the data.
        classes: how many classes the data has, >= 2.
        kernel: "uniform", "marginal", or "absorbing", which adds a state of the number `classes`
            that means "not known yet".
        marginal: (classes,) probabilities of the kernel "marginal".
        space: `Euclidean` or `Symmetric`.

    Attributes:
        states: `classes`, or one more for the absorbing kernel.
        law: (states,) float64, the law m of the source.

    Raises:
        TypeError: when the schedule or the space is of another type.
        ValueError: for an unknown kernel, a marginal that is no probability law, or a schedule
            that gives no keep probabilities.

    Example:
        >>> import torch
        >>> from sci.schedules import CondOT
        >>> path = CategoricalPath(CondOT(), classes=3)
        >>> data, uniforms = torch.tensor([[0, 2]]), torch.tensor([[0.9, 0.4]])
        >>> path.corrupt(data, uniforms, 0.5)
        tensor([[2, 2]])
    """

    heads = frozenset({"data", "logits"})
    stepper = "sci.samplers.discrete:CategoricalStepper"

    def __init__(
        self,
        schedule: Schedule | list[float] | tuple[float, ...] | np.ndarray,
        classes: int,
        kernel: str = "uniform",
        marginal: Sequence[float] | np.ndarray | Tensor | None = None,
        space: Space | None = None,
    ):
        if isinstance(schedule, (list, tuple, np.ndarray)):
            schedule = KeepTable(schedule)
        super().__init__(schedule, space, 1.0)
        if type(self.space) not in (Euclidean, Symmetric):
            raise TypeError(
                f"space is {self.space!r}: classes live on sci.spaces.Euclidean() or Symmetric()"
            )
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
            raise ValueError(f"classes must be an integer >= 2, got {classes!r}")
        self.law = kernels.law(kernel, classes, marginal)
        self.kernel = kernel
        self.classes = classes
        self.states = len(self.law)
        alpha = np.asarray(self.keep(np.linspace(*self.span, 33)))
        if not ((np.diff(alpha) > 0).all() and -1e-12 <= alpha[0] < 0.5 < alpha[-1] <= 1 + 1e-12):
            raise ValueError(
                f"{schedule!r} gives no keep probabilities: alpha must grow from near 0 at t = 0 "
                f"to near 1 at t = 1, it goes from {alpha[0]:.4g} to {alpha[-1]:.4g}; use "
                "sci.schedules.CondOT(), Cosine() or OffsetCosine(), or a table"
            )

    @property
    def span(self) -> tuple[float, float]:
        """(0, 1): nothing is infinite at the ends of a discrete path."""
        return 0.0, 1.0

    def keep(self, t: Any) -> Any:
        """a(t), the probability that an element still has the class of the data; shaped like t."""
        return self.schedule.alpha(t)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """States: class 0 where masked or on the diagonal, pairs mirrored from i < j. Predictions,
        which are floating: symmetrised on symmetric space, and zero there.

        Arguments:
            x: (B, ...) integers, or (B, ..., classes) floating.
            mask: (B, N) bool or None.
        """
        if x.is_floating_point():
            return self.space.project(x, mask)
        if isinstance(self.space, Symmetric):
            upper = x.triu(1)
            x = upper + upper.transpose(1, 2)
            return x if mask is None else torch.where(mask[:, :, None] & mask[:, None, :], x, 0)
        if mask is None:
            return x
        return torch.where(mask.view(mask.shape + (1,) * (x.dim() - mask.dim())), x, 0)

    def random(
        self, like: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """What `corrupt` takes as noise: uniforms, one an independent element.

        Arguments:
            like: (B, ...) gives the shape and device.
            mask: (B, N) bool or None.
            generator: torch's own when None.

        Returns:
            (B, ...) in [0, 1), 0 where masked.
        """
        shape = like.shape[0], self.space.elements(like)
        device = like.device if generator is None else generator.device
        values = torch.rand(shape, generator=generator, device=device)
        return self.space.place(values, torch.empty(like.shape, device=like.device), mask)

    def source(
        self, noise: Noise, leaf: int | str, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """What sampling starts from: classes drawn from m, at step -1 of each item's stream.

        Arguments:
            noise: the items' streams.
            leaf: the leaf's name.
            like: (B, ...) gives the shape and device.
            mask: (B, N) bool or None.

        Returns:
            (B, ...) int64, 0 where masked.
        """
        values = noise.uniform(self.space.elements(like), leaf, -1)
        uniforms = self.space.place(values, torch.empty(like.shape, device=like.device), mask)
        return self.draw(self.law.to(uniforms), uniforms)

    def draw(self, probabilities: Tensor, uniforms: Tensor) -> Tensor:
        """States by the inverse of the cumulative sum, see `sci.paths.kernels.draw`; of a
        symmetric leaf those of i < j hold for both."""
        return self.project(kernels.draw(probabilities, uniforms))

    def probabilities(self, data: Tensor, t: Tensor | float) -> Tensor:
        """q(x_t | data).

        Arguments:
            data: (B, ...) int64.
            t: (B,) or a float, in [0, 1].

        Returns:
            (B, ..., states), in the widest type of the device.
        """
        kept = torch.nn.functional.one_hot(data, self.states).to(widest(data.device))
        keep = _shaped(self.keep(t), kept)
        return keep * kept + (1.0 - keep) * self.law.to(kept)

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """The state at time t: the class is kept where the uniform is below a(t); above, what is
        left of the uniform draws from m.

        Arguments:
            data: (B, ...) int64.
            noise: (B, ...) uniforms in [0, 1), from `random`.
            t: (B,) or a float, in [0, 1].

        Returns:
            (B, ...) int64.

        Raises:
            TypeError: when the noise is not floating.
        """
        if not noise.is_floating_point():
            raise TypeError(
                f"the noise of a categorical leaf is {noise.dtype}: expected uniforms in [0, 1), as "
                "CategoricalPath.random gives"
            )
        keep = _shaped(self.keep(t), noise)
        kept = noise < keep
        # Where all is kept the quotient would be 0 / 0.
        rest = torch.where(kept, 0.0, (noise - keep) / (1.0 - keep))
        return torch.where(kept, data, self.draw(self.law.to(noise), rest))

    def target(self, kind: str, data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """The classes of the data, whatever the kind; arguments as for `corrupt`."""
        check_kind(kind, self.heads, "prediction kind")
        return data

    def convert(
        self, prediction: Tensor, kind: str, to: str, x: Tensor, t: Tensor | float
    ) -> Tensor:
        """Logits to probabilities, or probabilities to their logarithms, (B, ..., classes).

        Raises:
            ValueError: for a kind that this path does not have.
        """
        for name in (kind, to):
            check_kind(name, self.heads, f"{type(self).__name__} has no prediction kind")
        if kind == to:
            return prediction
        return prediction.softmax(-1) if kind == "logits" else _log(prediction)

    def coefficients(self, kind: str, to: str, t: Any) -> tuple[Any, Any]:
        """Raises a ValueError: logits and probabilities are no linear forms; see `convert`."""
        raise ValueError(
            f"a {type(self).__name__} has no linear coefficients from '{kind}' to '{to}'; call "
            "`convert`"
        )

    def posterior(
        self,
        x: Tensor,
        data: Tensor,
        t: Tensor | float,
        s: Tensor | float,
        stochasticity: float = 1.0,
    ) -> Tensor:
        """The law of x_s given x_t and what is known of the data, for any pair of times.

        Arguments:
            x: (B, ...) int64, the state at time t.
            data: (B, ..., classes) probabilities, or (B, ...) int64 classes.
            t: (B,) or a float, in [0, 1).
            s: the same, later than t.
            stochasticity: eta >= 0; 1 is the posterior, see `sci.paths.kernels`.

        Returns:
            (B, ..., states) probabilities.

        Raises:
            ValueError: when s is earlier than t.
        """
        if isinstance(t, float) and isinstance(s, float) and s < t:
            raise ValueError(f"a posterior leads towards data: expected s >= t, got {s} < {t}")
        if not data.is_floating_point():
            data = torch.nn.functional.one_hot(data, self.classes).to(widest(data.device))
        data = torch.nn.functional.pad(_wide(data), (0, self.states - self.classes))
        now, then = _shaped(self.keep(t), data), _shaped(self.keep(s), data)
        return kernels.posterior(x, data, self.law, now, then, stochasticity)

    def cross_entropy(
        self, prediction: Tensor, kind: str, data: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """-log p(data), summed over the present elements of each item, (B,) in nats.

        Arguments:
            prediction: (B, ..., classes) of kind `kind`.
            kind: "logits" or "data".
            data: (B, ...) int64.
            mask: (B, N) bool or None.
        """
        check_kind(kind, self.heads, "prediction kind")
        wide = _wide(prediction)
        logarithm = wide.log_softmax(-1) if kind == "logits" else _log(wide)
        return self._total(-logarithm.gather(-1, data[..., None]).squeeze(-1), mask)

    def divergence(
        self,
        prediction: Tensor,
        kind: str,
        data: Tensor,
        x: Tensor,
        t: Tensor | float,
        s: Tensor | float,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One term of the variational bound, KL(q(x_s | x_t, data) | p(x_s | x_t)), summed over the
        present elements of each item, (B,) in nats; at s = 1 it is the cross-entropy.

        Over a grid of n steps the bound on -log p(data) is the sum of the expected terms plus
        `source_divergence`; n times the term of a step drawn at random is an estimate of the sum.

        Arguments:
            prediction: (B, ..., classes) of kind `kind`.
            kind: "logits" or "data".
            data: (B, ...) int64.
            x: (B, ...) int64, the state at time t.
            t: (B,) or a float, in [0, 1).
            s: the same, later than t.
            mask: (B, N) bool or None.
        """
        last = self.cross_entropy(prediction, kind, data, mask)
        given = _wide(self.convert(prediction, kind, "data", x, t))
        exact = self.posterior(x, torch.nn.functional.one_hot(data, self.classes).to(given), t, s)
        model = self.posterior(x, given, t, s)
        terms = (torch.xlogy(exact, exact) - exact * _log(model)).sum(-1)
        return torch.where(
            torch.as_tensor(s == 1.0, device=x.device), last, self._total(terms, mask)
        )

    def source_divergence(self, data: Tensor, mask: Tensor | None = None) -> Tensor:
        """KL(q(x_0 | data) | m) at t = 0, summed over the present elements of each item, (B,);
        infinite when m lacks a class that the source may still have.

        Arguments:
            data: (B, ...) int64.
            mask: (B, N) bool or None.
        """
        exact = self.probabilities(data, 0.0)
        law = self.law.to(exact)
        terms = torch.where(exact > 0, exact * (exact / law).log(), 0.0)
        return self._total(terms.sum(-1), mask)

    def error(
        self, prediction: Tensor, target: Tensor, kind: str, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of each item, (B,): the mean cross-entropy of its present elements, in nats.

        Arguments:
            prediction: (B, ..., classes) of kind `kind`.
            target: (B, ...) int64 classes.
            kind: "logits" or "data".
            mask: (B, N) bool or None.
        """
        total = self.cross_entropy(prediction, kind, target, mask)
        return total / self.space.dimension(target, mask).clamp(min=1).to(total.dtype)

    def _total(self, terms: Tensor, mask: Tensor | None) -> Tensor:
        """The sum over independent elements, (B,)."""
        if terms.dim() == 1:
            return terms
        return self.space.inner(terms, torch.ones_like(terms), mask)

    def __repr__(self) -> str:
        return (
            f"CategoricalPath({self.schedule!r}, {self.classes}, kernel={self.kernel!r}, "
            f"space={self.space!r})"
        )


def _shaped(values: Any, x: Tensor) -> Any:
    return like_time(values, x) if isinstance(values, Tensor) else values


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
