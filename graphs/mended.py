r"""The mended GDSS: one joint diffusion of nodes and edges whose end is its prior.

GDSS noises node features and the adjacency with two stochastic processes and denoises them together.
The idea stays, and four things in it change:

* The path ends in the noise that sampling starts from. The cosine schedule
  :math:`x_t = \sin(\pi t/2) (e_k - m) + \cos(\pi t/2) \epsilon` is a standard normal at :math:`t = 0`;
  the published schedules keep up to three quarters of the data there, and sample from a standard normal
  all the same.
* Classes, those of bonds too, are one-hot :math:`e_k` less their frequencies :math:`m`. The network
  returns class probabilities, so the expected data are :math:`\hat{x} = \operatorname{softmax}(\cdot) - m`,
  and the loss is the cross-entropy of the clean classes.
* The network sees the path time, the size of the graph, and the exact posterior of every entry taken
  alone.
* Sizes are drawn from the training law first; no step depends on the other graphs of a batch.

A request may ask for properties, or for a scaffold that every molecule keeps: see :mod:`sci.graphs.guided`.

References:
    | Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations
      (Jo, Lee and Hwang, 2022)
    | Continuous diffusion for categorical data (Dieleman et al., 2022), for the cross-entropy loss
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sci import samplers
from sci.denoiser import Denoiser
from sci.graphs import guided, scaffolds
from sci.graphs.dense import Graphs
from sci.graphs.mended_network import JointNetwork, Layout, log_posterior
from sci.graphs.molecules import Molecules
from sci.graphs.pairs import to_dense, to_pairs
from sci.graphs.sizes import draw_sizes
from sci.graphs.training_data import decode, split, within
from sci.model import Model, Prepared, Problem
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.schedules import Cosine
from sci.spaces import Euclidean, Symmetric

__all__ = ["MendedGDSS", "MendedGDSSConfig", "MendedGDSSRequest"]


@dataclass(frozen=True)
class MendedGDSSConfig:
    """What a mended GDSS is.

    Arguments:
        node_frequencies: Frequency of each node class in the data, positive; (1.0,) without classes.
        edge_frequencies: Frequency of each edge class; class 0 is "no edge".
        sizes: How many training graphs have 0, 1, 2, ... nodes.
        atoms: Element symbols of the node classes of molecules; empty for generic graphs.
        depth, node_width, pair_width, triangle_width, time_width: Size of the network, see
            :class:`sci.graphs.mended_network.JointNetwork`.
        focus: Interval of path time in which the classes are decided.
        focus_share: Share of the times, in training and in sampling, that fall in ``focus``; the others
            are uniform on the rest of ``span``.
        span: Earliest and latest path time, in training and in sampling.
    """

    node_frequencies: tuple[float, ...]
    edge_frequencies: tuple[float, ...]
    sizes: tuple[int, ...]
    atoms: tuple[str, ...] = ()
    depth: int = 4
    node_width: int = 96
    pair_width: int = 64
    triangle_width: int = 16
    time_width: int = 64
    focus: tuple[float, float] = (0.48, 0.86)
    focus_share: float = 0.8
    span: tuple[float, float] = (0.005, 0.9)

    def __post_init__(self) -> None:
        for name in ("node_frequencies", "edge_frequencies"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or abs(sum(values) - 1) > 1e-4:
                raise ValueError(f"{name} is {values}; expected positive numbers that sum to 1")
        if not any(self.sizes[1:]):
            raise ValueError("sizes must count at least one graph of one node or more")
        low, high = self.span
        if not 0 <= low < self.focus[0] < self.focus[1] < high <= 1:
            raise ValueError(
                f"span {self.span} must lie in [0, 1] and hold focus {self.focus} inside"
            )
        if not 0 <= self.focus_share <= 1:
            raise ValueError(f"focus_share is {self.focus_share}; expected a number in [0, 1]")


@dataclass(frozen=True)
class MendedGDSSRequest:
    """What to generate.

    Arguments:
        steps: Network evaluations a graph, at least 2; the guided ones go back through the network, too.
        sampler: ``"default"``: the one fitted to the model for so many steps (``sci tune``), or, where there is
            none and for guided requests, that of :meth:`MendedGDSS.sampler`; ``"tuned"`` and ``"untuned"`` insist on
            the one or the other; or the name of a preset of :mod:`sci.samplers`.
        stochasticity: Noise of the sampler, tau >= 0: 0 follows the probability-flow ODE, 1 the reverse SDE;
            None takes the preset's own, and for the untuned default 1 for molecules in 40 steps or more and for
            guided requests, whose errors the noise mends, else 0.
        size: Number of nodes of every graph; None draws it from the training law.
        precision: ``"bfloat16"`` runs the network under autocast, meant for GPUs: on a CPU it is no
            faster. The class probabilities are then rounded to two or three digits.
        scaffold: A part that every molecule keeps exactly: SMILES, with ``*`` where the rest may be attached; for
            graphs without labels edges, ``"0-1 1-2 2-0"``, or a networkx graph. See :mod:`sci.graphs.scaffolds`.
            Sizes are then drawn from the training law above the scaffold's own.
        repeats: How often each step of a scaffold's completion is gone back and repeated, at least 1; multiplies
            the cost.
        targets: Wanted properties, ``{"logp": 1.0, "qed": 0.5}``; ``--set targets.logp=1.0`` on the command line.
        guidance: Strength w with which targets and scaffold are followed, >= 0; 1 is Bayes' rule on marginal
            probabilities, which is too weak. None takes 8 for targets and 2 for scaffolds.
        surrogate: The model that predicts the properties: a name or a checkpoint folder.
    """

    steps: int = 20
    sampler: str = "default"
    stochasticity: float | None = None
    size: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    scaffold: str | None = None
    repeats: int = 1
    targets: dict[str, float] = field(default_factory=dict)
    guidance: float | None = None
    surrogate: str = "properties-qm9"

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; expected at least 2")
        if self.stochasticity is not None and not self.stochasticity >= 0:
            raise ValueError(f"stochasticity is {self.stochasticity}; expected a number >= 0")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; expected at least 1 node")
        if self.repeats < 1 or (self.repeats > 1 and self.scaffold is None):
            raise ValueError(
                f"repeats is {self.repeats}; expected 1 or, with a scaffold, a larger number"
            )
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance is {self.guidance}; expected a number >= 0")
        for name, value in self.targets.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"targets.{name} is {value!r}; expected a number")
            if not math.isfinite(value):
                raise ValueError(f"targets.{name} is {value}; expected a finite number")

    @property
    def guided(self) -> bool:
        """Whether there are targets or a scaffold."""
        return bool(self.targets) or self.scaffold is not None


class MendedGDSS(Model):
    """Joint diffusion of nodes and edges, see the module.

    Example:
        >>> import sci
        >>> molecules = sci.load("gdss-qm9").sample(8, seed=0, progress=False)
        >>> len(molecules)
        8
    """

    Config = MendedGDSSConfig
    Request = MendedGDSSRequest
    name = "mended-gdss"
    batch_size = 250
    config: MendedGDSSConfig

    def __init__(self, config: MendedGDSSConfig):
        super().__init__(config)
        self.network = JointNetwork(
            len(config.node_frequencies),
            len(config.edge_frequencies),
            max_nodes=len(config.sizes) - 1,
            depth=config.depth,
            node_width=config.node_width,
            pair_width=config.pair_width,
            triangle_width=config.triangle_width,
            time_width=config.time_width,
        )
        self.paths = {
            "nodes": GaussianPath(Cosine(), Euclidean()),
            "edges": GaussianPath(Cosine(), Symmetric()),
        }
        for name in ("node", "edge"):
            law = torch.tensor(getattr(config, f"{name}_frequencies"))
            self.register_buffer(f"{name}_law", law, persistent=False)
        self.node_law: Tensor
        self.edge_law: Tensor

    @property
    def Data(self) -> type:  # type: ignore[override]
        """Molecules when the node classes are elements, else Graphs."""
        return Molecules if self.config.atoms else Graphs

    @classmethod
    def prepare(cls, options: dict[str, Any], origin: MendedGDSSConfig | None = None) -> Prepared:
        """Training data and the laws of the data, see :func:`sci.graphs.training_data.split`.

        Fine-tuning keeps the elements and the class frequencies, on which the path rests, and learns the
        sizes, which must not exceed those of the model.
        """
        if origin is None:
            return Prepared(*split(options))
        train, validation, laws = split(options, origin.atoms)
        return Prepared(train, validation, {"sizes": within(laws["sizes"], len(origin.sizes) - 1)})

    def compile_networks(self) -> None:
        """Compiles the network in place."""
        self.network.compile(dynamic=False)

    def losses(
        self, batch: dict[str, Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        r"""Cross-entropy of the clean classes in nats a graph, over nodes and unordered pairs.

        .. math:: L = \mathbb{E}_t \Bigl[ -\sum_i \log p_\theta(k_i | x_t)
            - \sum_{i<j} \log p_\theta(k_{ij} | x_t) \Bigr]
        """
        mask = batch["nodes"] >= 0
        graph = Layout(mask, self.node_law.dtype)
        t = self.training_times(len(mask), generator)
        classes = {
            "nodes": batch["nodes"].clamp(min=0).t().long(),
            "edges": batch["pairs"].long(),
        }
        weights = {"nodes": graph.node_mask, "edges": graph.pair_mask}
        noised = {}
        for name, law in (("nodes", self.node_law), ("edges", self.edge_law)):
            data = functional.one_hot(classes[name], len(law)) - law
            noise = torch.randn(
                data.shape, generator=generator, device=data.device, dtype=data.dtype
            )
            leaf = self.paths[name].corrupt(data.transpose(0, 1), noise.transpose(0, 1), t)
            noised[name] = leaf.transpose(0, 1) * weights[name]
        logits = self._logits(noised["nodes"], noised["edges"], t, graph)
        losses = {}
        for name, leaf_logits in zip(("nodes", "edges"), logits, strict=True):
            entropy = functional.cross_entropy(
                leaf_logits.float().flatten(0, 1), classes[name].flatten(), reduction="none"
            )
            losses[name] = (entropy * weights[name].flatten()).sum() / len(mask)
        return {"loss": losses["nodes"] + losses["edges"], **losses}

    def times(self, quantiles: np.ndarray) -> np.ndarray:
        """Path times at quantiles of the law of training times, which sampling visits evenly as well.

        A share ``focus_share`` of them lies in ``focus``, where the classes are being decided.
        """
        (start, stop), (low, high) = self.config.span, self.config.focus
        share = self.config.focus_share
        outside = (1 - share) / ((low - start) + (stop - high))
        knots = np.cumsum([0.0, outside * (low - start), share, outside * (stop - high)])
        return np.interp(quantiles, knots, [start, low, high, stop])

    def training_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """Path times (B,), one in each of B strata of their law, in random order."""
        order = torch.randperm(batch, generator=generator, device=generator.device)
        offset = torch.rand((), generator=generator, device=generator.device)
        quantiles = ((order + offset) / batch).cpu().double().numpy()
        return torch.from_numpy(self.times(quantiles)).to(self.node_law)

    def _logits(
        self, nodes: Tensor, pairs: Tensor, t: Tensor, graph: Layout
    ) -> tuple[Tensor, Tensor]:
        schedule = self.paths["nodes"].schedule
        alpha, sigma = schedule.alpha(t).to(nodes.dtype), schedule.sigma(t).to(nodes.dtype)
        return self.network(
            nodes,
            pairs,
            log_posterior(nodes, self.node_law, alpha, sigma),
            log_posterior(pairs, self.edge_law, alpha, sigma),
            t,
            graph,
        )

    def predict(
        self, state: dict[str, Tensor], t: Tensor, condition: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Expected data, class probabilities less frequencies: leaves like the state's."""
        graph = Layout(condition["mask"], self.node_law.dtype)
        nodes, pairs = state["nodes"].transpose(0, 1), to_pairs(state["edges"])
        node_logits, pair_logits = self._logits(nodes, pairs, t, graph)
        return {
            "nodes": (node_logits.float().softmax(-1) - self.node_law).transpose(0, 1),
            "edges": to_dense(pair_logits.float().softmax(-1) - self.edge_law, len(nodes)),
        }

    def denoiser(self, precision: str = "float32") -> Denoiser:
        """The model as a denoiser on the leaves ``nodes`` (B, N, K) and ``edges`` (B, N, N, C).

        The condition is ``{"mask": (B, N) bool}``.
        """

        def network(state: Any, t: Tensor, condition: Any) -> Any:
            low = precision == "bfloat16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                return self.predict(state, t, condition)

        return Denoiser(network, self.paths, predicts="data", mask="mask")

    def sampler(self, request: MendedGDSSRequest) -> Any:
        """The sampler of a request, on times that follow the law of training times.

        Raises:
            ValueError: For an unknown sampler, or a budget for which none was fitted.
        """
        if self._takes_tuned(request):
            return self.tuned_sampler(request.steps)
        settings: dict[str, Any] = {
            "steps": request.steps,
            "grid": samplers.grids.from_quantiles(self.times),
            "final": "data",
        }
        if request.stochasticity is not None:
            settings["stochasticity"] = request.stochasticity
        if request.sampler == "adaptive":  # it finds its own times
            start, stop = self.config.span
            return samplers.adaptive(steps=request.steps, start=start, stop=stop, final="data")
        if request.sampler not in ("default", "untuned"):
            return samplers.preset(request.sampler, **settings)
        noisy = request.guided or (request.steps >= 40 and bool(self.config.atoms))
        # Chosen on held-out training molecules, see docs/choosing_a_sampler.md.
        if settings.setdefault("stochasticity", 1.0 if noisy else 0.0):
            return samplers.sde_dpmpp_2m(**settings)
        return samplers.default(**settings)

    def _takes_tuned(self, request: MendedGDSSRequest) -> bool:
        """Whether a request is for a sampler that was fitted to the model."""
        fitted = request.stochasticity is None and request.steps in self.tuned
        if request.sampler == "tuned" and not fitted:
            raise ValueError(
                f"no sampler was fitted to this model for {request.steps} steps (there is one for "
                f"{', '.join(map(str, sorted(self.tuned))) or 'no number of steps'}), or a stochasticity was asked "
                "for, which fitted ones do not take; `sci tune` fits one"
            )
        return fitted and (
            request.sampler == "tuned" or (request.sampler == "default" and not request.guided)
        )

    @classmethod
    def request(cls, **fields: Any) -> MendedGDSSRequest:
        """Makes a request; takes ``targets.logp=1.0`` for an entry of ``targets``, and a networkx scaffold."""
        targets = fields.get("targets", {})
        for name in [name for name in fields if name.startswith("targets.")]:
            targets = {**targets, name.removeprefix("targets."): fields.pop(name)}
        if targets:
            fields["targets"] = targets
        if hasattr(fields.get("scaffold"), "adjacency"):
            fields["scaffold"] = scaffolds.edge_list(fields["scaffold"])
        made: MendedGDSSRequest = super().request(**fields)
        return made

    def partners(self, request: MendedGDSSRequest) -> Sequence[Model]:
        """The surrogate, for requests with targets."""
        return [guided.surrogate_of(self, request)] if request.targets else []

    def problem(self, request: MendedGDSSRequest, items: Sequence[int], noise: Noise) -> Problem:
        """What the sampler is given: the guided denoiser, and the items' sizes as the mask of the condition."""
        scaffold = guided.scaffold_of(self, request)
        largest = len(self.config.sizes) - 1
        least = 1 if scaffold is None else guided.least_size(self.config.sizes, scaffold, request)
        sizes = draw_sizes(self.config.sizes, noise, request.size, largest, least).to(self.device)
        mask = torch.arange(int(sizes.max()), device=self.device) < sizes[:, None]
        batch, width = mask.shape
        like = {
            "nodes": self.node_law.new_zeros(batch, width, len(self.node_law)),
            "edges": self.edge_law.new_zeros(batch, width, width, len(self.edge_law)),
        }
        denoiser = guided.guide(self, self.denoiser(request.precision), request, scaffold, width)
        sampler = guided.repeating(self.sampler(request), request.repeats)
        return Problem(denoiser, like, {"mask": mask}, sampler)

    def generate(
        self, request: MendedGDSSRequest, items: Sequence[int], noise: Noise
    ) -> Molecules | Graphs:
        """Molecules or graphs of the items' sizes; see :class:`MendedGDSSRequest`."""
        problem = self.problem(request, items, noise)
        result = problem.sampler(
            problem.denoiser, like=problem.like, condition=problem.condition, noise=noise
        )
        sampler = getattr(problem.sampler, "sampler", problem.sampler)  # that of Resampled
        nodes = (result.state["nodes"] + self.node_law).argmax(-1)
        edges = (result.state["edges"] + self.edge_law).argmax(-1)
        attrs = {
            "sampler": "tuned" if self._takes_tuned(request) else request.sampler,
            "stochasticity": getattr(sampler, "stochasticity", 0.0),
            "nfe": result.nfe,
        }
        return decode(nodes, edges, problem.condition["mask"], self.config.atoms, attrs)
