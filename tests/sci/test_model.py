"""Saving, loading, sampling: the contract of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import Alternating, Config, Points, Toy

import sci
from sci import files
from sci.fields import parse
from sci.model import Model, choose_device


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes entries of config.json as a newer or foreign writer would: with a right checksum."""
    entries = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", {**entries, **changes})


def test_save_and_load_give_the_same_model(tmp_path: Path) -> None:
    model = Toy(Config(width=8, layers=3))
    model.save(tmp_path / "m", card="# Card", training={"seed": 4, "rates": (1, 2)})
    again = sci.load(tmp_path / "m")
    assert isinstance(again, Toy) and again.config == model.config and not again.training
    assert again.training_record == {"seed": 4, "rates": [1, 2]}
    assert again.digest() == model.digest()
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "card.md",
        "config.json",
        "model.safetensors",
    ]
    entries = json.loads((tmp_path / "m" / "config.json").read_text())
    assert entries["model"] == "toy" and entries["format_version"] == 1


def test_saving_again_replaces_weights_and_keeps_the_card(folder: Path) -> None:
    model = Model.load(folder)
    with torch.no_grad():
        model.network[0].weight.add_(1)
    model.save(folder)
    assert Model.load(folder).digest() == model.digest()
    assert (folder / "card.md").read_text().startswith("# Toy")


def test_float16_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    model = Toy(Config(width=64, layers=3))
    small = model.save(tmp_path / "s", dtype=torch.float16)
    large = model.save(tmp_path / "l")
    sizes = [(f / "model.safetensors").stat().st_size for f in (small, large)]
    assert sizes[0] < 0.55 * sizes[1]
    again = Toy.load(small)
    for key, value in again.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-3, atol=1e-6)


def test_nan_and_overflow_are_not_saved(tmp_path: Path) -> None:
    model = Toy()
    with torch.no_grad():
        model.network[0].bias[0] = 1e6
    with pytest.raises(ValueError, match=r"float16.*network\.0\.bias"):
        model.save(tmp_path / "m", dtype=torch.float16)
    with torch.no_grad():
        model.network[0].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite.*network\.0\.bias"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_flipped_byte_and_truncation_are_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-10], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], b""):
        path.write_bytes(content)
        with pytest.raises(files.FileDamaged, match=r"model\.safetensors.*sha256"):
            Model.load(folder)
    path.write_bytes(whole)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"width": 16', '"width": 17'))
    with pytest.raises(files.FileDamaged, match=r"config\.json does not match its checksum"):
        Model.load(folder)


def test_nan_weights_are_refused_even_with_a_right_checksum(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["network.0.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    rewrite(folder, weights_sha256=files.sha256(folder / "model.safetensors"))
    with pytest.raises(files.FileDamaged, match=r"not finite.*network\.0\.weight"):
        Model.load(folder)


def test_foreign_configurations_are_refused(folder: Path) -> None:
    original = files.read_json(folder / "config.json")
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"format_version": 2}, ValueError, "format_version 2"),
        ({"surprise": 1}, ValueError, "surprise"),
        ({"model": "toyy"}, KeyError, "did you mean 'toy'"),
        ({"config": {"wdith": 3}}, ValueError, "did you mean 'width'"),
        ({"config": {"width": "wide"}}, ValueError, "expected int"),
        ({"config": {"width": 5}}, files.FileDamaged, "does not fit the configuration"),
    ]
    for changes, error, message in cases:
        files.write_json(folder / "config.json", {**original, **changes})
        with pytest.raises(error, match=message):
            Model.load(folder)
    (folder / "config.json").write_text('{"architectures": ["Foreign"]}')
    with pytest.raises(files.FileDamaged, match="no sha256 entry"):
        Model.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Model.load(folder)


def test_load_by_the_wrong_class_or_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a Alternating"):
        Alternating.load(folder)
    with pytest.raises(KeyError, match="did you mean 'toy-ring'"):
        sci.load("toy-rng")
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        sci.load(tmp_path / "nothing" / "there")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        Model.load(folder)


def test_sample_does_not_depend_on_batches(folder: Path) -> None:
    model = sci.load(folder)
    whole = model.sample(50, seed=3, progress=False, batch_size=50)
    assert isinstance(whole, Points) and len(whole) == 50
    pieces = model.sample(50, seed=3, progress=False, batch_size=7)
    np.testing.assert_allclose(pieces.values, whole.values, atol=1e-5)
    first = model.sample(10, seed=3, progress=False, batch_size=10)
    np.testing.assert_allclose(first.values, whole.values[:10], atol=1e-5)
    other = model.sample(50, seed=4, progress=False)
    assert np.abs(other.values - whole.values).max() > 0.1
    assert whole.attrs["seed"] == 3 and whole.attrs["request"] == {"steps": 8, "shift": 0.0}
    assert whole.attrs["nfe"] == 8 and whole.attrs["version"] == sci.__version__


def test_sample_leaves_mode_and_gradients_alone(folder: Path) -> None:
    model = sci.load(folder).train()
    values = model.sample(4, progress=False, shift=2.0).values
    assert model.training and torch.is_grad_enabled()
    # Dropout must have been off: the same call gives the same points.
    assert np.array_equal(values, model.sample(4, progress=False, shift=2.0).values)


def test_bad_requests(folder: Path) -> None:
    model = sci.load(folder)
    with pytest.raises(TypeError, match="did you mean 'steps'.*shift, steps"):
        model.sample(2, stepss=4)
    with pytest.raises(ValueError, match="expected int"):
        model.sample(2, steps="four")
    with pytest.raises(ValueError, match="expected at least 1"):
        model.sample(2, steps=0)
    for n in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match="positive integer"):
            model.sample(n)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="no device"):
        choose_device("gpuu")
    for other in ("xpu", "meta"):  # torch knows these, but no model runs there
        with pytest.raises(ValueError, match="no device here"):
            choose_device(other)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            choose_device("cuda")


def test_a_model_takes_its_own_config() -> None:
    with pytest.raises(TypeError, match="takes a Config"):
        Toy({"width": 3})  # type: ignore[arg-type]


def test_each_process_of_torchrun_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert {str(choose_device(name)) for name in ("auto", "cuda")} == {"cuda:3"}


def test_dates_in_settings_stay_text() -> None:
    """TOML reads them as dates, which no field holds and no JSON file can keep."""
    for text in ("2024-05-01", "2024-05-01T10:30:00Z", "10:30:00"):
        assert parse(f"a.b={text}") == (["a", "b"], text)
    assert parse("a=[2024-05-01, 3]") == (["a"], ["2024-05-01", 3])
    assert parse("a={from = 2024-05-01}") == (["a"], {"from": "2024-05-01"})
    assert parse("a=2024") == (["a"], 2024)
