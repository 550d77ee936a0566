r"""Guidance of the mended GDSS: molecules of wanted properties, and completions of a scaffold.

Both follow from Bayes' rule. With :math:`\hat p(x_t)` the class probabilities that the network gives,

.. math:: \nabla \log p(x_t | y) = \nabla \log p(x_t) + w \nabla \log p(y | \hat p(x_t)),

with the gradient taken through the network (:class:`sci.guidance.Gradient`); w = 1 is the rule itself.

* **Properties.** :math:`p(y | \hat p)` is the surrogate's, see :mod:`sci.graphs.properties`. It is wide as long as
  little is decided, so that the strength needs no schedule.
* **Scaffolds.** The known atoms and bonds are put in the place of the prediction
  (:class:`sci.guidance.Replacement`), which keeps them exactly and lets their noised values follow the path. By
  itself that tells the rest of the graph too little: at most times the noised copy of a bond does not show what
  the bond is. What is missing is the likelihood of the known classes, and that is what the network was trained
  for,

  .. math:: \log p(y | \hat p) = \sum_{i \text{ known}} \log \hat p_i(k_i)
      + \sum_{i<j \text{ known}} \log \hat p_{ij}(k_{ij}),

  as if entries were independent given :math:`x_t`, which they are not quite. Repeating steps
  (:class:`sci.samplers.Resampled`) does without it, at a higher price.

References:
    | Diffusion models beat GANs on image synthesis (Dhariwal and Nichol, 2021)
    | RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., 2022)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sci import guidance, samplers
from sci.graphs.encoding import Vocabulary
from sci.graphs.scaffolds import Scaffold
from sci.model import load

if TYPE_CHECKING:
    from sci.graphs.mended import MendedGDSS, MendedGDSSRequest
    from sci.graphs.properties import PropertySurrogate

__all__ = [
    "SCAFFOLD_STRENGTH",
    "TARGET_STRENGTH",
    "guide",
    "least_size",
    "log_likelihood",
    "repeating",
    "scaffold_of",
    "surrogate_of",
]

# Strengths of targets and of scaffolds, and the standard deviations of the training molecules within which a property
# counts as met: the best of a few on one sampling seed, see benchmarks/guidance.py. The likelihoods are of marginal
# probabilities, which say less than the molecule will, and a strength of 1 is too weak for that.
TARGET_STRENGTH, SCAFFOLD_STRENGTH = 8.0, 2.0
_TOLERANCE = 0.6
# Probabilities below this one count as this one: a gradient beyond it would be noise of float32.
_LEAST = 1e-6


def guide(
    model: MendedGDSS,
    denoiser: Any,
    request: MendedGDSSRequest,
    scaffold: Scaffold | None,
    width: int,
) -> Any:
    """The denoiser of a request, wrapped where the request has targets or a scaffold.

    Arguments:
        model: The model.
        denoiser: Its denoiser.
        request: What to generate.
        scaffold: That of the request.
        width: Number of nodes of the padded batch.

    Raises:
        ValueError: For targets that the surrogate does not predict, or a surrogate of other elements.
    """
    if not request.guided:
        return denoiser
    laws = {"nodes": model.node_law, "edges": model.edge_law}
    surrogate = surrogate_of(model, request) if request.targets else None
    asked = request.guidance
    for_targets = TARGET_STRENGTH if asked is None else asked
    for_scaffold = SCAFFOLD_STRENGTH if asked is None else asked
    values: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    classes: dict[str, Tensor] = {}
    if scaffold is not None:
        values, masks = scaffold.known(width, *laws.values())
        for name, where in (("nodes", masks["nodes"].unsqueeze(-1)), ("edges", masks["edges"])):
            classes[name] = torch.where(where, values[name] + laws[name], 0.0)

    def likelihood(data: dict[str, Tensor], condition: dict[str, Tensor]) -> Tensor:
        found = {name: data[name] + law for name, law in laws.items()}
        mask = condition["mask"]
        total = found["nodes"].new_zeros(len(mask))
        if surrogate is not None:
            total = total + for_targets * surrogate.log_likelihood(
                found["nodes"], found["edges"], mask, request.targets, _TOLERANCE
            )
        if scaffold is not None:
            total = total + for_scaffold * log_likelihood(classes, found, mask)
        return total

    if asked != 0:
        denoiser = guidance.Gradient(denoiser, likelihood)
    return denoiser if scaffold is None else guidance.Replacement(denoiser, values, masks)


def log_likelihood(classes: dict[str, Tensor], found: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Sum of the log probabilities of known nodes and pairs, each pair once.

    Arguments:
        classes: One-hot classes of what is known, ``nodes`` (1, N, K) and ``edges`` (1, N, N, C), zero elsewhere.
        found: Class probabilities, ``nodes`` (B, N, K) and ``edges`` (B, N, N, C).
        mask: (B, N) bool, which nodes exist.

    Returns:
        (B,).
    """
    pairs = (mask[:, :, None] & mask[:, None])[..., None]
    logs = {name: probability.clamp(min=_LEAST).log() for name, probability in found.items()}
    nodes = (logs["nodes"] * classes["nodes"] * mask[..., None]).sum((1, 2))
    return nodes + 0.5 * (logs["edges"] * classes["edges"] * pairs).sum((1, 2, 3))


def scaffold_of(model: MendedGDSS, request: MendedGDSSRequest) -> Scaffold | None:
    """The scaffold of a request, None where there is none.

    Raises:
        ValueError: For text that is no scaffold of this model.
    """
    if request.scaffold is None:
        return None
    if model.config.atoms:
        return Scaffold.from_smiles(request.scaffold, Vocabulary(model.config.atoms))
    return Scaffold.from_edges(request.scaffold)


def least_size(counts: Sequence[int], scaffold: Scaffold, request: MendedGDSSRequest) -> int:
    """The fewest nodes of a completion: one more than the scaffold, where the model knows graphs that large.

    Arguments:
        counts: How many training graphs have 0, 1, 2, ... nodes.
        scaffold: The scaffold.
        request: What to generate; an explicit size may be the scaffold's own.
    """
    room = request.size is None and any(counts[len(scaffold) + 1 :])
    return len(scaffold) + 1 if room else len(scaffold)


def repeating(sampler: Any, repeats: int) -> Any:
    """The sampler with each step repeated."""
    return sampler if repeats == 1 else samplers.Resampled(sampler, repeats=repeats)


def surrogate_of(model: MendedGDSS, request: MendedGDSSRequest) -> PropertySurrogate:
    """The surrogate that a request names, on the model's device.

    Raises:
        ValueError: If it is another kind of model, or one of other elements.
    """
    from sci.graphs.properties import PropertySurrogate

    surrogate = _loaded(request.surrogate, str(model.device))
    if not isinstance(surrogate, PropertySurrogate):
        raise ValueError(
            f"surrogate {request.surrogate!r} is a {type(surrogate).__name__}; expected a model of properties, such "
            "as properties-qm9"
        )
    if surrogate.config.atoms != model.config.atoms:
        raise ValueError(
            f"targets: the surrogate {request.surrogate!r} knows the elements "
            f"{' '.join(surrogate.config.atoms)}, this model {' '.join(model.config.atoms) or 'none'}; train one "
            "on its molecules: sci train properties-qm9 --set data.molecules=..."
        )
    for name in request.targets:
        surrogate.column(name)
    return surrogate


@lru_cache(maxsize=4)
def _loaded(name: str, device: str) -> Any:
    surrogate = load(name, device)
    for parameter in surrogate.parameters():
        parameter.requires_grad_(False)
    return surrogate
