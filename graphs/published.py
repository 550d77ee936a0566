"""Reader of the score checkpoints published with GDSS, without running anything that they contain.

The files are pickles inside a zip archive. A pickle names callables and can call them; this reader knows four kinds
of names, each replaced by a harmless stand-in made for the one file: ordered dictionaries, attribute dictionaries,
tensor storages and the function that puts a tensor on a storage. Any other name is refused before anything is called,
and so is whatever is not laid out as the published files are: compressed members, storages whose length does not fit,
tensors that reach beyond their storage, numbers that are not finite.

References:
    | Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations
    | (Jaehyeong Jo, Seul Lee, Sung Ju Hwang, 2022)
    | Checkpoints: https://github.com/harryjo97/GDSS, commit 24cc490, folder checkpoints
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.files import FileDamaged, sha256

__all__ = ["KNOWN", "Checkpoint", "KnownFile", "contents", "read", "renamed"]


@dataclass(frozen=True)
class KnownFile:
    """A published checkpoint.

    Arguments:
        file: Its name.
        data: The data set that it was trained on, as this library calls it.
        sampler: Settings of the published sampler, where the file itself holds none.
        sizes: Number of training graphs by number of nodes that have an edge: the law that sizes are drawn from.
    """

    file: str
    data: str
    sizes: dict[int, int]
    sampler: dict[str, Any]


def _law(text: str) -> dict[int, int]:
    """ "nodes:graphs" pairs as a dictionary."""
    return {int(nodes): int(count) for nodes, count in (word.split(":") for word in text.split())}


_QM9 = _law("2:4 3:8 4:26 5:115 6:558 7:2903 8:16541 9:100645")
_ZINC = _law(
    "6:3 7:5 8:13 9:67 10:178 11:654 12:1053 13:1606 14:2532 15:3844 16:5695 17:7863 "
    "18:10489 19:13065 20:15906 21:18296 22:16825 23:18950 24:20907 25:20537 26:17331 "
    "27:14237 28:9057 29:6991 30:5478 31:4320 32:3375 33:2327 34:1553 35:925 36:358 37:126 "
    "38:2"
)
_COMMUNITY = _law("12:21 14:20 16:15 18:13 20:11")
_EGO = _law("4:56 5:32 6:20 7:16 8:9 9:6 10:5 11:4 12:3 13:3 14:1 16:5")
_ENZYMES = _law(
    "10:2 11:5 12:12 13:6 14:11 15:8 16:6 17:4 18:13 19:10 20:13 21:14 22:13 23:8 24:18 "
    "25:15 26:19 27:19 28:16 29:10 30:10 31:5 32:12 33:10 34:12 35:6 36:8 37:9 38:13 39:13 "
    "40:16 41:13 42:19 43:5 44:18 45:4 46:9 47:4 48:13 49:3 50:8 51:5 52:7 54:2 55:3 56:2 "
    "57:3 58:1 60:4 62:2 64:1 66:3 74:1 96:1 121:1 123:1 125:1"
)
_GRID = _law(
    "110:1 121:1 130:1 132:1 140:2 143:3 144:1 150:4 156:2 160:1 165:2 168:2 169:1 170:1 "
    "176:2 180:5 190:3 192:2 195:1 196:1 204:3 208:1 209:1 210:1 216:5 221:3 228:2 234:1 "
    "238:2 240:1 247:1 252:3 255:2 266:1 270:2 272:2 285:1 288:3 304:1 306:3 324:2 342:2"
)
_MOLECULE_SAMPLER = {"predictor": "Reverse", "corrector": "Langevin", "snr": 0.2}

# By SHA-256.
KNOWN: dict[str, KnownFile] = {
    "2502b7bc30b9bd9ffbcd3777721e04e449582de3564b8e3d70fbce89b48b56bc": KnownFile(
        "gdss_qm9.pth", "qm9", _QM9, _MOLECULE_SAMPLER | {"scale_eps": 0.7}
    ),
    "a7674d23823052110cf5d97b09744ba78bd54dc3562c6a49ede7ba015b6014e4": KnownFile(
        "gdss_zinc250k.pth", "zinc250k", _ZINC, _MOLECULE_SAMPLER | {"scale_eps": 0.9}
    ),
    "eece95ad54a98737e0a4da4b9fc968d974748f3a25103544bd606b344cabf1a7": KnownFile(
        "gdss_zinc250k_v2.pth", "zinc250k", _ZINC, _MOLECULE_SAMPLER | {"scale_eps": 0.8}
    ),
    "cf764a0bbdc71802d693898ce6ee3b0ef874927a44a4d1268e25ff9d91e55752": KnownFile(
        "gdss_community_small.pth", "community-small", _COMMUNITY, {}
    ),
    "62e1dc1beb457f31f7c0a03be6c2ded5210a09fae98e9a5e78ef5c7dfbd0c30d": KnownFile(
        "gdss_ego_small.pth", "ego-small", _EGO, {}
    ),
    "3ef38aec421121466f003ea7d70bdfd5c77a2dbddac49b0faaf8d0945749b2ff": KnownFile(
        "gdss_enzymes.pth", "enzymes", _ENZYMES, {}
    ),
    "4a43aac11b8b7cbdc972f9607883fb3f79e439614ae99f00a2facef03e3ab9aa": KnownFile(
        "gdss_grid.pth", "grid", _GRID, {}
    ),
}

_ATOMS = {
    "QM9": ("C", "N", "O", "F"),
    "ZINC250k": ("C", "N", "O", "F", "P", "S", "Cl", "Br", "I"),
}
_STORAGES = {
    "FloatStorage": (torch.float32, "<f4"),
    "DoubleStorage": (torch.float64, "<f8"),
    "HalfStorage": (torch.float16, "<f2"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, as this library names things.

    Arguments:
        config: Fields of :class:`sci.graphs.gdss.GDSSConfig`.
        weights: State of the node and edge networks, with the keys of :class:`sci.graphs.gdss.GDSS`.
        known: Which published file it is; None for another one.
        averaged: Whether the weights are the running averages.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    known: KnownFile | None
    averaged: bool


def read(path: str | os.PathLike[str], averaged: bool | None = None) -> Checkpoint:
    """Read a published checkpoint, or one of your own made by the published code.

    Arguments:
        path: The .pth file.
        averaged: Take the running averages of the weights; None does what the file's own settings say
            (true for ENZYMES and grid). The molecule checkpoints hold no averages.

    Returns:
        Configuration and weights. A file that is none of the seven published ones is said in a warning.

    Raises:
        FileNotFoundError: There is no such file.
        sci.files.FileDamaged: The file is truncated, asks for something that this reader does not know (which is
            named), or is no GDSS checkpoint.
        ValueError: Averages were asked for and the file holds none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    found = sha256(path)
    known = KNOWN.get(found)
    content = contents(path)
    if known is None:
        named = [
            f"{key} is the published {f.file}" for key, f in KNOWN.items() if f.file == path.name
        ]
        warnings.warn(
            f"{path} (SHA-256 {found}) is none of the seven published checkpoints"
            + (f": {named[0]}" if named else ""),
            stacklevel=2,
        )
    try:
        config, settings = _config(content, known)
        if averaged is None:
            averaged = bool(settings.get("sample", {}).get("use_ema", False))
        weights: dict[str, Tensor] = {}
        for ours, theirs, average in (
            ("node_network", "x_state_dict", "ema_x"),
            ("edge_network", "adj_state_dict", "ema_adj"),
        ):
            state = content[theirs]
            if averaged:
                if average not in content:
                    raise ValueError(f"{path} holds no averaged weights: give averaged=False")
                state = _averages(state, content[average]["shadow_params"])
            weights |= {f"{ours}.{key}": value for key, value in renamed(state).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise FileDamaged(
            f"{path} is no GDSS checkpoint: an entry is missing or of another kind ({error})"
        ) from error
    for key, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise FileDamaged(f"{path} holds weights that are not finite, in {key}")
    return Checkpoint(config, weights, known, averaged)


def _config(
    content: Mapping[str, Any], known: KnownFile | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = content["model_config"]
    nodes, edges = content["params_x"], content["params_adj"]
    attention = nodes["model_type"] == "ScoreNetworkX_GMH"
    if nodes["model_type"] not in ("ScoreNetworkX", "ScoreNetworkX_GMH"):
        raise TypeError(f"node network {nodes['model_type']!r}")
    if edges["model_type"] != "ScoreNetworkA" or edges.get("conv", "GCN") != "GCN":
        raise TypeError(f"edge network {edges['model_type']!r}, conv {edges.get('conv')!r}")
    shared = ("nhid", "adim", "num_linears", "c_init", "c_hid", "c_final", "num_heads")
    for name in shared if attention else ("nhid", "max_feat_num"):
        if nodes[name] != edges[name]:
            raise TypeError(f"{name} is {nodes[name]} for nodes, {edges[name]} for edges")
    sampler = dict(settings.get("sampler", {}) or (known.sampler if known else {}))
    config: dict[str, Any] = {
        "features": edges["max_feat_num"],
        "max_nodes": edges["max_node_num"],
        "node_process": _process(settings["sde"]["x"]),
        "edge_process": _process(settings["sde"]["adj"]),
        "node_network": "attention" if attention else "convolution",
        "depth": nodes["depth"],
        "layers": edges["num_layers"],
        "hidden": edges["nhid"],
        "attention": edges["adim"],
        "linears": edges["num_linears"],
        "channels": [edges["c_init"], edges["c_hid"], edges["c_final"]],
        "heads": edges["num_heads"],
        "atoms": list(_ATOMS.get(settings["data"]["data"], ())),
        "steps": settings["sde"]["adj"]["num_scales"],
    }
    if sampler:
        predictor = sampler["predictor"]
        config |= {
            "sampler": "s4" if predictor == "S4" else "pc",
            "predictor": "euler" if predictor == "Euler" else "reverse",
            "corrector": sampler["corrector"] == "Langevin",
            "snr": sampler["snr"],
            "scale": sampler["scale_eps"],
        }
    if known is not None:
        config["sizes"] = [known.sizes.get(count, 0) for count in range(max(known.sizes) + 1)]
    return config, settings


def _process(settings: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"VP": "vp", "VE": "ve"}.get(settings["type"])
    if kind is None:
        raise TypeError(f"SDE {settings['type']!r}")
    return {"kind": kind, "low": settings["beta_min"], "high": settings["beta_max"]}


def _averages(state: Mapping[str, Tensor], shadow: list[Tensor]) -> dict[str, Tensor]:
    if len(state) != len(shadow) or any(
        value.shape != average.shape for value, average in zip(state.values(), shadow, strict=True)
    ):
        raise TypeError("the averaged weights do not fit the weights")
    return dict(zip(state, shadow, strict=True))


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published parameter names to those of :mod:`sci.graphs.gdss_networks`; the channels of a layer are stacked."""
    out: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} is no tensor")
        key = key.removeprefix("module.")
        if found := re.fullmatch(r"layers\.(\d+)\.attn\.(\d+)\.gnn_([qkv])\.(weight|bias)", key):
            layer, channel, letter, kind = found.groups()
            role = {"q": "queries", "k": "keys", "v": "values"}[letter]
            stacks.setdefault(f"layers.{layer}.{role}.{kind}", {})[int(channel)] = value
        elif re.fullmatch(r"layers\.\d+\.(weight|bias)", key):
            out[key] = value.unsqueeze(0)
        else:
            key = re.sub(r"^(layers\.\d+)\.mlp\.", r"\1.pairs.", key)
            out[re.sub(r"^(layers\.\d+)\.multi_channel\.", r"\1.nodes.", key)] = value
    for key, channels in stacks.items():
        out[key] = torch.stack([channels[number] for number in range(len(channels))])
    return out


class _Settings(dict):
    """Stands in for an attribute dictionary; its attributes, copies of its items, are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class _Name:
    """A name that the pickle may mention as an argument but not call."""

    name: str


def contents(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The dictionary in a checkpoint as it stands, tensors and settings, read without running anything.

    Raises:
        sci.files.FileDamaged: As :func:`read`.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            for name, member in members.items():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise FileDamaged(f"{path}: member {name} is compressed; checkpoints are not")
            pickles = [name for name in members if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise FileDamaged(f"{path} is a zip archive, but no checkpoint: it has no data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
                raise FileDamaged(f"{path} was written on a big-endian machine")
            storages: dict[str, tuple[Tensor, str]] = {}
            reader = _reader(path, archive, root, storages)
            content = reader(io.BytesIO(archive.read(pickles[0]))).load()
    except FileDamaged:
        raise
    except zipfile.BadZipFile as error:
        raise FileDamaged(
            f"{path} is truncated, damaged, or no checkpoint of the published kind ({error})"
        ) from error
    except Exception as error:  # whatever a malformed pickle makes the unpickler raise
        raise FileDamaged(f"{path} cannot be read as a checkpoint ({error})") from error
    if not isinstance(content, dict):
        raise FileDamaged(f"{path} holds a {type(content).__name__}; expected a dictionary")
    return content


def _reader(
    path: Path, archive: zipfile.ZipFile, root: str, storages: dict[str, tuple[Tensor, str]]
) -> type[pickle.Unpickler]:
    """An unpickler for one file. Its stand-ins are its own, so nothing a pickle does to them outlives it."""

    class Ordered(OrderedDict):
        pass

    class Settings(_Settings):
        pass

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, Tensor):
            raise FileDamaged(f"{path}: a tensor without a storage")
        whole = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in whole):
            raise FileDamaged(f"{path}: a tensor of size {size} and stride {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(storage):
            raise FileDamaged(f"{path}: a tensor reaches beyond its storage")
        return (
            storage.as_strided(size, stride, offset).clone()
            if math.prod(size)
            else torch.empty(size)
        )

    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): Ordered,
        ("easydict", "EasyDict"): Settings,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
    } | {("torch", name): _Name(name) for name in _STORAGES}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise FileDamaged(
                    f"{path} asks for {module}.{name}, which no published checkpoint does. It was not "
                    "called; do not open the file by other means unless you trust where it is from"
                )
            return allowed[module, name]

        def persistent_load(self, identifier: Any) -> Tensor:
            kind, storage, key, _, count = identifier
            if kind != "storage" or not isinstance(storage, _Name):
                raise FileDamaged(f"{path}: unknown reference {identifier!r}")
            if key not in storages:
                dtype, code = _STORAGES[storage.name]
                values = np.frombuffer(archive.read(f"{root}data/{key}"), dtype=code)
                if len(values) != count:
                    raise FileDamaged(f"{path}: storage {key} has {len(values)} of {count} entries")
                storages[key] = torch.from_numpy(values.astype(code[1:])).to(dtype), storage.name
            values_, name = storages[key]
            if name != storage.name:
                raise FileDamaged(f"{path}: storage {key} is of two types")
            return values_

    return Reader
