"""Two distances between sets of molecules: Frechet ChemNet distance and NSPDK maximum mean discrepancy.

**FCD.** ChemNet, a network trained on bioassays, turns a SMILES string into 512 numbers (its last hidden layer).
With mean m and covariance C of these numbers over each set,

    FCD = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)).

It is biased upwards, by about 0.2 for 2,000 molecules of QM9: compare only values of the same n, and with the
floor. Network and weights are those of the package ``fcd``.

**NSPDK.** The neighbourhood subgraph pairwise distance kernel is the inner product of feature vectors that
count pairs of rooted neighbourhoods of radius r at distance d, both from 0 to 4, each (r, d) block and the whole
normalised to length 1 (the vectoriser of EDeN with complexity 4, as in GDSS; labels are element and bond order,
with aromatic bonds as 1). Since the kernel is linear in these features, the squared discrepancy (biased, no root)
is the distance between two mean vectors, in time linear in the number of molecules:

    MMD^2 = |mean phi(x) - mean phi(y)|^2.

References:
    | Frechet ChemNet Distance (Preuer, Renz, Unterthiner, Hochreiter & Klambauer, 2018)
    | https://arxiv.org/abs/1803.09518
    | Fast Neighborhood Subgraph Pairwise Distance Kernel (Costa & De Grave, 2010)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sci import metrics

if TYPE_CHECKING:
    import networkx

_NSPDK_COMPLEXITY = 4
# Labels are integers, because Python hashes strings differently in every process.
_BOND_LABEL = 1000
_CHUNK = 64


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of a set of feature vectors, and their number."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def chemnet_moments(smiles: Sequence[str], batch_size: int = 64, progress: bool = False) -> Moments:
    """Mean and covariance of ChemNet's activations over SMILES strings (2 ms each on one core).

    Arguments:
        smiles: At least two SMILES; repeated ones are computed once and counted as often as they occur.
        batch_size: Strings per call of the network.
        progress: Show a progress bar.

    Raises:
        ImportError: The package ``fcd`` is missing.
        ValueError: Fewer than two SMILES.
    """
    if len(smiles) < 2:
        raise ValueError(f"A covariance needs at least two molecules; {len(smiles)} given.")
    try:
        import fcd
    except ImportError as error:
        raise ImportError(
            "FCD needs the package fcd: pip install 'sciflows[evaluation]'."
        ) from error
    from tqdm.auto import tqdm

    unique, inverse = np.unique(np.asarray(smiles, dtype=object).astype(str), return_inverse=True)
    network = fcd.load_ref_model()
    parts = []
    with warnings.catch_warnings():
        # fcd stacks with a function that NumPy has renamed.
        warnings.simplefilter("ignore", DeprecationWarning)
        starts = range(0, len(unique), batch_size)
        for start in tqdm(
            starts, desc="ChemNet", disable=not progress, unit="batch", leave=False, delay=1
        ):
            batch = unique[start : start + batch_size].tolist()
            parts.append(fcd.get_predictions(network, batch, batch_size=len(batch), n_jobs=0))
    activations = np.concatenate(parts).astype(np.float64)[inverse]
    return Moments(activations.mean(0), np.cov(activations.T), len(smiles))


def frechet(first: Moments, second: Moments) -> float:
    """FCD of two sets from their moments; nothing is added to singular covariances."""
    return metrics.frechet_gaussians(first.mean, first.covariance, second.mean, second.covariance)


def nspdk_mean(smiles: Sequence[str], progress: bool = False) -> np.ndarray:
    """Mean NSPDK feature vector (65,537,) of molecules given as SMILES (up to 7 ms each for QM9).

    Raises:
        ImportError: The package ``eden-kernel`` is missing.
        ValueError: No SMILES, or one that RDKit cannot parse.
    """
    if not len(smiles):
        raise ValueError("A mean needs at least one molecule; none given.")
    try:
        from eden.graph import Vectorizer
    except ImportError as error:
        raise ImportError(
            "NSPDK needs the package eden-kernel: pip install 'sciflows[evaluation]'."
        ) from error
    from tqdm.auto import tqdm

    vectoriser = Vectorizer(complexity=_NSPDK_COMPLEXITY, discrete=True)
    total = np.zeros(vectoriser.feature_size)
    bar = tqdm(
        total=len(smiles), desc="NSPDK", disable=not progress, unit="mol", leave=False, delay=1
    )
    for start in range(0, len(smiles), _CHUNK):
        graphs = [_labelled(text) for text in smiles[start : start + _CHUNK]]
        total += np.asarray(vectoriser.transform(graphs).sum(0))[0]
        bar.update(len(graphs))
    bar.close()
    return total / len(smiles)


def nspdk_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy of the linear NSPDK kernel from two mean feature vectors."""
    return float(np.square(first - second).sum())


def _labelled(smiles: str) -> networkx.Graph:
    import networkx
    from rdkit import Chem

    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise ValueError(f"RDKit cannot parse {smiles!r}; give SMILES of valid molecules.")
    graph = networkx.Graph()
    for atom in mol.GetAtoms():
        graph.add_node(atom.GetIdx(), label=atom.GetAtomicNum())
    for bond in mol.GetBonds():
        order = int(bond.GetBondTypeAsDouble())
        graph.add_edge(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), label=_BOND_LABEL + order)
    return graph
