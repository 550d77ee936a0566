r"""One training step as a function of (parameters, seed, step), and the averaged weights.

Everything random at step s comes from generators seeded by (seed, s, rank), and the batch of step s is read off
a sequence fixed by the seed: permutation 0 of the data, permutation 1, and so on, cut every ``batch_size``.
So a run that was stopped anywhere and resumed makes the same arrays as one that was not.

The averaged weights after n steps are :math:`a \leftarrow d_n a + (1 - d_n) w` with
:math:`d_n = \min(d, (1 + n) / (10 + n))`, which forgets the initialisation quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sci import tree
from sci.fields import unknown
from sci.model import Model, ParameterGroup, TrainingData, evaluating
from sci.recipes import Recipe

__all__ = ["Batches", "Optimisation", "mix"]


def mix(*parts: int | str) -> int:
    """A 63-bit seed from several integers or words, the same on every machine."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class Batches:
    """The items of each step.

    Arguments:
        items: Size of the data set.
        batch_size: Items a step over all ranks; a multiple of ``world``.
        seed: The training seed.
        rank, world: Which share of the batch to give: every ``world``-th item from ``rank`` on.

    Raises:
        ValueError: If there is no item, or the batch does not divide among the ranks.
    """

    def __init__(
        self, items: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if items < 1:
            raise ValueError("the training data hold no item")
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} does not divide among {world} devices")
        self.items, self.batch_size, self.seed, self.rank, self.world = (
            items,
            batch_size,
            seed,
            rank,
            world,
        )
        self._order: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """The item numbers of a step (int64, shape (batch_size / world,))."""
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        pieces = []
        while position < stop:
            epoch, offset = divmod(position, self.items)
            taken = min(stop - position, self.items - offset)
            pieces.append(self._permutation(epoch)[offset : offset + taken])
            position += taken
        return torch.cat(pieces)[self.rank :: self.world]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._order:
            generator = torch.Generator().manual_seed(mix(self.seed, "epoch", epoch))
            self._order = {epoch: torch.randperm(self.items, generator=generator)}
        return self._order[epoch]


class Optimisation:
    """A model's parameters under its recipe's optimisers.

    Arguments:
        model: The model, on its device.
        recipe: Its recipe.
        rank, world: This process and the number of them; gradients are averaged over them.

    Raises:
        ValueError: If two parameter groups share a parameter, or there is nothing to train.
    """

    def __init__(self, model: Model, recipe: Recipe, rank: int = 0, world: int = 1) -> None:
        self.model, self.recipe, self.rank, self.world = model, recipe, rank, world
        self.groups = model.parameter_groups()
        _check_groups(self.groups)
        self.optimisers = [_optimiser(recipe, group) for group in self.groups]
        self.rates = [group.learning_rate or recipe.optimiser.lr for group in self.groups]
        self.factor = recipe.rate()
        self.names, self.parameters = map(list, zip(*model.named_parameters(), strict=True))
        self.average = [p.detach().clone() for p in self.parameters]
        self.device = model.device
        self.generator = torch.Generator(self.device)

    def losses(self, batch: Any, step: int, *address: int | str) -> dict[str, Tensor]:
        """The model's losses on a batch, every random draw of which is fixed by (seed, address)."""
        seed = mix(self.recipe.seed, *address)
        torch.manual_seed(seed)  # for modules that draw by themselves, such as dropout
        self.generator.manual_seed(seed)
        if self.device.type != "cpu":
            batch = tree.to(batch, device=self.device)
        half = self.recipe.training.precision == "bf16-mixed"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            return self.model.losses(batch, step, self.generator)

    def step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Moves the parameters once.

        Arguments:
            batch: The batch of the step, as the data collate it.
            step: The step, from 0.

        Returns:
            The losses, and ``gradient_norm`` where gradients are clipped, without gradients of their own.

        Raises:
            KeyError: If a group names a loss that the model did not return.
        """
        losses = self.losses(batch, step, "step", step, self.rank)
        moving = [i for i, group in enumerate(self.groups) if group.active(step)]
        for position, i in enumerate(moving):
            group = self.groups[i]
            if group.loss not in losses:
                raise KeyError(unknown("loss returned by the model", group.loss, losses))
            self.optimisers[i].zero_grad(set_to_none=True)
            # Gradients of every group come before any group moves: the graph must see unchanged parameters.
            last = position == len(moving) - 1
            losses[group.loss].backward(inputs=group.parameters, retain_graph=not last)
        self._average_gradients(moving)
        report = {name: value.detach() for name, value in losses.items()}
        factor = self.factor(step)
        for i in moving:
            group, optimiser = self.groups[i], self.optimisers[i]
            clip = group.clip or self.recipe.optimiser.clip
            if clip is not None:
                name = "gradient_norm" if len(self.groups) == 1 else f"gradient_norm_{i}"
                report[name] = nn.utils.clip_grad_norm_(group.parameters, clip)
            optimiser.param_groups[0]["lr"] = self.rates[i] * factor
            optimiser.step()
        self._average_weights(step)
        return report

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Model]:
        """The model with the averaged weights in place, in evaluation mode, without gradients."""
        with torch.no_grad(), evaluating(self.model):
            kept = [p.detach().clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, self.average)
            try:
                yield self.model
            finally:
                torch._foreach_copy_(self.parameters, kept)

    def validate(self, data: TrainingData, step: int) -> dict[str, float]:
        """Mean losses of the averaged weights on held-out data, always with the same random draws.

        Arguments:
            data: The held-out data; the first ``validation_items`` of them are taken, in whole batches
                where there are enough (a compiled network would be compiled again for a last short one).
            step: The step, for losses that depend on it.
        """
        size = min(self.recipe.training.batch_size, len(data))
        count = min(max(self.recipe.training.validation_items, size), len(data)) // size
        total: dict[str, Tensor] = {}
        with self.averaged(), torch.set_grad_enabled(self.recipe.training.compile):
            # With gradients on, a compiled network's training graph serves; it is not compiled twice.
            for number in range(count):
                batch = data.collate(torch.arange(number * size, (number + 1) * size))
                for name, value in self.losses(batch, step, "validation", number).items():
                    total[name] = total.get(name, torch.zeros_like(value)) + value.detach() / count
        return {name: float(value) for name, value in total.items()}

    def state(self) -> dict[str, Any]:
        """All that resuming needs, as plain tensors and numbers."""
        return {
            "model": {key: value.detach() for key, value in self.model.state_dict().items()},
            "average": dict(zip(self.names, self.average, strict=True)),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state` gave.

        Raises:
            ValueError: If it is of another model or recipe.
        """
        if set(state["average"]) != set(self.names) or len(state["optimisers"]) != len(
            self.optimisers
        ):
            raise ValueError(
                "the checkpoint is of a model with other parameters; give another folder"
            )
        self.model.load_state_dict(state["model"])
        for name, own in zip(self.names, self.average, strict=True):
            own.copy_(state["average"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def _average_weights(self, step: int) -> None:
        decay = min(self.recipe.training.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1.0 - decay)

    def _average_gradients(self, moving: list[int]) -> None:
        if self.world == 1:
            return
        parameters = [p for i in moving for p in self.groups[i].parameters]
        for p in parameters:
            if p.grad is None:  # every rank must send as many numbers
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
        torch.distributed.all_reduce(flat)
        flat /= self.world
        for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = piece.view_as(p)


def _check_groups(groups: list[ParameterGroup]) -> None:
    seen: set[int] = set()
    for number, group in enumerate(groups):
        if not group.parameters:
            raise ValueError(f"parameter group {number} is empty")
        own = {id(p) for p in group.parameters}
        if own & seen:
            raise ValueError(f"parameter group {number} shares parameters with an earlier group")
        seen |= own
    if not groups:
        raise ValueError("the model has no parameter groups, so there is nothing to train")


def _optimiser(recipe: Recipe, group: ParameterGroup) -> torch.optim.Optimizer:
    asked = recipe.optimiser
    rate = group.learning_rate or asked.lr
    if asked.name == "sgd":
        return torch.optim.SGD(
            group.parameters, lr=rate, momentum=asked.momentum, weight_decay=asked.weight_decay
        )
    kind = torch.optim.AdamW if asked.name == "adamw" else torch.optim.Adam
    fused = all(p.device.type in ("cpu", "cuda") for p in group.parameters)
    return kind(
        group.parameters,
        lr=rate,
        betas=asked.betas,
        eps=asked.eps,
        weight_decay=asked.weight_decay,
        fused=fused,
    )
