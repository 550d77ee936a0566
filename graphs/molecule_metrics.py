"""How good a set of generated molecules is, beside what real molecules score.

Every table has these rows:

* **model**: the molecules as generated;
* **training set**: as many training molecules, drawn uniformly, taken through the same arrays: the score of a model
  that remembers its training set;
* **floor**: as many real molecules (the SMILES of other uniform draws from the training set) against the
  test set, as mean and standard deviation over the draws: the score of a perfect sampler at this n;
* **independent atoms and bonds**: the trivial baseline, in which each molecule has the size of a training
  molecule and its atoms and bonds are drawn independently of each other.

and these columns, of which FCD and NSPDK are better when lower:

* *validity*, *connected*, *valency*: fractions of all molecules, see :mod:`sci.graphs.building`;
* *uniqueness*: distinct SMILES per valid molecule; *novelty*: fraction of the distinct SMILES that are not in
  the training set, neither as published nor as the arrays give it back (without anions). Both look at the largest
  piece of each valid molecule, novelty at that of training molecules as well;
* *V.U.N.*: distinct, novel, connected molecules per molecule drawn;
* *FCD*, *NSPDK*: distances from the test set, on the largest pieces, see :mod:`sci.graphs.chemnet`;
* *length*: mean number of characters of the SMILES; *rings*: fraction with a ring. Few-step samplers that look
  valid often do so by making molecules that are too simple: these two columns show it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np

from sci.graphs import building, chemnet
from sci.graphs.encoding import canonical_smiles
from sci.graphs.molecules import Molecules

if TYPE_CHECKING:
    from sci.graphs.load import MoleculeData
    from sci.report import Report

METRICS_VERSION = 1
_BRACKETS = re.compile(r"\[[^\]]*\]")
_NSPDK_REFERENCE = 3000
Row = dict[str, float | tuple[float, float] | None]


@dataclass(frozen=True)
class Reference:
    """What generated molecules are judged against.

    Arguments:
        name: For titles and messages.
        test: SMILES of the reference molecules.
        train: SMILES of the training molecules; None if unknown (no novelty, and the floor halves ``test``).
        molecules: The training molecules as arrays; None leaves out two rows.
        cache: Keep the statistics of real molecules in the cache folder.
    """

    name: str
    test: list[str]
    train: list[str] | None = None
    molecules: Molecules | None = None
    cache: bool = False


def evaluate(
    molecules: Molecules,
    reference: str | MoleculeData | Molecules | Sequence[str] = "qm9",
    train: Molecules | Sequence[str] | None = None,
    floor: bool = True,
    draws: int = 3,
    baseline: bool = True,
    fcd: int | None = 10_000,
    nspdk: int | None = 1000,
    seed: int = 0,
    progress: bool = True,
    cache: bool = True,
) -> Report:
    """Judge generated molecules; rows and columns are explained in the module.

    Arguments:
        molecules: Generated molecules.
        reference: A data set by name or as loaded (its test split is the reference, its training split serves
            novelty and floor), or reference molecules, or their SMILES, which are made canonical.
        train: With reference molecules of your own: the training molecules.
        floor: Add the rows of real molecules.
        draws: Draws of the floor; their seeds are seed + 1, seed + 2, ...
        baseline: Add the row of independent atoms and bonds.
        fcd: Molecules of each row in FCD at most, drawn uniformly (2 ms each; needs the package ``fcd``),
            against all of the reference; 0 leaves the column out, None takes all.
        nspdk: Molecules of each row in NSPDK at most, drawn uniformly (7 ms each; needs ``eden-kernel``),
            against up to 3,000 of the reference; 0 leaves the column out, None takes all on both sides.
        seed: Seed of the draws of real molecules and of the baseline.
        progress: Show progress bars.
        cache: Keep the rows of real molecules of a named data set in the cache folder.

    Returns:
        A table; ``None`` stands where a figure is not defined or could not be computed (a note says why).

    Raises:
        ValueError: There are no molecules, generated or to compare with, or a SMILES that RDKit cannot parse.
    """
    from sci.report import Report

    if not len(molecules):
        raise ValueError("There are no molecules to judge; generate some first.")
    against = _reference(reference, train, cache)
    if not against.test:
        raise ValueError(
            f"There are no valid molecules to compare with in {against.name}; give a larger reference."
        )
    notes: dict[str, str] = {}
    fcd, nspdk = _available(fcd, nspdk, notes)
    judge = _Judge(against, fcd, nspdk, seed, progress)
    rows: dict[str, Row] = {"model": judge.row(molecules)}
    n = min(
        len(molecules), len(against.train) if against.train is not None else len(against.test) // 2
    )
    known = against.molecules
    if floor and known is not None:
        rows["training set"] = judge.stored(
            "training", n, lambda: judge.row(known.resample(n, seed))
        )
    if floor and n > 1:
        rows["floor"] = judge.stored("floor", [n, draws], lambda: judge.floor(n, draws))
        source = "the training set" if against.train is not None else "one half of the reference"
        rest = "the test set" if against.train is not None else "the other half"
        notes["floor"] = (
            f"{n} real molecules from {source} against {rest}; mean and standard deviation over {draws} draws"
        )
    if baseline and known is not None:
        rows["independent atoms and bonds"] = judge.stored(
            "independent", n, lambda: judge.row(independent(known, n, seed))
        )
    notes["reference"] = f"{against.name}: {len(against.test)} test molecules" + (
        f", {len(against.train)} training molecules" if against.train is not None else ""
    )
    notes["uniqueness, novelty, FCD, NSPDK"] = "on the largest piece of each valid molecule"
    if nspdk:
        notes["NSPDK"] = (
            f"squared MMD (biased) of at most {nspdk} molecules a row, EDeN complexity 4"
        )
    if fcd and len(molecules) > fcd:
        notes["FCD"] = f"of {fcd} molecules a row"
    return Report(f"{len(molecules)} molecules against {against.name}", rows, notes)


def independent(molecules: Molecules, n: int, seed: int = 0) -> Molecules:
    """The trivial baseline: sizes of real molecules, atoms and bonds drawn independently from their frequencies.

    Arguments:
        molecules: Real molecules that the frequencies are from.
        n: How many to draw.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.choice(molecules.sizes, n)
    mask = np.arange(molecules.max_atoms) < sizes[:, None]
    kinds = np.bincount(molecules.atoms[molecules.mask], minlength=len(molecules.vocabulary.atoms))
    atoms = np.where(mask, rng.choice(len(kinds), mask.shape, p=kinds / kinds.sum()), -1)
    below = np.tril(np.ones(molecules.bonds.shape[1:], dtype=bool), -1)
    pairs = molecules.mask[:, :, None] & molecules.mask[:, None] & below
    orders = np.bincount(molecules.bonds[pairs], minlength=4)
    orders[0] += not orders.any()  # molecules of one atom have no pairs
    drawn = rng.choice(4, (n, *molecules.bonds.shape[1:]), p=orders / orders.sum())
    bonds = drawn * (mask[:, :, None] & mask[:, None] & below)
    return Molecules(atoms, bonds + bonds.transpose(0, 2, 1), molecules.vocabulary)


class _Judge:
    def __init__(
        self, reference: Reference, fcd: int | None, nspdk: int | None, seed: int, progress: bool
    ) -> None:
        self.reference, self.fcd, self.nspdk = reference, fcd, nspdk
        self.seed, self.progress = seed, progress
        self.known = _known(reference)
        self._moments: dict[str, chemnet.Moments] = {}
        self._means: dict[str, np.ndarray] = {}

    def row(self, molecules: Molecules) -> Row:
        verdict = molecules.verdict
        pieces = [text for text in verdict.largest if text is not None]
        whole = {s for s, one in zip(verdict.smiles, verdict.connected, strict=True) if one}
        row: Row = {
            "n": float(len(molecules)),
            "validity": float(verdict.valid.mean()),
            "connected": float(verdict.connected.mean()),
            "valency": float(verdict.valency.mean()),
            **self._smiles_columns(pieces),
        }
        row["V.U.N."] = None if self.known is None else len(whole - self.known) / len(molecules)
        return row | self._distances(pieces, self.reference)

    def floor(self, n: int, draws: int) -> Row:
        """Columns of real SMILES against the reference, mean and spread over draws."""
        drawn = []
        for draw in range(1, draws + 1):
            rng = np.random.default_rng(self.seed + draw)
            if self.reference.train is not None:
                pool, against = self.reference.train, self.reference
            else:
                order = rng.permutation(len(self.reference.test))
                half = len(order) // 2
                pool = [self.reference.test[k] for k in order[:half]]
                rest = [self.reference.test[k] for k in order[half:]]
                against = replace(self.reference, name=f"half {draw}", test=rest, cache=False)
            chosen = rng.choice(len(pool), min(n, len(pool)), replace=False)
            smiles = [pool[k] for k in chosen]
            drawn.append(self._smiles_columns(smiles) | self._distances(smiles, against))
        row: Row = {"n": float(n), "validity": None, "connected": None, "valency": None}
        for key in drawn[0]:
            values = [value for one in drawn if isinstance(value := one[key], float)]
            known = key != "novelty" and len(values) == draws
            spread = float(np.std(values, ddof=min(1, draws - 1))) if known else 0.0
            row[key] = (float(np.mean(values)), spread) if known else None
        return row | {"V.U.N.": None}

    def stored(self, what: str, size: object, compute: Callable[[], Row]) -> Row:
        """A row of real molecules from the cache folder, or computed and kept there."""
        from sci import datasets
        from sci.files import FileDamaged, digest, read_json, write_json

        if not self.reference.cache:
            return compute()
        settings = [what, size, self.fcd, self.nspdk, self.seed, *self._identity()]
        file = datasets.cache_folder() / f"molecule-metrics-{digest(settings)[:32]}.json"
        try:
            kept = read_json(file)["row"]
            return {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in kept.items()
            }
        except (FileNotFoundError, FileDamaged, KeyError):
            row = compute()
        _keep(lambda: write_json(file, {"row": row}), file)
        return row

    def _smiles_columns(self, smiles: Sequence[str]) -> Row:
        distinct = set(smiles)
        count = len(smiles)
        if not count:
            return dict.fromkeys(("uniqueness", "novelty", "length", "rings"))
        novel = None if self.known is None else len(distinct - self.known) / len(distinct)
        return {
            "uniqueness": len(distinct) / count,
            "novelty": novel,
            "length": sum(map(len, smiles)) / count,
            "rings": sum(map(_has_ring, smiles)) / count,
        }

    def _distances(self, smiles: Sequence[str], against: Reference) -> Row:
        row: Row = {}
        if self.fcd != 0:
            row["FCD"] = None
            if min(len(smiles), len(against.test)) > 1:
                moments = chemnet.chemnet_moments(
                    self._sample(smiles, self.fcd), progress=self.progress
                )
                row["FCD"] = chemnet.frechet(moments, self._reference_moments(against))
        if self.nspdk != 0:
            row["NSPDK"] = None
            if smiles:
                mean = chemnet.nspdk_mean(self._sample(smiles, self.nspdk), progress=self.progress)
                row["NSPDK"] = chemnet.nspdk_mmd(mean, self._reference_mean(against))
        return row

    def _reference_moments(self, against: Reference) -> chemnet.Moments:
        if against.name not in self._moments:
            arrays = self._arrays(
                "chemnet", against, lambda: _moment_arrays(against.test, self.progress)
            )
            self._moments[against.name] = chemnet.Moments(
                arrays["mean"], arrays["covariance"], int(arrays["count"])
            )
        return self._moments[against.name]

    def _reference_mean(self, against: Reference) -> np.ndarray:
        if against.name not in self._means:
            some = (
                against.test if self.nspdk is None else self._sample(against.test, _NSPDK_REFERENCE)
            )
            self._means[against.name] = self._arrays(
                f"nspdk-{self.seed}-{len(some)}",
                against,
                lambda: {"mean": chemnet.nspdk_mean(some, progress=self.progress)},
            )["mean"]
        return self._means[against.name]

    def _arrays(
        self, what: str, against: Reference, compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        from sci import datasets
        from sci.files import FileDamaged, digest, read_hdf5, write_hdf5

        if not against.cache:
            return compute()
        file = datasets.cache_folder() / f"{what}-{digest(self._identity())[:32]}.h5"
        try:
            return read_hdf5(file)[0]
        except (FileNotFoundError, FileDamaged):
            arrays = compute()
        _keep(lambda: write_hdf5(file, arrays), file)
        return arrays

    def _identity(self) -> list[object]:
        packages = [f"{name} {_version(name)}" for name in ("rdkit", "fcd", "eden-kernel")]
        return [METRICS_VERSION, self.reference.name, len(self.reference.test), *packages]

    def _sample(self, smiles: Sequence[str], count: int | None) -> Sequence[str]:
        if count is None or count >= len(smiles):
            return smiles
        chosen = np.random.default_rng(self.seed).choice(len(smiles), count, replace=False)
        return [smiles[k] for k in chosen]


def _reference(reference: object, train: object, cache: bool) -> Reference:
    from sci.graphs import load

    if isinstance(reference, str):
        reference = load.molecules(reference)
    if isinstance(reference, load.MoleculeData):
        return Reference(
            reference.name,
            reference.canonical("test"),
            reference.canonical("train"),
            reference.train,
            cache and reference.named,
        )
    test = _smiles(reference, "reference")
    known = None if train is None else _smiles(train, "train")
    return Reference("your reference", test, known, train if isinstance(train, Molecules) else None)


def _known(reference: Reference) -> set[str] | None:
    if reference.train is None:
        return None
    from rdkit.Chem import MolFromSmiles

    known = set(reference.train)
    # Generated molecules are looked up by their largest piece, so that a salt is known by its own as well.
    known.update(
        building.largest_piece(MolFromSmiles(text)) for text in reference.train if "." in text
    )
    if reference.molecules is not None and len(reference.molecules) == len(reference.train):
        # The arrays hold no charges, so that a charged training molecule comes back as another one: both are known.
        charged = [row for row, text in enumerate(reference.train) if "[" in text]
        known.update(
            text for text in reference.molecules[charged].verdict.largest if text is not None
        )
    return known


def _smiles(given: object, what: str) -> list[str]:
    if isinstance(given, Molecules):
        return [text for text in given.smiles if text is not None]
    smiles = list(given)  # type: ignore[call-overload]
    if not smiles or not all(isinstance(text, str) for text in smiles):
        raise TypeError(
            f"{what} must be a data set, Molecules or a list of SMILES, not {type(given).__name__}."
        )
    return canonical_smiles(smiles)


def _available(
    fcd: int | None, nspdk: int | None, notes: dict[str, str]
) -> tuple[int | None, int | None]:
    if fcd != 0 and _version("fcd") is None:
        notes["FCD"] = "not computed: pip install 'sciflows[evaluation]'"
        fcd = 0
    if nspdk != 0 and _version("eden-kernel") is None:
        notes["NSPDK"] = "not computed: pip install 'sciflows[evaluation]'"
        nspdk = 0
    return fcd, nspdk


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _moment_arrays(smiles: Sequence[str], progress: bool) -> dict[str, np.ndarray]:
    moments = chemnet.chemnet_moments(smiles, progress=progress)
    return {
        "mean": moments.mean,
        "covariance": moments.covariance,
        "count": np.array(moments.count),
    }


def _keep(write: Callable[[], None], file: object) -> None:
    try:
        write()
    except OSError as error:
        warnings.warn(
            f"The cache file {file} was not written ({error}); going on without it.", stacklevel=4
        )


def _has_ring(smiles: str) -> bool:
    return any(character.isdigit() for character in _BRACKETS.sub("", smiles))
