r"""GDSS as published: two stochastic processes, two score networks, one joint reverse simulation.

Node features X (N, F) and the adjacency A (N, N) are noised by processes of their own under one clock. With
s = 1 - t the clock of the paper and z standard noise (one draw per unordered pair for A),

.. math::
    \text{VP:}\quad x_s = e^{m(s)} x + \sqrt{1 - e^{2 m(s)}}\, z,\quad
        m(s) = -\tfrac14 s^2 (b_1 - b_0) - \tfrac12 s b_0, \qquad
    \text{VE:}\quad x_s = x + \sigma_0 (\sigma_1 / \sigma_0)^s z.

Neither network sees the clock. What they return is minus the noise's sign for VP, where the score is -net / std, and
the score itself for VE. Each is trained by its own optimiser on

.. math:: L = \tfrac12 \mathbb{E} \sum (\mathrm{std}\cdot\mathrm{score} + z)^2,

summed over all entries of the matrix, every edge twice. Sampling starts from standard normal noise although the short
processes do not end there; :mod:`sci.graphs.mended` mends this. The nodes of a graph are those with an edge: a graph
size is drawn from the training law of that count and kept throughout.

References:
    | Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations
    | (Jaehyeong Jo, Seul Lee, Sung Ju Hwang, 2022)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sci import samplers
from sci.denoiser import Denoiser
from sci.fields import build
from sci.files import FileDamaged
from sci.graphs import published
from sci.graphs.dense import Graphs
from sci.graphs.gdss_data import prepare, to_graphs, to_molecules
from sci.graphs.gdss_networks import ScoreNetworkA, ScoreNetworkX, ScoreNetworkXGMH
from sci.graphs.molecules import Molecules
from sci.graphs.sizes import draw_sizes
from sci.graphs.training_data import within
from sci.model import Model, ParameterGroup, Prepared
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.schedules import VE, VP, Schedule
from sci.spaces import Euclidean, Space, Symmetric

__all__ = ["GDSS", "GDSSConfig", "GDSSRequest", "Process"]

EARLIEST = 1e-5  # training times, on the paper's clock, are uniform on [EARLIEST, 1]


@dataclass(frozen=True)
class Process:
    """The noising process of a leaf.

    Arguments:
        kind: "vp" or "ve".
        low: b_0 (VP, the rate at data) or sigma_0 (VE, the noise at data), > 0.
        high: b_1 or sigma_1, at the source; for VE above `low`.
    """

    kind: Literal["vp", "ve"] = "vp"
    low: float = 0.1
    high: float = 1.0

    def schedule(self) -> Schedule:
        """The process as a schedule; t = 1 is data."""
        return VP(self.low, self.high) if self.kind == "vp" else VE(self.low, self.high)

    def path(self, space: Space) -> GaussianPath:
        """The process on a space, started from standard normal noise."""
        return GaussianPath(self.schedule(), space, source_std=1.0)

    @property
    def predicts(self) -> str:
        """The prediction kind of the network: "noise" for VP, "score" for VE."""
        return "noise" if self.kind == "vp" else "score"


@dataclass(frozen=True)
class GDSSConfig:
    """What a GDSS model is.

    Arguments:
        features: Node features F: elements, or degrees 0, ..., F - 1.
        max_nodes: The largest graph of the data.
        sizes: How many training graphs have 0, 1, 2, ... nodes with an edge; may be empty.
        atoms: Element symbols of the node features of molecules; empty for generic graphs.
        node_process, edge_process: The noising processes.
        node_network: "convolution" (ScoreNetworkX) or "attention" (ScoreNetworkX_GMH).
        depth: Layers of the node network.
        layers: Attention layers of the edge network.
        hidden, attention, linears, channels, heads: See :mod:`sci.graphs.gdss_networks`.
        sampler, predictor, corrector, snr, scale, steps: Published sampling settings, the defaults of requests.
    """

    features: int
    max_nodes: int
    sizes: tuple[int, ...] = ()
    atoms: tuple[str, ...] = ()
    node_process: Process = Process()
    edge_process: Process = Process()
    node_network: Literal["convolution", "attention"] = "convolution"
    depth: int = 2
    layers: int = 3
    hidden: int = 16
    attention: int = 16
    linears: int = 3
    channels: tuple[int, int, int] = (2, 8, 4)
    heads: int = 4
    sampler: Literal["pc", "s4"] = "pc"
    predictor: Literal["reverse", "euler"] = "reverse"
    corrector: bool = True
    snr: float = 0.2
    scale: float = 0.7
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.atoms and len(self.atoms) != self.features:
            raise ValueError(f"features is {self.features}, but there are {len(self.atoms)} atoms")
        if len(self.sizes) > self.max_nodes + 1 or (self.sizes and not any(self.sizes[1:])):
            raise ValueError(
                f"sizes must count at least one graph of 1 to max_nodes={self.max_nodes} nodes"
            )
        for name in ("features", "max_nodes", "depth", "layers", "hidden", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class GDSSRequest:
    """What to generate; None takes the model's published setting.

    Arguments:
        steps: Steps, at least 2. "s4" and a sampler without corrector evaluate the networks once a step, "pc" with
            its corrector twice.
        sampler: "pc" (predictor-corrector) or "s4" (symmetric splitting).
        predictor: Of "pc": "reverse" or "euler".
        corrector: Of "pc": whether there is one.
        snr: Signal-to-noise ratio of the Langevin kick, > 0.
        scale: Factor on the kick's noise; below 1 it lowers the temperature.
        norm: "item"; or "batch" as published, which makes every graph depend on its batch mates.
        size: Number of nodes of every graph; None draws it from the training law.
    """

    steps: int | None = None
    sampler: Literal["pc", "s4"] | None = None
    predictor: Literal["reverse", "euler"] | None = None
    corrector: bool | None = None
    snr: float | None = None
    scale: float | None = None
    norm: Literal["item", "batch"] = "item"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 2:
            raise ValueError(f"steps is {self.steps}; expected at least 2")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; expected at least 1 node")


class GDSS(Model):
    """The published joint score model of nodes and edges, see the module.

    Example:
        >>> config = GDSSConfig(features=4, max_nodes=9, sizes=(0,) * 9 + (1,), atoms=("C", "N", "O", "F"))
        >>> molecules = GDSS(config).sample(2, steps=2, sampler="s4", progress=False)
        >>> len(molecules), molecules.attrs["nfe"]
        (2, 2)
    """

    Config = GDSSConfig
    Request = GDSSRequest
    name = "gdss"
    batch_size = 256
    config: GDSSConfig

    def __init__(self, config: GDSSConfig):
        super().__init__(config)
        sizes = (config.hidden, config.attention, config.linears, config.channels, config.heads)
        self.node_network: nn.Module
        if config.node_network == "attention":
            self.node_network = ScoreNetworkXGMH(config.features, config.depth, *sizes)
        else:
            self.node_network = ScoreNetworkX(config.features, config.depth, config.hidden)
        self.edge_network = ScoreNetworkA(config.features, config.layers, *sizes)
        self.paths = {
            "nodes": config.node_process.path(Euclidean()),
            "edges": config.edge_process.path(Symmetric()),
        }

    @property
    def Data(self) -> type:  # type: ignore[override]
        """Molecules when the node features are elements, else Graphs."""
        return Molecules if self.config.atoms else Graphs

    @classmethod
    def from_published(
        cls,
        path: str | os.PathLike[str],
        train: Molecules | Graphs | None = None,
        averaged: bool | None = None,
    ) -> GDSS:
        """A model from a checkpoint of the published code, read without running anything in it.

        Arguments:
            path: The .pth file.
            train: Training graphs, whose sizes become the size law. The laws of the seven published files are known;
                for another file without `train`, ask for a size when sampling.
            averaged: Take the running averages of the weights; None does what the file's settings say.

        Raises:
            FileNotFoundError, sci.files.FileDamaged, ValueError: As :func:`sci.graphs.published.read`.
        """
        checkpoint = published.read(path, averaged)
        fields = dict(checkpoint.config)
        if train is not None:
            linked = (train.bonds if isinstance(train, Molecules) else train.adjacency).any(2)
            fields["sizes"] = np.bincount(linked.sum(1)).tolist()
        model = cls(build(GDSSConfig, fields, f"settings of {path}"))
        try:
            model.load_state_dict(checkpoint.weights)
        except RuntimeError as error:
            raise FileDamaged(f"the weights in {path} do not fit its settings: {error}") from error
        known = checkpoint.known
        model.training_record = {
            "name": f"gdss-published ({known.file if known else os.path.basename(path)})",
            "averaged": checkpoint.averaged,
        }
        return model.eval()

    @classmethod
    def prepare(cls, options: dict[str, Any], origin: GDSSConfig | None = None) -> Prepared:
        """Training data of a recipe, see :func:`sci.graphs.gdss_data.prepare`.

        Fine-tuning keeps the node features of the model and learns the sizes, which must not exceed its own.
        """
        if origin is None:
            return prepare(options)
        if not origin.atoms:
            options = {**options, "features": origin.features}
        prepared = prepare(options, origin.atoms)
        sizes = within(prepared.config["sizes"], origin.max_nodes)
        return Prepared(prepared.train, prepared.validation, {"sizes": sizes})

    def losses(
        self, batch: dict[str, Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The two losses, means over graphs; each is followed by the optimiser of its network."""
        data = {"nodes": batch["nodes"], "edges": batch["edges"]}
        count, device = len(batch["mask"]), generator.device
        uniform = torch.rand(count, generator=generator, device=device)
        # In float64: the standard deviation of VP near data is that of a small 1 - t.
        t = (1.0 - EARLIEST) * (1.0 - uniform.cpu().double())
        noise = {
            name: self.paths[name].space.random(leaf, batch["mask"], generator)
            for name, leaf in data.items()
        }
        own = self.item_losses(data, batch["mask"], noise, t)
        return {name: value.mean() for name, value in own.items()}

    def item_losses(
        self, data: dict[str, Tensor], mask: Tensor, noise: dict[str, Tensor], t: Tensor
    ) -> dict[str, Tensor]:
        """0.5 sum (std score + z)^2 of every graph.

        Arguments:
            data: nodes (B, N, F) and edges (B, N, N), zero at absent nodes.
            mask: (B, N) bool.
            noise: Standard noise like `data`, zero at absent nodes.
            t: (B,) path times; 1 is data.

        Returns:
            Losses (B,) by leaf.
        """
        state = {
            name: self.paths[name].corrupt(leaf, noise[name], t) for name, leaf in data.items()
        }
        raw = self._raw(state, mask)
        losses = {}
        for name, process in (
            ("nodes", self.config.node_process),
            ("edges", self.config.edge_process),
        ):
            if process.kind == "vp":
                error = noise[name] - raw[name]
            else:
                std = self.paths[name].schedule.sigma(t).to(raw[name])
                error = noise[name] + raw[name] * std.view(-1, 1, 1)
            losses[name] = 0.5 * error.square().sum(dim=(1, 2))
        return losses

    def parameter_groups(self) -> list[ParameterGroup]:
        """One optimiser for each network, on its own loss."""
        return [
            ParameterGroup(list(self.node_network.parameters()), loss="nodes"),
            ParameterGroup(list(self.edge_network.parameters()), loss="edges"),
        ]

    def _raw(self, state: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        arguments = state["nodes"], state["edges"], mask
        return {"nodes": self.node_network(*arguments), "edges": self.edge_network(*arguments)}

    def denoiser(self) -> Denoiser:
        """The model as a denoiser on the leaves ``nodes`` (B, N, F) and ``edges`` (B, N, N).

        The condition is ``{"mask": (B, N) bool}``.
        """

        def network(state: Any, t: Tensor, condition: Any) -> Any:
            return self._raw(state, condition["mask"])

        predicts = {
            "nodes": self.config.node_process.predicts,
            "edges": self.config.edge_process.predicts,
        }
        return Denoiser(network, self.paths, predicts=predicts, mask="mask")

    def sampler(self, request: GDSSRequest) -> samplers.PredictorCorrector | samplers.S4:
        """The sampler of a request."""

        def chosen(name: str) -> Any:
            asked = getattr(request, name)
            return getattr(self.config, name) if asked is None else asked

        shared = {name: chosen(name) for name in ("snr", "scale", "steps")}
        if chosen("sampler") == "s4":
            return samplers.S4(norm=request.norm, **shared)
        return samplers.PredictorCorrector(
            predictor=chosen("predictor"),
            corrector="langevin" if chosen("corrector") else None,
            norm=request.norm,
            **shared,
        )

    def generate(
        self, request: GDSSRequest, items: Sequence[int], noise: Noise
    ) -> Molecules | Graphs:
        """Molecules or graphs of the items' sizes; see :class:`GDSSRequest`."""
        sizes = draw_sizes(self.config.sizes, noise, request.size, self.config.max_nodes).to(
            self.device
        )
        mask = torch.arange(int(sizes.max()), device=self.device) < sizes[:, None]
        batch, width = mask.shape
        empty = next(self.parameters()).new_zeros
        like = {
            "nodes": empty(batch, width, self.config.features),
            "edges": empty(batch, width, width),
        }
        result = self.sampler(request)(
            self.denoiser(), like=like, condition={"mask": mask}, noise=noise
        )
        nodes, edges = result.state["nodes"].cpu().numpy(), result.state["edges"].cpu().numpy()
        attrs = {"sampler": str(result.sampler), "nfe": result.nfe}
        if self.config.atoms:
            return to_molecules(nodes, edges, self.config.atoms, attrs)
        return to_graphs(edges, sizes.cpu().numpy(), attrs)
