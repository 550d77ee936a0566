"""What PARD's partial order costs: microseconds a graph, beside the same rule in plain Python.

    OMP_NUM_THREADS=1 python benchmarks/partial_order.py

CPU time of this process on one core, the least of several repeats; parsing and encoding are not counted. The plain
reference is that of tests/graphs/test_partial_order.py, with lists of neighbours; it runs on some of the graphs. The
last columns show where the time goes: the order when every graph is peeled by itself, though another has the same
matrix; and reading the stored order of the data set (hashing the matrices included). SCI_DATA names the folder with the
data sets that do not ship.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from sci.graphs import load
from sci.graphs import partial_order as ours

ROOT = Path(__file__).parents[1]
GRAPHS = ("community-small", "ego-small", "planar", "tree", "sbm", "grid")
PLAIN_NODES = 10_000
Sets = Iterator[tuple[str, np.ndarray, np.ndarray]]


def main() -> None:
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=20_000, help="of the larger molecules")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hops", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/partial_order.md"))
    options = parser.parse_args()
    plain = reference()
    rows = [
        row(name, adjacency, mask, hops, plain, options.repeats)
        for name, adjacency, mask in sets(options.molecules)
        for hops in options.hops
    ]
    table = report(rows)
    print(table)
    Path(options.out).write_text(table, encoding="utf-8")


def sets(molecules: int) -> Sets:
    """Training sets: name, (G, N, N) adjacency, (G, N) mask."""
    qm9 = load.molecules("qm9", progress=True)
    yield "QM9", qm9.train.bonds, qm9.train.atoms >= 0
    yield "QM9 with hydrogens", *with_hydrogens(sample(qm9, molecules))
    zinc = load.molecules("zinc250k")
    encoded = load.molecules(sample(zinc, molecules), test_fraction=0, cache=False).train
    yield "ZINC250k", encoded.bonds, encoded.atoms >= 0
    for name in GRAPHS:
        graphs = load.graphs(name).train
        yield name, graphs.adjacency, graphs.mask


def sample(data: load.MoleculeData, count: int) -> list[str]:
    """SMILES of some training molecules, drawn at random."""
    rows = np.random.default_rng(0).permutation(data.rows["train"])[:count]
    return [data.smiles[row] for row in rows]


def with_hydrogens(smiles: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency and mask of molecules whose hydrogens are nodes."""
    from rdkit import Chem

    matrices = [Chem.GetAdjacencyMatrix(Chem.AddHs(Chem.MolFromSmiles(text))) for text in smiles]
    sizes = np.array([len(matrix) for matrix in matrices])
    adjacency = np.zeros((len(matrices), sizes.max(), sizes.max()), dtype=np.uint8)
    for out, matrix in zip(adjacency, matrices, strict=True):
        out[: len(matrix), : len(matrix)] = matrix
    return adjacency, np.arange(sizes.max()) < sizes[:, None]


def row(
    name: str, adjacency: np.ndarray, mask: np.ndarray, hops: int, plain: ModuleType, repeats: int
) -> list[str]:
    """One line of the table."""
    order = ours.partial_order(adjacency, mask, hops)
    some = max(1, round(PLAIN_NODES / mask.sum(1).mean()))
    lists = [plain.lists(a != 0, m) for a, m in zip(adjacency[:some], mask[:some], strict=True)]
    for k, neighbours in enumerate(lists):
        blocks, sizes, _ = plain.plain_order(neighbours, hops)
        assert order.blocks[k, mask[k]].tolist() == blocks and order.counts[k] == len(sizes)
    slow = least(lambda: [plain.plain_order(one, hops) for one in lists], 3) / len(lists)
    fast = least(lambda: ours.partial_order(adjacency, mask, hops), repeats) / len(mask)
    matrices = next(ours._chunks(adjacency, mask))[1]
    every = np.arange(len(matrices))
    alone = least(lambda: ours.cut(matrices, every, hops, "least", 0), repeats) / len(matrices)
    distinct = len(ours._distinct(ours._packed(matrices))[0]) / len(matrices)
    with tempfile.TemporaryDirectory() as folder:
        ours.partial_order(adjacency, mask, hops, cache=folder)
        cached = least(lambda: ours.partial_order(adjacency, mask, hops, cache=folder), repeats)
    return [
        name,
        f"{len(mask):,}",
        f"{mask.sum(1).mean():.1f}",
        str(hops),
        f"{order.counts.mean():.2f}",
        f"{slow * 1e6:.1f}",
        f"{fast * 1e6:.3g}",
        f"{slow / fast:.0f}",
        f"{distinct:.2f}",
        f"{alone * 1e6:.3g}",
        f"{cached / len(mask) * 1e6:.3g}",
    ]


def least(run: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def reference() -> ModuleType:
    """The file of the test, which holds the plain reference."""
    place = ROOT / "tests" / "graphs" / "test_partial_order.py"
    spec = importlib.util.spec_from_file_location("plain_partial_order", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(rows: list[list[str]]) -> str:
    """The table."""
    heads = [
        "training graphs",
        "number",
        "nodes",
        "K",
        "blocks",
        "plain Python, µs",
        "sciflows, µs",
        "ratio",
        "distinct matrices",
        "each graph by itself, µs",
        "stored, µs",
    ]
    lines = [
        "# PARD's partial order",
        "",
        "CPU microseconds a graph on one core, least of several repeats; made by "
        "`python benchmarks/partial_order.py`. Nodes and blocks are means. Plain Python is the rule with lists of "
        "neighbours, on some of the graphs, where blocks are compared too. Each graph by itself: the same code "
        "when graphs of one matrix are not ordered together, without looking for them. Stored: hashing the "
        "matrices and reading the order from disk.",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([*lines, "", f"Versions: numpy {importlib.metadata.version('numpy')}."]) + "\n"


if __name__ == "__main__":
    main()
