"""A small real model of points in the plane, for tests of what is common to all models."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sci import files
from sci.demo import Section
from sci.model import Model, ParameterGroup, Prepared
from sci.report import Report

LOAD_LOG = os.environ.get("TOY_LOG")


@dataclass
class Points:
    """Points in the plane, float32 (n, 2)."""

    values: np.ndarray
    attrs: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def concat(cls, parts: list[Points]) -> Points:
        return cls(np.concatenate([part.values for part in parts]), dict(parts[0].attrs))

    def write(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if path.suffix == ".h5":
            files.write_hdf5(path, {"values": self.values}, {**self.attrs, "data_class": "points"})
        elif path.suffix == ".csv":
            np.savetxt(path, self.values, delimiter=",")
        else:
            raise ValueError(f"cannot write points as {path.suffix!r}; expected .h5 or .csv")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Points:
        if Path(path).suffix == ".csv":
            return cls(np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2))
        arrays, attrs = files.read_hdf5(path)
        return cls(arrays["values"], attrs)

    def evaluate(self, reference: str) -> Report:
        if reference != "ring":
            raise KeyError(f"no reference is called {reference!r}; known: 'ring'")
        radius = float(np.linalg.norm(self.values, axis=1).mean())
        return Report(
            "points",
            {"model": {"radius": radius}, "floor": {"radius": (1.0, 0.01)}},
            {"n": len(self), "nfe": self.attrs.get("nfe")},
        )


class Ring:
    """Points on the unit circle with a little noise, as training data."""

    def __init__(self, items: int, seed: int, pause: float = 0.0) -> None:
        generator = np.random.default_rng(seed)
        angle = generator.uniform(0, 2 * np.pi, items)
        values = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * generator.normal(
            size=(items, 2)
        )
        self.values, self.pause = torch.tensor(values, dtype=torch.float32), pause

    def __len__(self) -> int:
        return len(self.values)

    def collate(self, indices: Tensor) -> dict[str, Tensor]:
        time.sleep(self.pause)
        return {"points": self.values[indices]}


@dataclass(frozen=True)
class Config:
    width: int = 16
    layers: int = 2
    scale: float = 1.0


@dataclass(frozen=True)
class Request:
    steps: int = 8
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")


class Toy(Model):
    """Rectified flow of points: x_t = t data + (1 - t) noise, velocity = data - noise."""

    Config, Request, Data = Config, Request, Points
    name = "toy"
    batch_size = 64

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        width = self.config.width
        layers: list[nn.Module] = [nn.Linear(3, width), nn.SiLU()]
        for _ in range(self.config.layers - 1):
            layers += [nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.1)]
        self.network = nn.Sequential(*layers, nn.Linear(width, 2))

    @classmethod
    def prepare(cls, options: dict[str, Any], origin: Any = None) -> Prepared:
        train = Ring(options["items"], 0, options.get("pause", 0.0))
        return Prepared(train, Ring(64, 1), {"scale": float(train.values.std())})

    def losses(self, batch: Any, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        data = batch["points"]
        noise = torch.randn(data.shape, generator=generator)
        t = torch.rand(len(data), 1, generator=generator)
        velocity = self.network(torch.cat([t * data + (1 - t) * noise, t], 1))
        loss = (velocity.float() - (data - noise)).square().mean()
        return {"loss": loss, "size": velocity.float().square().mean()}

    def compile_networks(self) -> None:
        self.network.compile()

    def generate(self, request: Request, items: Sequence[int], noise: Any) -> Points:
        if LOAD_LOG:
            with open(LOAD_LOG, "a") as file:
                file.write(json.dumps([items[0], items[-1] + 1]) + "\n")
        x = noise.normal(torch.arange(2), leaf="points", step=-1).to(torch.float32)
        for k in range(request.steps):
            t = torch.full((len(x), 1), k / request.steps)
            x = x + self.network(torch.cat([x, t], 1)) / request.steps
        values = (x + request.shift).numpy()
        return Points(values, {"sampler": "euler", "nfe": request.steps})


class Alternating(Toy):
    """The toy with two groups: the last layer every second step, on its own loss and rate."""

    name = "alternating-toy"

    def parameter_groups(self) -> list[ParameterGroup]:
        head = list(self.network[-1].parameters())
        body = [p for p in self.network[:-1].parameters()]
        return [
            ParameterGroup(body, "loss"),
            ParameterGroup(head, "size", learning_rate=0.5, active=lambda step: step % 2 == 1),
        ]


def demo(folder: Path) -> Iterator[Section]:
    """The toys' part of the tour."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1])
    yield Section(
        "Toys & rings", "A <b>toy</b>.", [figure, ("the table", Report("t", {"model": {"a": 1.5}}))]
    )
