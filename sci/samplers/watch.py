"""Around the loop: the progress bar, recomputation for the backward pass, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

__all__ = ["blame", "finite", "progress_bar", "recomputing"]


def _good(leaf: Tensor) -> Tensor:
    """Where a leaf is finite; classes are where they are not negative."""
    return torch.isfinite(leaf.detach()) if leaf.is_floating_point() else leaf >= 0


def finite(leaves: Sequence[Tensor]) -> bool:
    """Whether all leaves are finite everywhere; one look at the device."""
    return bool(torch.stack([_good(leaf).all() for leaf in leaves]).all())


def blame(plan: Any, denoiser: Any, carry: Any) -> None:
    """Replay a run that went wrong, step by step, and raise an error that says where."""
    items = getattr(carry.noise, "items", None)

    def found(carry: Any, when: str, t: Any = None) -> None:
        for name, path, leaf in zip(plan.names, plan.paths, carry.leaves, strict=True):
            bad = ~_good(leaf).unsqueeze(-1).flatten(1).all(1)
            if bool(bad.any()):
                row = int(bad.nonzero()[0, 0])
                item = row if items is None else int(items[row])
                if t is not None:
                    time = float(t if isinstance(t, float) else t[row])
                    gone = [
                        end for end in ("alpha", "sigma") if getattr(path.schedule, end)(time) == 0
                    ]
                    why = (
                        f", where {gone[0]} = 0 and some kinds of prediction are infinite"
                        if gone
                        else ""
                    )
                    when += f" (evaluated at t = {time:.6g}{why})"
                raise FloatingPointError(
                    f"leaf '{name}' of item {item} (row {row}; {int(bad.sum())} of {len(bad)} "
                    f"items) is not finite {when}: look at the network there, or use a gentler "
                    "sampler (lower order, more steps)"
                )

    with torch.no_grad():
        found(carry, "at the start, before any step")
        while carry.step < plan.steps:
            step, t = carry.step, plan._time(carry)
            carry = plan.step(denoiser, carry)
            found(carry, f"after step {step} of {plan.steps}", t)
    raise FloatingPointError(
        "the samples are not finite, and a replay of the run was finite: the network, a callback "
        "or a wrapper depends on more than state, time and condition"
    )


def recomputing(denoiser: Any) -> Callable[..., Any]:
    """The denoiser, run again in the backward pass instead of being stored."""

    class Recomputing:
        def __call__(self, state: Any, t: Any, condition: Any = None, to: Any = "data") -> Any:
            return recompute(denoiser, state, t, condition, to, use_reentrant=False)

        def __getattr__(self, name: str) -> Any:
            found = getattr(denoiser, name)
            # Of two networks, see `sci.denoiser.Joined`.
            return partial(recompute, found, use_reentrant=False) if name == "both" else found

    return Recomputing()


def progress_bar(total: int) -> Any:
    """A progress bar over steps."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="sampling", unit="step", leave=False)
