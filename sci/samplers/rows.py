"""The rows of a plan: what one step of one leaf multiplies, worked out before sampling.

Everything in a linear multistep method is linear in the predictions, so a step with all its
corrections is one combination

    x_next = A x + sum_j U_j P_j + N z + b,    U_j = V_j + A D_j

of the predictions at the newest points. V are the weights of the predictor. D is the correction of
the point that the step starts from, once its own prediction is known: the weights of the corrector
minus those of the predictor that led there. What was added to x since, noise or an edit, stays.
Where kinds are mixed, or a past prediction is edited, the combination has the past states too.

Start-up. The first steps have no past, hence a low order, and leave an error that no later step
takes away. A corrected start repairs this without an evaluation: as long as it lasts, each point is
corrected to the integral from the very first time over the polynomial through the best predictions
known by then. If the predictions at some nodes have errors O(h^e_j), a point that is predicted
through q - 1 of them with e_j >= q - 1 has an error O(h^q): the exponents grow like 2, 3, 3, 4
along the points 1, 2, 3, 4. Predictions that are too poor for the order are left out until they
leave the window.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from sci.paths import Path
from sci.samplers.weights import Coefficients, coefficients

__all__ = ["HIGHEST", "Builder", "Form", "Row", "alike", "asked"]

# One-off errors of the start-up are O(h^4) at best, which serves every order that is claimed.
HIGHEST = 4
# Dynamic compensation takes three predictions.
_EDITED = 2
# Steps times items that are worked out in one go.
_COLUMNS = 1 << 14
# A linear form in predictions ("p", node) and states ("x", node).
_Terms = dict[tuple[str, int], np.ndarray]
# Where a constant stands among weights by node.
_BIAS = "bias"


@dataclasses.dataclass
class Form:
    """A linear form in the state, the predictions and the past states; arrays (B,).

    Arguments:
        scale: the factor of the state.
        weights: of the predictions, the newest first.
        states: of the states before this one, the newest first.
    """

    scale: np.ndarray
    weights: list[np.ndarray]
    states: list[np.ndarray]


@dataclasses.dataclass
class Row:
    """One step of one leaf.

    Arguments:
        next: gives the next state.
        edit: gives what is kept of the newest prediction; None when it is kept as it is.
        noise: (B,) N.
        bias: (B,) b, or None.
    """

    next: Form
    edit: Form | None
    noise: np.ndarray
    bias: np.ndarray | None


def asked(kind: Any) -> str:
    """The kind of prediction that a denoiser is asked for."""
    return kind if isinstance(kind, str) else "noise"


def alike(keys: list[Any], width: int) -> list[list[int]]:
    """The places of equal keys, in groups that are small enough to be worked out at once."""
    groups: list[tuple[Any, list[int]]] = []
    most = max(1, _COLUMNS // width)
    for place, key in enumerate(keys):
        for known, places in groups:
            if known == key and len(places) < most:
                places.append(place)
                break
        else:
            groups.append((key, [place]))
    return [places for _, places in groups]


@dataclasses.dataclass(frozen=True)
class _Request:
    """Coefficients that are wanted: which settings, nodes, start and stop, all by step."""

    step: int
    nodes: tuple[int, ...]
    start: int
    stop: int
    rule: str
    corrector: bool


class Builder:
    """Works out the rows of one leaf for items whose steps have the same nodes.

    Arguments:
        settings: the `Multistep` of the leaf.
        path: of the leaf.
        times: (n, B) float64.
        limits: (n - 1, 3) how many nodes each step may use: predictor, corrector, start-up.
    """

    def __init__(self, settings: Any, path: Path, times: np.ndarray, limits: np.ndarray):
        self.settings, self.path, self.times, self.limits = settings, path, times, limits
        self.steps = len(times) - 1
        self.kinds = [settings.at("kind", step) for step in range(self.steps)]
        self.mixed = any(kind != self.kinds[0] for kind in self.kinds)
        self.start, self.poor = self._start_up()
        self._one = np.ones(times.shape[1])

    def rows(self) -> list[Row]:
        """All rows, first to last."""
        ahead = [self._ahead(step) for step in range(self.steps)]
        corrections = [self._correction(step) for step in range(self.steps)]
        found = self._work_out([*ahead, *(one for one in corrections if one is not None)])
        rows = []
        # The weights of the transition that led to the point at hand, and in the start-up those of
        # all transitions from the first time.
        led: dict[Any, Any] = {}
        held: dict[Any, Any] = {}
        for step in range(self.steps):
            here, scale = found[ahead[step]], found[ahead[step]].scale
            weights = _by_node(ahead[step], here)
            change: dict[Any, Any] = {}
            correction = corrections[step]
            if correction is not None:
                before = held if step < len(self.start) else led
                change = _by_node(correction, found[correction])
                for node, weight in before.items():
                    change[node] = change.get(node, 0.0) - weight
            terms: _Terms = {("x", step): scale}
            for node, weight in change.items():
                if node != _BIAS:
                    reading = self._reading(self.kinds[step - 1], node, step, edited=False)
                    _add(terms, reading, scale * weight)
            for node, weight in weights.items():
                if node != _BIAS:
                    reading = self._reading(self.kinds[step], node, step, edited=True)
                    _add(terms, reading, weight)
            bias = None
            if _BIAS in weights or _BIAS in change:
                bias = weights.get(_BIAS, 0.0) + scale * change.get(_BIAS, 0.0)
            edit = None
            if self._edits(step):
                edit = _form(self._entry(step), step, self._one)
            noise = here.noise * self.settings.noise_scale
            rows.append(Row(_form(terms, step, self._one), edit, noise, bias))
            if step < len(self.start):
                nodes = {*held, *change, *weights}
                held = {
                    node: scale * (held.get(node, 0.0) + change.get(node, 0.0))
                    + weights.get(node, 0.0)
                    for node in nodes
                }
            led = weights
        return rows

    def _ahead(self, step: int) -> _Request:
        """The predictor of a step."""
        if step < len(self.start):
            return _Request(step, tuple(self.start[step]), step, step + 1, "exact", False)
        order = min(self.settings.at("order", step), step + 1, self.limits[step, 0])
        if self.settings.lower_final:
            order = min(order, self.steps - step)
        window = range(step, step - max(order, 1), -1)
        nodes = tuple(node for node in window if node == step or node not in self.poor)
        return _Request(step, nodes, step, step + 1, self.settings.rule, False)

    def _correction(self, step: int) -> _Request | None:
        """The corrector of the point that a step starts from, when it has one."""
        if step == 0:
            return None
        if step < len(self.start):
            return _Request(0, tuple(self.start[step]), 0, step, "exact", False)
        backs = self.settings.at("corrector", step - 1)
        backs = min(backs, step, self.limits[step - 1, 1] - 1)
        if backs < 1:
            return None
        window = range(step - 1, step - 1 - backs, -1)
        nodes = (step, *(n for n in window if n == step - 1 or n not in self.poor))
        return _Request(step - 1, nodes, step - 1, step, self.settings.rule, True)

    def _work_out(self, requests: list[_Request]) -> dict[_Request, Coefficients]:
        """The coefficients, of all requests of a sort at once."""
        settings, times, width = self.settings, self.times, self.times.shape[1]
        keys = [
            (
                self.kinds[one.step],
                settings.at("stochasticity", one.step),
                one.rule,
                one.corrector,
                len(one.nodes),
            )
            for one in requests
        ]
        found = {}
        for group in alike(keys, width):
            kind, tau, rule, corrector, count = keys[group[0]]
            members = [requests[place] for place in group]
            together = coefficients(
                self.path,
                kind,
                settings.variable,
                rule,
                tau,
                [times[[one.nodes[k] for one in members]].ravel() for k in range(count)],
                times[[one.stop for one in members]].ravel(),
                corrector,
                times[[one.start for one in members]].ravel(),
            )
            for place, one in enumerate(members):
                part = slice(place * width, (place + 1) * width)
                found[one] = Coefficients(
                    together.scale[part],
                    [weight[part] for weight in together.weights],
                    together.noise[part],
                    None if together.bias is None else together.bias[part],
                )
        return found

    def _start_up(self) -> tuple[list[list[int]], set[int]]:
        """The nodes of each step of the corrected start, and the nodes that are poor after it."""
        settings = self.settings
        if not settings.corrected_start:
            return [], set()
        steps = range(self.steps)
        order = max(settings.at("order", step) for step in steps)
        corrector = max(settings.at("corrector", step) for step in steps)
        wanted = min(HIGHEST, min(order, corrector) + 1 if corrector else order)
        exponents: list[float] = [math.inf]
        chosen: list[list[int]] = []
        for step in steps:
            reached = next(
                q
                for q in range(step + 2, 1, -1)
                if sum(exponent >= q - 1 for exponent in exponents) >= q - 1
            )
            nodes = [n for n in range(step, -1, -1) if exponents[n] >= reached - 1]
            same = all(
                settings.at(name, step) == settings.at(name, 0)
                for name in ("kind", "stochasticity")
            )
            short = settings.lower_final and self.steps - step < len(nodes)
            # An edited prediction stands for two things at its node, which no integral can tell.
            if self.limits[step, 2] <= step or not same or short or self._compensated(step):
                break
            chosen.append(nodes)
            exponents.append(reached)
            if step and reached >= wanted:
                return chosen, {n for n in range(step + 2) if exponents[n] < wanted - 1}
        return chosen, set()

    def _stored(self, node: int) -> Any:
        """The kind in which a past prediction is kept."""
        return asked(self.kinds[node]) if self.mixed else self.kinds[node]

    def _edits(self, step: int) -> bool:
        """Whether something else is kept than the prediction as it came."""
        return self._compensated(step) or not isinstance(self._stored(step), str)

    def _compensated(self, step: int) -> bool:
        return step >= _EDITED and self.settings.at("compensation", step) is not None

    def _entry(self, step: int) -> _Terms:
        """What is kept of the prediction at this step."""
        kind = self._stored(step)
        newest = self._converted({("p", step): self._one}, asked(self.kinds[step]), kind, step)
        if not self._compensated(step):
            return newest
        ratio = self.settings.at("compensation", step)
        times = [self.times[step - back] for back in range(3)]
        target = ratio * times[0] + (1.0 - ratio) * times[1]
        terms: _Terms = {}
        for back, place in enumerate(times):
            weight = self._one
            for other, apart in enumerate(times):
                if other != back:
                    weight = weight * (target - apart) / (place - apart)
            part = newest if back == 0 else self._reading(kind, step - back, step, edited=True)
            _add(terms, part, weight)
        return terms

    def _reading(self, kind: Any, node: int, step: int, edited: bool) -> _Terms:
        """The prediction at a node as a kind, in terms of what the step at hand has."""
        if node < step:
            return self._converted({("p", node): self._one}, self._stored(node), kind, node)
        if edited:
            return self._converted(self._entry(step), self._stored(step), kind, step)
        return self._converted({("p", step): self._one}, asked(self.kinds[step]), kind, step)

    def _converted(self, terms: _Terms, given: Any, kind: Any, node: int) -> _Terms:
        if given == kind:
            return terms
        factor, shift = self._one, 0.0 * self._one
        time = torch.from_numpy(self.times[node])
        if given != asked(kind):
            pair = self.path.coefficients(given, asked(kind), time)
            factor, shift = (torch.as_tensor(part).double().numpy() for part in pair)
        if not isinstance(kind, str):
            shift = shift - kind.shift(self.path, self.times[node])
        out: _Terms = {("x", node): shift + 0.0 * self._one}
        _add(out, terms, factor)
        return out


def _add(terms: _Terms, more: _Terms, factor: Any) -> None:
    for key, weight in more.items():
        terms[key] = terms.get(key, 0.0) + factor * weight


def _by_node(request: _Request, found: Coefficients) -> dict[Any, np.ndarray]:
    """Weights by node, with the bias beside them."""
    weights: dict[Any, np.ndarray] = dict(zip(request.nodes, found.weights, strict=True))
    if found.bias is not None:
        weights[_BIAS] = found.bias
    return weights


def _form(terms: _Terms, step: int, one: np.ndarray) -> Form:
    """The terms as lists, from the newest to the oldest that occurs."""
    zero = 0.0 * one

    def column(name: str, first: int) -> list[np.ndarray]:
        nodes = [node for kind, node in terms if kind == name and node <= first]
        if not nodes:
            return []
        return [terms.get((name, node), zero) for node in range(first, min(nodes) - 1, -1)]

    scale = terms.get(("x", step), zero)
    return Form(scale, column("p", step), column("x", step - 1))
