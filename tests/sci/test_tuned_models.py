"""Fitted samplers beside a model: saved, loaded, refused when damaged; and the command that fits them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import Points, Toy
from tunable import Tunable, ship
from typer.testing import CliRunner, Result

import sci
from sci import files
from sci.cli import app
from sci.tuning import Tuned, tune_model
from sci.tuning.search import Search


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tunable toy that ships as "tunable-ring"."""
    table = ship(tmp_path / "registry")
    monkeypatch.setenv("SCI_REGISTRY", os.pathsep.join([os.environ["SCI_REGISTRY"], str(table)]))
    return tmp_path / "registry" / "shipped"


def fit(model: Any, nfe: int, **options: Any) -> Tuned:
    return tune_model(
        model, nfe, **{"n": 24, "budget": 100, "teacher": 40, "progress": False, **options}
    )


def test_a_model_keeps_what_was_fitted(shipped: Path, tmp_path: Path) -> None:
    model = sci.load(shipped)
    assert model.tuned == {} and model.tuned_sampler(6) is None
    plain, digest = model.sample(5, progress=False, steps=6), model.digest()
    model.tuned = {6: fit(model, 6), 4: fit(model, 4)}
    assert all(tuned.improved for tuned in model.tuned.values())
    fitted = model.sample(5, progress=False, steps=6)
    assert (plain.attrs["sampler"], fitted.attrs["sampler"]) == ("euler", "tuned")
    assert fitted.attrs["nfe"] == 6 and np.abs(plain.values - fitted.values).max() > 1e-3
    assert model.digest() != digest  # a chunked generation must not mix both
    again = sci.load(model.save(tmp_path / "m", dtype=torch.float16))
    assert again.tuned == model.tuned and list(again.tuned) == [4, 6]
    exact = sci.load(model.save(tmp_path / "m"))
    np.testing.assert_array_equal(exact.sample(5, progress=False, steps=6).values, fitted.values)
    again.tuned = {}
    again.save(tmp_path / "m")
    assert not (tmp_path / "m" / "samplers.json").exists()


def test_a_model_is_fitted_in_batches_and_left_alone(shipped: Path) -> None:
    model = sci.load(shipped).train()
    whole, parts = fit(model, 5), fit(model, 5, batch_size=5)
    assert model.training and model.tuned == {}
    np.testing.assert_allclose(parts.default_error, whole.default_error, rtol=0.2)
    assert (whole.items, whole.held_out, parts.items) == (12, 12, 12)
    assert whole.request == {"steps": 5, "shift": 0.0}
    # What was fitted before is no default to be compared with.
    model.tuned = {5: whole}
    assert fit(model, 5) == whole and model.tuned == {5: whole}


def test_models_that_cannot_be_fitted(shipped: Path) -> None:
    with pytest.raises(TypeError, match="Toy defines no problem"):
        fit(Toy(), 5)
    model = sci.load(shipped)
    with pytest.raises(ValueError, match="nfe is 5 and the request's steps are 7"):
        fit(model, 5, steps=7)
    with pytest.raises(ValueError, match="at least 4 items"):
        fit(model, 5, n=3)
    with pytest.raises(TypeError, match="did you mean 'shift'"):
        fit(model, 5, shfit=7)


def test_damaged_files_are_named(shipped: Path) -> None:
    model = sci.load(shipped)
    model.tuned = {4: fit(model, 4)}
    model.save(shipped)
    path = shipped / "samplers.json"
    whole = path.read_text()
    assert json.loads(whole)["format_version"] == 1
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(files.FileDamaged, match=r"samplers\.json is not readable"):
        sci.load(shipped)
    path.write_text(whole.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(files.FileDamaged, match=r"samplers\.json does not match its checksum"):
        sci.load(shipped)
    path.write_text(whole)
    entries = files.read_json(path)
    four = entries["samplers"]["4"]
    backwards = {**four, "times": four["times"][::-1]}
    for change, error, words in (
        ({"format_version": 2}, ValueError, "format_version 2"),
        ({"weights_sha256": "0"}, files.FileDamaged, "fitted to other weights"),
        ({"samplers": [1]}, files.FileDamaged, "no table of samplers"),
        ({"samplers": {"5": four}}, files.FileDamaged, "not for 5 evaluations"),
        ({"samplers": {"4": {**four, "ordre": 1}}}, ValueError, "did you mean 'order'"),
        (
            {"samplers": {"4": {**four, "kind": ["dta"] * 4}}},
            ValueError,
            r"samplers\.json: .*'data'",
        ),
        ({"samplers": {"4": backwards}}, ValueError, r"samplers\.json: .*increas"),
        ({"samplers": {"4": {**four, "times": [0.0, 1.0]}}}, ValueError, "5 times, got 2"),
    ):
        files.write_json(path, {**entries, **change})
        with pytest.raises(error, match=words):
            sci.load(shipped)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


QUICK = ("-n", 24, "--teacher", 40, "-q", "--device", "cpu")
COMMON = (*QUICK, "--budget", 100)


def test_the_command_stores_beside_the_weights(shipped: Path, tmp_path: Path) -> None:
    result = run("tune", shipped, "--nfe", 4, *COMMON, "--set", "shift=1")
    assert result.exit_code == 0, result.output
    for text in ("before", "fitted", "fine trajectory", "40", "12 items"):
        assert text in result.output
    assert run("tune", shipped, "--nfe", 6, "--nfe", 5, *COMMON).exit_code == 0
    assert list(sci.load(shipped).tuned) == [4, 5, 6]
    out = tmp_path / "a.h5"
    words = ("-n", 6, "-o", out, "-q", "--device", "cpu", "--set", "steps=5")
    assert run("sample", shipped, *words).exit_code == 0
    made = Points.read(out)
    assert made.attrs["sampler"] == "tuned" and made.attrs["nfe"] == 5


def test_the_command_copies_where_it_cannot_write(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != shipped and access(path, mode)
    )
    refused = run("tune", "tunable-ring", "--nfe", 4, *COMMON)
    assert refused.exit_code == 2 and "-o FOLDER" in refused.stderr and "shipped" in refused.stderr
    out = tmp_path / "mine"
    assert run("tune", "tunable-ring", "--nfe", 4, *COMMON, "-o", out).exit_code == 0
    assert run("tune", "tunable-ring", "--nfe", 5, *COMMON, "-o", out).exit_code == 0
    copied = sci.load(out)
    assert isinstance(copied, Tunable) and list(copied.tuned) == [4, 5]
    assert (out / "card.md").read_text() == (shipped / "card.md").read_text()
    assert not (shipped / "samplers.json").exists() and sci.load("tunable-ring").tuned == {}
    other = Tunable().save(tmp_path / "other")
    refused = run("tune", "tunable-ring", "--nfe", 4, *COMMON, "-o", other)
    assert refused.exit_code == 2 and "checkpoint of other weights" in refused.stderr
    shutil.rmtree(other)
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    refused = run("tune", "tunable-ring", "--nfe", 4, *COMMON, "-o", other)
    assert refused.exit_code == 2 and "no checkpoint" in refused.stderr
    assert (other / "thesis.tex").exists()


def test_the_command_refuses(folder: Path, shipped: Path) -> None:
    for words, text in (
        ((folder, "--nfe", 5), "Toy defines no problem"),
        (("tunable-rng", "--nfe", 5), "did you mean 'tunable-ring'"),
        ((shipped, "--nfe", 1), "nfe is 1"),
        ((shipped, "--nfe", 5, "--set", "stpes=5"), "did you mean 'steps'"),
        ((shipped, "--nfe", 5, "--set", "steps=6"), "steps are 6"),
        ((shipped, "--nfe", 5, "--measure", "max"), "no measure is called 'max'"),
    ):
        result = run("tune", *words, *COMMON)
        assert result.exit_code == 2 and text in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (shipped / "samplers.json").exists()


def test_the_command_stores_the_best_so_far(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(search: Search, sampler: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "evolve", stop)  # after the screening
    result = run("tune", shipped, "--nfe", 6, "--nfe", 7, *QUICK)
    assert result.exit_code == 130, result.output
    assert "interrupted at 6 evaluations; the best so far was kept" in result.stderr
    tuned = sci.load(shipped).tuned
    assert list(tuned) == [6] and tuned[6].interrupted


def test_nothing_is_stored_that_does_not_help(shipped: Path) -> None:
    result = run("tune", shipped, "--nfe", 4, *QUICK, "--budget", 4)
    assert result.exit_code == 0 and "no better" in result.output
    assert not (shipped / "samplers.json").exists()
