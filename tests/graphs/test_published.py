"""The reader of published checkpoints: all seven files, and nothing else."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from sci.files import FileDamaged
from sci.graphs import load, published
from sci.graphs.gdss import GDSS
from sci.graphs.molecules import Molecules

ROOT = Path(__file__).resolve().parents[2]
# Parameters of the two networks, in the file of each name.
COUNTS = {
    "gdss_qm9.pth": (8_564, 23_825),
    "gdss_zinc250k.pth": (11_429, 62_873),
    "gdss_zinc250k_v2.pth": (22_721, 62_873),
    "gdss_community_small.pth": (72_434, 134_369),
    "gdss_ego_small.pth": (44_093, 135_713),
    "gdss_enzymes.pth": (182_066, 204_113),
    "gdss_grid.pth": (170_081, 203_153),
}


@pytest.fixture(scope="module")
def plain():
    place = ROOT / "benchmarks" / "gdss_networks.py"
    spec = importlib.util.spec_from_file_location("plain_for_published", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoints(shared):
    found = {path.name: path for path in (shared / "data/graphs/gdss_checkpoints").rglob("*.pth")}
    if not COUNTS.keys() <= found.keys():
        pytest.skip("the published checkpoints are not in the reference folder")
    return found


class EasyDict(dict):
    """As in the published files: items are attributes too."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__.update(items)


@pytest.fixture
def content(plain, monkeypatch):
    """A small checkpoint in the published form, with `module.` before the keys of one network."""
    module = types.ModuleType("easydict")
    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)
    params = dict(
        max_feat_num=4, nhid=8, adim=8, num_linears=2, c_init=2, c_hid=3, c_final=2, num_heads=2
    )
    nodes = plain.PlainX(depth=2, **params)
    edges = plain.PlainA(num_layers=2, **params)
    sde = EasyDict(type="VE", beta_min=0.1, beta_max=1.0, num_scales=50)
    return {
        "model_config": EasyDict(
            data=EasyDict(data="QM9"),
            sde=EasyDict(x=sde, adj=sde),
            sampler=EasyDict(predictor="S4", corrector="None", snr=0.15, scale_eps=0.6),
            sample=EasyDict(use_ema=False),
        ),
        "params_x": {"model_type": "ScoreNetworkX", "max_feat_num": 4, "depth": 2, "nhid": 8},
        "params_adj": {
            "model_type": "ScoreNetworkA", "max_node_num": 9, "num_layers": 2, "conv": "GCN", **params,
        },
        "x_state_dict": nodes.state_dict(),
        "adj_state_dict": OrderedDict((f"module.{k}", v) for k, v in edges.state_dict().items()),
        "ema_x": {"decay": 0.9, "num_updates": 3, "shadow_params": [p.detach() * 2 for p in nodes.parameters()]},
        "ema_adj": {"decay": 0.9, "num_updates": 3, "shadow_params": [p.detach() for p in edges.parameters()]},
    }  # fmt: skip


def saved(content, tmp_path, name="mine.pth"):
    path = tmp_path / name
    torch.save(content, path)
    return path


def packed(path, data, storages=(), compression=zipfile.ZIP_STORED):
    """A checkpoint archive with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, raw in storages:
            archive.writestr(f"archive/data/{key}", raw)
    return path


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_files(checkpoints, name):
    checkpoint = published.read(checkpoints[name])
    assert checkpoint.known.file == name
    assert checkpoint.averaged == (name in ("gdss_enzymes.pth", "gdss_grid.pth"))
    model = GDSS.from_published(checkpoints[name])
    networks = model.node_network, model.edge_network
    assert tuple(sum(p.numel() for p in n.parameters()) for n in networks) == COUNTS[name]
    assert not model.training and model.config.steps == 1000


def test_averages_are_read_and_missing_ones_refused(checkpoints):
    last, mean = (
        published.read(checkpoints["gdss_ego_small.pth"], averaged=averaged).weights
        for averaged in (False, True)
    )
    assert last.keys() == mean.keys()
    difference = max(float((last[key] - mean[key]).abs().max()) for key in last)
    assert 0 < difference < 0.1
    with pytest.raises(ValueError, match="gdss_qm9.pth holds no averaged weights"):
        published.read(checkpoints["gdss_qm9.pth"], averaged=True)


@pytest.mark.parametrize("name", ["community-small", "ego-small", "enzymes", "grid"])
def test_size_laws_are_those_of_the_training_graphs(shared, name):
    graphs = load.graphs(name, folder=shared / "data" / "graphs").train
    linked = graphs.adjacency.any(2).sum(1)
    known = next(file for file in published.KNOWN.values() if file.data == name)
    assert np.bincount(linked).tolist() == [known.sizes.get(n, 0) for n in range(linked.max() + 1)]


def test_size_laws_of_molecules_leave_lone_atoms_out():
    laws = {file.data: sum(file.sizes.values()) for file in published.KNOWN.values()}
    assert laws["qm9"] == 120_803 - 3 and laws["zinc250k"] == 224_568


def test_a_checkpoint_of_ones_own_is_read_and_said_to_be_another(content, tmp_path, plain):
    path = saved(content, tmp_path, "gdss_qm9.pth")
    with pytest.warns(
        UserWarning, match=r"none of the seven published.*2502b7bc.* is the published"
    ):
        model = GDSS.from_published(path)
    config = model.config
    assert (config.sampler, config.corrector, config.snr, config.scale) == ("s4", False, 0.15, 0.6)
    assert (config.atoms, config.sizes, config.steps) == (("C", "N", "O", "F"), (), 50)
    nodes = plain.PlainX(max_feat_num=4, depth=2, nhid=8)
    nodes.load_state_dict(content["x_state_dict"])
    x, a, mask = torch.randn(2, 5, 4), torch.randn(2, 5, 5), torch.ones(2, 5)
    a = a.tril(-1) + a.tril(-1).mT
    torch.testing.assert_close(model.node_network(x, a, mask), nodes(x, a, mask))
    with pytest.raises(ValueError, match="ask for a size"):
        model.sample(1, progress=False)
    assert len(model.sample(2, size=4, steps=3, progress=False)) == 2
    train = Molecules.from_smiles(["CC", "CCO", "C", "CCC"])
    with pytest.warns(UserWarning):
        assert GDSS.from_published(path, train=train).config.sizes == (1, 0, 1, 2)
    with pytest.warns(UserWarning):
        averaged = GDSS.from_published(path, averaged=True)
    torch.testing.assert_close(
        averaged.node_network.layers[0].weight, 2 * model.node_network.layers[0].weight
    )


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_ever_called(content, tmp_path):
    marker = tmp_path / "ran"
    bad = saved({**content, "extra": Runs(marker)}, tmp_path)
    with pytest.raises(FileDamaged, match=r"mine.pth asks for (io|_io|builtins).open"):
        published.read(bad)
    for name in ("os.system", "builtins.eval", "torch.load", "collections.OrderedDict.update"):
        module, _, attribute = name.rpartition(".")
        program = f"c{module}\n{attribute}\n(S'touch {marker}'\ntR.".encode()
        with pytest.raises(FileDamaged, match=f"asks for {name}"):
            published.read(packed(tmp_path / "small.pth", program))
    assert not marker.exists()


def test_storage_names_and_stand_ins_cannot_be_put_to_other_use(tmp_path):
    called = b"ctorch\nFloatStorage\n(I3\ntR."
    with pytest.raises(FileDamaged, match="cannot be read"):
        published.read(packed(tmp_path / "called.pth", called))
    changed = b"ccollections\nOrderedDict\n}S'update'\nI1\nsb."
    with pytest.raises(FileDamaged):
        published.read(packed(tmp_path / "changed.pth", changed))
    assert OrderedDict(a=1) == {"a": 1} and callable(OrderedDict.update)


def tensor_program(offset=0, size=2, stride=1, count=4, key="0"):
    """A pickle of {'a': tensor} with these numbers."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x00" + key.encode() + b"X\x03\x00\x00\x00cpu"
        + f"I{count}\n".encode() + b"tQ" + f"I{offset}\n(I{size}\nt(I{stride}\nt".encode()
        + b"\x89}tRs."
    )  # fmt: skip


def test_tensors_stay_within_their_storage(tmp_path):
    raw = [("0", np.arange(4, dtype="<f4").tobytes())]
    path = packed(tmp_path / "file.pth", tensor_program(offset=2), raw)
    assert published.contents(path)["a"].tolist() == [2.0, 3.0]
    for numbers in (dict(offset=3), dict(size=5), dict(stride=4), dict(offset=-1), dict(stride=-1)):
        with pytest.raises(FileDamaged, match="beyond its storage|a tensor of size"):
            published.contents(packed(path, tensor_program(**numbers), raw))
    with pytest.raises(FileDamaged, match="storage 0 has 4 of 9 entries"):
        published.contents(packed(path, tensor_program(count=9), raw))
    with pytest.raises(FileDamaged, match=r"file.pth cannot be read.*data/7"):
        published.contents(packed(path, tensor_program(key="7"), raw))


def test_damaged_and_foreign_files_are_named(content, tmp_path):
    path = saved(content, tmp_path)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:100], b"", b"not a zip at all", whole[500:]):
        path.write_bytes(part)
        with pytest.raises(FileDamaged, match="mine.pth"):
            published.read(path)
    raw = content["x_state_dict"]["final.linears.1.weight"].numpy().tobytes()
    place = whole.index(raw) + 10
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(FileDamaged, match=r"mine.pth is truncated, damaged.*CRC"):
        published.read(path)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(FileDamaged, match="mine.pth is no GDSS checkpoint"), pytest.warns():
        published.read(path)
    torch.save([1, 2], path)
    with pytest.raises(FileDamaged, match="holds a list"):
        published.read(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FileDamaged, match="mine.pth"):
        published.read(path)
    packed(path, pickle.dumps({}), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FileDamaged, match="compressed"):
        published.read(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        published.read(tmp_path / "absent.pth")


@pytest.mark.filterwarnings("ignore:.*none of the seven")
def test_settings_that_this_library_does_not_have_are_refused(content, tmp_path):
    def refused(match, **changes):
        with pytest.raises(FileDamaged, match=match):
            GDSS.from_published(saved({**content, **changes}, tmp_path))

    refused("ScoreNetworkZ", params_x=content["params_x"] | {"model_type": "ScoreNetworkZ"})
    refused("MLP", params_adj=content["params_adj"] | {"conv": "MLP"})
    refused("nhid is 9", params_x=content["params_x"] | {"nhid": 9})
    refused("do not fit its settings", params_x=content["params_x"] | {"depth": 3})
    state = content["x_state_dict"]
    refused("not finite", x_state_dict=state | {"layers.0.bias": torch.full((8,), torch.nan)})
    refused("no tensor", x_state_dict=state | {"layers.0.bias": 3})
    refused("averaged weights do not fit", ema_x={"shadow_params": []}, model_config={
        **content["model_config"], "sample": {"use_ema": True},
    })  # fmt: skip
