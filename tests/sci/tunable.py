"""A toy whose samplers can be fitted: points in the plane, by a small network of the velocity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from toy import Points, Request, Toy

from sci import samplers
from sci.denoiser import Denoiser
from sci.model import Problem
from sci.paths import GaussianPath
from sci.schedules import CondOT

REGISTRY = """\
class.tunable-toy = "tunable:Tunable"

[model.tunable-ring]
class = "tunable-toy"
folder = "shipped"
wing = "toys"
summary = "points that can be tuned"
"""


class Tunable(Toy):
    """The toy with a problem; `generate` takes the fitted sampler where there is one."""

    name = "tunable-toy"

    def problem(self, request: Request, items: Sequence[int], noise: Any) -> Problem:
        def network(state: Tensor, t: Tensor, condition: Any) -> Tensor:
            # Steep in time, so that equal steps are a bad choice.
            gate = torch.sigmoid(40 * (t - 0.7))[:, None]
            return self.network(torch.cat([state, t[:, None]], 1)) * (0.3 + 3 * gate) - state

        like = torch.zeros(len(items), 2, device=self.device)
        standing = self.tuned_sampler(request.steps) or samplers.euler(request.steps)
        path = GaussianPath(CondOT())
        return Problem(Denoiser(network, path, predicts="velocity"), like, None, standing)

    def generate(self, request: Request, items: Sequence[int], noise: Any) -> Points:
        problem = self.problem(request, items, noise)
        result = problem.sampler(problem.denoiser, like=problem.like, noise=noise)
        tuned = request.steps in self.tuned
        values = (result.state + request.shift).numpy()
        return Points(values, {"sampler": "tuned" if tuned else "euler", "nfe": result.nfe})


def ship(folder: Path) -> Path:
    """A registry in `folder` that ships a tunable toy; its path."""
    torch.manual_seed(1)
    Tunable().save(folder / "shipped", card="# Tunable\\n\\nA tunable toy.\\n")
    table = folder / "registry.toml"
    table.write_text(REGISTRY)
    return table
