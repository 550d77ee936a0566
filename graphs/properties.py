r"""A surrogate of molecular properties that reads class probabilities, for guidance.

RDKit computes properties of finished molecules; a sampler needs to know which way a half-finished one leads. The
surrogate sees what a denoiser predicts at path time t, probabilities :math:`\hat p` of the atoms and of the bonds, and
answers with a normal law of each property of the molecule that will come of it,

.. math:: y_k \,|\, \hat p \sim \mathcal N\bigl(m_k(\hat p), s_k(\hat p)^2\bigr),

so that :math:`\log p(y \,|\, \hat p)` may be differentiated. It is trained on what it will see: clean molecules,
and the predictions of a trained generator for noised ones at all times. Where these say little, the honest
answer is a wide law, and its gradient is weak by itself: no schedule of strengths is needed.

The loss is the negative log likelihood of standardised properties, each term times its :math:`s_k` without gradient.

References:
    | Prediction of physicochemical parameters by atomic contributions (Wildman and Crippen, 1999), for logP
    | Quantifying the chemical beauty of drugs (Bickerton et al., 2012), for QED
    | On the pitfalls of heteroscedastic uncertainty estimation with probabilistic neural networks
      (Seitzer et al., 2022), for the weight of the loss
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sci.fields import unknown
from sci.graphs.descriptors import PROPERTIES, measure
from sci.graphs.encoding import Vocabulary
from sci.graphs.mended_network import Block, Layout, log_posterior
from sci.graphs.molecules import Molecules
from sci.graphs.pairs import to_dense, to_pairs
from sci.graphs.training_data import GraphTraining, split
from sci.model import Model, Prepared, load
from sci.paths import GaussianPath
from sci.schedules import Cosine

if TYPE_CHECKING:
    from sci.graphs.mended import MendedGDSS

__all__ = ["PropertySurrogate", "PropertySurrogateConfig", "PropertyTraining"]

_BOND_CLASSES = 4


@dataclass(frozen=True)
class PropertySurrogateConfig:
    """What a surrogate is.

    Arguments:
        atoms: Element symbols of the node classes.
        means, stds: Of the training molecules' properties; what the network predicts is standardised by them.
        properties: Names of the properties, in the order of the predictions.
        max_nodes: The most atoms of a training molecule.
        denoiser: The generator whose predictions it is trained on, a name or a checkpoint folder. Empty: each atom
            and bond of a noised molecule is judged alone, which needs no generator and is further from what guidance
            shows it.
        clean_share: Share of the training molecules that are shown as they are.
        depth, node_width, pair_width, triangle_width: Size of the network.
    """

    atoms: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    properties: tuple[str, ...] = PROPERTIES
    max_nodes: int = 9
    denoiser: str = ""
    clean_share: float = 0.35
    depth: int = 4
    node_width: int = 96
    pair_width: int = 48
    triangle_width: int = 12

    def __post_init__(self) -> None:
        for name in self.properties:
            if name not in PROPERTIES:
                raise ValueError(unknown("property", name, PROPERTIES))
        if not len(self.means) == len(self.stds) == len(self.properties) > 0:
            raise ValueError(
                f"means and stds must have one entry for each of {self.properties}, "
                f"not {len(self.means)} and {len(self.stds)}"
            )
        if min(self.stds) <= 0:
            raise ValueError(f"stds is {self.stds}; expected positive numbers")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share is {self.clean_share}; expected a number in [0, 1]")


class PropertyTraining:
    """Graphs as class indices beside their standardised properties, by index."""

    def __init__(self, graphs: GraphTraining, targets: Tensor):
        self.graphs = graphs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.graphs)

    def collate(self, indices: Tensor) -> dict[str, Tensor]:
        """The batch of some graphs: ``nodes``, ``pairs`` and ``targets`` (B, P)."""
        return self.graphs.collate(indices) | {"targets": self.targets[indices]}


class PropertySurrogate(Model):
    """Properties of molecules from class probabilities, see the module.

    Example:
        >>> import sci
        >>> from sci.graphs import Molecules
        >>> surrogate = sci.load("properties-qm9")
        >>> surrogate.predict(Molecules.from_smiles(["CCO", "c1ccccc1C"])).shape
        (2, 5)
    """

    Config = PropertySurrogateConfig
    name = "property-surrogate"
    config: PropertySurrogateConfig

    def __init__(self, config: PropertySurrogateConfig):
        super().__init__(config)
        width = config.node_width
        self.node_embed = nn.Linear(len(config.atoms), width)
        self.pair_embed = nn.Linear(_BOND_CLASSES, config.pair_width)
        self.blocks = nn.ModuleList(
            Block(width, config.pair_width, config.triangle_width, 1) for _ in range(config.depth)
        )
        self.node_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.head = nn.Linear(width, 2 * len(config.properties))
        for name in ("means", "stds"):
            values = torch.tensor(getattr(config, name), dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)
        self.means: Tensor
        self.stds: Tensor
        # In a list, so that the generator is no part of this model's weights.
        self._denoiser: list[MendedGDSS] = []
        self._asked: tuple[Any, Tensor, Tensor] | None = None

    @classmethod
    def prepare(
        cls, options: dict[str, Any], origin: PropertySurrogateConfig | None = None
    ) -> Prepared:
        """Molecules and their properties by RDKit; the table is that of :func:`sci.graphs.training_data.split`.

        Fine-tuning keeps the elements, the properties and the standardisation.
        """
        train, validation, laws = split(options, origin.atoms if origin else ())
        atoms = laws["atoms"]
        if not atoms:
            raise ValueError("[data] of a property surrogate must name molecules")
        names = origin.properties if origin else PROPERTIES
        raw = _labels(train, atoms, names)
        if origin is None:
            means, stds = raw.mean(0), raw.std(0).clamp(min=1e-6)
        else:
            means, stds = torch.tensor(origin.means), torch.tensor(origin.stds)
        learnt = {
            "atoms": atoms,
            "properties": names,
            "means": tuple(means.tolist()),
            "stds": tuple(stds.tolist()),
            "max_nodes": len(laws["sizes"]) - 1,
        }
        held = None
        if validation is not None:
            targets = (_labels(validation, atoms, names) - means) / stds
            held = PropertyTraining(validation, targets.float())
        return Prepared(
            PropertyTraining(train, ((raw - means) / stds).float()),
            held,
            learnt if origin is None else {},
        )

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The law of each standardised property.

        Arguments:
            nodes: (B, N, A) probabilities of the elements.
            edges: (B, N, N, 4) probabilities of no bond and of the bond orders 1 to 3, symmetric.
            mask: (B, N) bool, which atoms exist.

        Returns:
            Means and logarithms of the standard deviations, (B, P) each.
        """
        return self._law(nodes.transpose(0, 1), to_pairs(edges), Layout(mask, nodes.dtype))

    def _law(self, nodes: Tensor, pairs: Tensor, graph: Layout) -> tuple[Tensor, Tensor]:
        size = graph.count / self.config.max_nodes
        hidden = self.node_embed(nodes * graph.node_mask)
        edges = self.pair_embed(pairs * graph.pair_mask)
        for block in self.blocks:
            hidden, edges = block(hidden, edges, size, graph)
        # A sum over atoms, since most of the properties are nearly additive.
        pooled = (self.node_head(hidden) * graph.node_mask).sum(0) / self.config.max_nodes
        mean, spread = self.head(pooled).float().chunk(2, dim=-1)
        return mean, 4.0 * torch.tanh(spread / 4.0) - 1.0

    def losses(
        self, batch: dict[str, Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Weighted negative log likelihood; and the squared error of each property on clean molecules."""
        mask = batch["nodes"] >= 0
        graph = Layout(mask, self.means.dtype)
        nodes = functional.one_hot(
            batch["nodes"].clamp(min=0).t().long(), len(self.config.atoms)
        ).to(self.means)
        pairs = functional.one_hot(batch["pairs"].long(), _BOND_CLASSES).to(self.means)
        clean = round(self.config.clean_share * len(mask))
        if clean < len(mask):
            soft = self._softened(nodes[:, clean:], pairs[:, clean:], mask[clean:], generator)
            nodes = torch.cat((nodes[:, :clean], soft[0]), 1)
            pairs = torch.cat((pairs[:, :clean], soft[1]), 1)
        mean, log_std = self._law(nodes, pairs, graph)
        square = (mean - batch["targets"]).square()
        likelihood = 0.5 * square * (-2.0 * log_std).exp() + log_std
        losses = {"loss": (likelihood * log_std.detach().exp()).sum(1).mean()}
        if clean:
            errors = square[:clean].mean(0)
            losses |= dict(zip(self.config.properties, errors, strict=True))
        return losses

    @torch.no_grad()
    def _softened(
        self, nodes: Tensor, pairs: Tensor, mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Class probabilities of noised molecules, one-hot in, (N, B, A) and (P, B, 4) each."""
        if not self.config.denoiser:
            return self._judged_alone(nodes, pairs, len(mask), generator)
        model = self._generator()
        t = model.training_times(len(mask), generator)
        data = {
            "nodes": nodes.transpose(0, 1) - model.node_law,
            "edges": to_dense(pairs - model.edge_law, len(nodes)),
        }
        state = {
            name: path.corrupt(
                path.space.project(data[name], mask),
                path.space.random(data[name], mask, generator),
                t,
            )
            for name, path in model.paths.items()
        }
        found = model.predict(state, t, {"mask": mask})
        return (
            (found["nodes"] + model.node_law).transpose(0, 1),
            to_pairs(found["edges"] + model.edge_law),
        )

    def _judged_alone(
        self, nodes: Tensor, pairs: Tensor, batch: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        t = torch.rand(batch, generator=generator, device=nodes.device)
        path = GaussianPath(Cosine())
        alpha, sigma = path.schedule.alpha(t).to(nodes), path.schedule.sigma(t).to(nodes)
        soft = []
        for classes in (nodes, pairs):
            law = classes.mean((0, 1)).clamp(min=1e-3)
            law = law / law.sum()
            noise = torch.randn(
                classes.shape, generator=generator, device=nodes.device, dtype=nodes.dtype
            )
            noised = alpha[:, None] * (classes - law) + sigma[:, None] * noise
            soft.append(log_posterior(noised, law, alpha, sigma.clamp(min=1e-3)).softmax(-1))
        return soft[0], soft[1]

    def _generator(self) -> MendedGDSS:
        if not self._denoiser:
            from sci.graphs.mended import MendedGDSS

            model = load(self.config.denoiser)
            if not isinstance(model, MendedGDSS) or model.config.atoms != self.config.atoms:
                raise ValueError(
                    f"denoiser {self.config.denoiser!r} is no MendedGDSS of the elements "
                    f"{' '.join(self.config.atoms)}"
                )
            self._denoiser.append(model)
        return self._denoiser[0].to(self.device)

    def compile_networks(self) -> None:
        """Compiles the blocks in place."""
        for block in self.blocks:
            block.compile(dynamic=False)

    def log_likelihood(
        self,
        nodes: Tensor,
        edges: Tensor,
        mask: Tensor,
        targets: Mapping[str, float],
        std: float = 0.0,
    ) -> Tensor:
        r"""How likely molecules of these class probabilities are to have the wanted properties.

        .. math:: \log p(y | \hat p) = -\sum_k \Bigl[ \frac{(y_k - m_k)^2}{2 v_k} + \frac12 \log v_k \Bigr],
            \qquad v_k = s_k^2 + \text{std}^2,

        up to a constant, in standardised units.

        Arguments:
            nodes, edges, mask: As in :meth:`forward`.
            targets: Wanted value of each property, in the property's own unit.
            std: How far from the target is still good, in standard deviations of the training molecules.

        Returns:
            (B,), differentiable in ``nodes`` and ``edges``.

        Raises:
            ValueError: For a property that the surrogate does not predict.
        """
        wanted, counted = self._standardised(targets)
        mean, log_std = self(nodes, edges, mask)
        variance = (2.0 * log_std).exp() + std**2
        terms = (mean - wanted).square() / variance + variance.log()
        return -0.5 * (terms * counted).sum(1)

    def _standardised(self, targets: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Standardised targets (P,), and which of them count; kept on the device from call to call."""
        address = (tuple(targets.items()), self.means.device, self.means.dtype)
        if self._asked is None or self._asked[0] != address:
            wanted, counted = self.means.clone(), torch.zeros_like(self.means)
            for name, value in targets.items():
                wanted[self.column(name)] = value
                counted[self.column(name)] = 1.0
            self._asked = (address, (wanted - self.means) / self.stds, counted)
        return self._asked[1:]

    def column(self, name: str) -> int:
        """Where a property stands among the predictions.

        Raises:
            ValueError: For a property that the surrogate does not predict; close names are listed.
        """
        if name not in self.config.properties:
            raise ValueError(unknown("property of this surrogate", name, self.config.properties))
        return self.config.properties.index(name)

    @torch.no_grad()
    def predict(self, molecules: Molecules, batch_size: int = 1000) -> np.ndarray:
        """Properties of molecules, those of RDKit approximately and without asking for validity.

        Arguments:
            molecules: Molecules of the surrogate's elements and sizes.
            batch_size: Molecules at once.

        Returns:
            (G, P) float64, a column for each of ``config.properties``, in their own units.

        Raises:
            ValueError: Molecules of other elements, or larger ones than it was trained on.
        """
        if molecules.vocabulary.atoms != self.config.atoms:
            raise ValueError(
                f"the molecules have the elements {' '.join(molecules.vocabulary.atoms)}, the surrogate "
                f"{' '.join(self.config.atoms)}: encode them with "
                f"Vocabulary(atoms={self.config.atoms}), in this order"
            )
        if len(molecules) and molecules.sizes.max() > self.config.max_nodes:
            raise ValueError(
                f"there are molecules of {molecules.sizes.max()} heavy atoms; the surrogate was trained on at "
                f"most {self.config.max_nodes}"
            )
        out = np.zeros((len(molecules), len(self.config.properties)))
        for start in range(0, len(molecules), batch_size):
            nodes, edges, mask = self.probabilities(molecules[start : start + batch_size])
            mean, _ = self(nodes, edges, mask)
            out[start : start + batch_size] = (mean * self.stds + self.means).double().cpu().numpy()
        return out

    def probabilities(self, molecules: Molecules) -> tuple[Tensor, Tensor, Tensor]:
        """Molecules as the one-hot ``nodes``, ``edges`` and ``mask`` of :meth:`forward`."""
        mask = torch.from_numpy(molecules.mask).to(self.device)
        atoms = torch.from_numpy(molecules.atoms).to(self.device).clamp(min=0).long()
        bonds = torch.from_numpy(molecules.bonds).to(self.device).long()
        nodes = functional.one_hot(atoms, len(self.config.atoms)).to(self.means)
        edges = functional.one_hot(bonds, _BOND_CLASSES).to(self.means)
        return nodes * mask[..., None], edges, mask


def _labels(data: GraphTraining, atoms: Sequence[str], properties: Sequence[str]) -> Tensor:
    """(G, P) float64 properties of training graphs; the mean of the others where RDKit refuses one."""
    nodes = data.nodes.shape[1]
    bonds = to_dense(data.pairs.t()[..., None], nodes)[..., 0]
    molecules = Molecules(data.nodes.numpy(), bonds.numpy(), Vocabulary(tuple(atoms)))
    values = measure(molecules, properties)
    return torch.from_numpy(np.where(np.isnan(values), np.nanmean(values, 0), values))
