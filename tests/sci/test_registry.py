"""The static table, recipes and their overrides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import toy

from sci import files, registry
from sci.fields import build, parse, plain, unknown
from sci.recipes import LearningRate, Recipe

TOYS = Path(__file__).parent / "toys"


def test_classes_are_found_both_ways() -> None:
    assert registry.find_class("toy") is toy.Toy
    assert registry.class_name(toy.Alternating) == "alternating-toy"
    assert registry.class_name(Path) is None
    with pytest.raises(KeyError, match="did you mean 'toy'"):
        registry.find_class("tooy")


def test_models_are_placed_beside_their_table() -> None:
    entry = registry.model("toy-ring")
    assert entry.folder == TOYS / "weights" and entry.recipe == TOYS / "ring.toml"
    assert entry.model == "toy" and entry.wing == "toys"
    with pytest.raises(KeyError, match="did you mean 'toy-ring'"):
        registry.model("toyring")


def test_shipped_folders_are_found_without_importing_the_wing() -> None:
    code = (
        "import sys\nfrom sci import registry\n"
        "places = [e.folder for e in registry.models().values()]\n"
        "where = registry._place(registry._SHIPPED, 'graphs/weights/x')\n"
        "assert where.parts[-3:] == ('graphs', 'weights', 'x') and where.parents[1].is_dir(), where\n"
        "wings = {'sci.graphs', 'sci.proteins', 'sci.pde', 'sci.timeseries', 'sci.cells'}\n"
        "assert not wings & set(sys.modules), set(sys.modules) & wings\n"
        "assert 'torch' not in sys.modules and 'rdkit' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_extend_adds_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", [])
    table = tmp_path / "mine.toml"
    table.write_text('[model.mine]\nclass = "toy"\nfolder = "w"\n')
    assert "mine" not in registry.models()
    registry.extend(table)
    assert registry.model("mine").folder == tmp_path / "w"
    table.write_text('[model.mine]\nclass = "toy"\n')
    with pytest.raises(ValueError, match=r"mine\.toml: model 'mine' lacks folder"):
        registry.models()
    table.write_text("[model")
    with pytest.raises(ValueError, match=r"mine\.toml is not valid TOML"):
        registry.models()
    with pytest.raises(FileNotFoundError):
        registry.extend(tmp_path / "none.toml")


def test_missing_packages_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install 'sciflows\[cells\]'"):
        registry.resolve("no_such_package_at_all:Thing", "cells")
    with pytest.raises(ImportError, match="has no 'Thing'"):
        registry.resolve("toy:Thing")


def test_data_class_by_suffix_and_by_attribute(tmp_path: Path) -> None:
    import numpy as np

    assert registry.data_class("a.csv") is toy.Points
    path = tmp_path / "a.h5"
    files.write_hdf5(path, {"values": np.zeros((1, 2))}, {"data_class": "points"})
    assert registry.data_class(path) is toy.Points
    files.write_hdf5(path, {"values": np.zeros((1, 2))}, {"data_class": "os:system"})
    with pytest.raises(ValueError, match="no data type is called 'os:system'"):
        registry.data_class(path)
    with pytest.raises(ValueError, match="nothing here reads"):
        registry.data_class("a.xyz")
    path.write_text("not hdf5")
    with pytest.raises(ValueError, match="not a readable HDF5"):
        registry.data_class(path)


def test_recipes_are_found_by_path_model_and_stem(tmp_path: Path) -> None:
    assert registry.find_recipe("toy-ring") == TOYS / "ring.toml"
    assert registry.find_recipe(str(TOYS / "ring.toml")) == TOYS / "ring.toml"
    with pytest.raises(KeyError, match="toy-ring"):
        registry.find_recipe("toy-rin")
    with pytest.raises(FileNotFoundError):
        registry.find_recipe(str(tmp_path / "none.toml"))


def test_overrides_are_typed() -> None:
    settings = ["optimiser.lr=1", "optimiser.schedule.hold=0.5", "model.width=8", "data.items=40"]
    recipe = Recipe.read("toy-ring", [*settings, "training.max_minutes=none"], seed=9)
    assert recipe.optimiser.lr == 1.0 and isinstance(recipe.optimiser.lr, float)
    assert recipe.optimiser.schedule == LearningRate("cosine", warmup=10, hold=0.5)
    assert recipe.config["width"] == 8 and recipe.overridden == ("width",)
    assert recipe.data["items"] == 40 and recipe.seed == 9 and recipe.training.max_minutes is None
    again = Recipe.from_tables(recipe.tables())
    assert again.tables() == recipe.tables()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.lr=1", "did you mean 'optimiser.'"),
        ("optimiser.lrr=1", "did you mean 'lr'"),
        ("data.item=3", "did you mean 'items'"),
        ("training.checkpoint_every.step=3", "did you mean 'steps'"),
        ("training.precision=bf16", "bf16-mixed"),
        ("training.steps=many", "expected int"),
        ("training.steps=0", "at least 1"),
        ("training.steps.x=1", "'steps' is a value"),
        ("optimiser.betas=[0.9]", "1 entries"),
        ("optimiser.clip=-1", "above 0"),
        ("lr", "name=value"),
    ],
)
def test_bad_overrides_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.read("toy-ring", [setting])


def test_bad_recipe_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    text = (TOYS / "ring.toml").read_text()
    for old, new, message in (
        ("[optimiser]", "[optimizer]", "did you mean 'optimiser'"),
        ('model = "toy"', "", "'model' is missing"),
        ("steps = 120", "steps = ", "not valid TOML"),
        ("[recipe]", "model = 3\n[recipe]", r"model is 3; expected a table \[model\]"),
    ):
        path.write_text(text.replace(old, new, 1).replace("[model]\nwidth = 16\n", ""))
        with pytest.raises(ValueError, match=message):
            Recipe.read(path)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match=r"r\.toml is not valid TOML"):
        Recipe.read(path)


def test_learning_rate_courses() -> None:
    cosine = LearningRate("cosine", warmup=10, hold=0.3, final=0.1)
    assert [cosine.factor(s, 100) for s in (0, 9, 10, 29, 30)] == [0.1, 1.0, 1.0, 1.0, 1.0]
    assert cosine.factor(65, 100) == pytest.approx(0.55) and cosine.factor(
        100, 100
    ) == pytest.approx(0.1)
    linear = LearningRate("linear")
    assert [linear.factor(s, 4) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    decay = LearningRate("exponential", gamma=0.5, every=10, final=0.2)
    assert decay.factor(10, 100) == 0.5 and decay.factor(90, 100) == 0.2
    assert LearningRate().factor(99, 100) == 1.0


def test_settings_parse_as_toml_else_text() -> None:
    assert parse("a=[1, 2]") == (["a"], [1, 2])
    assert parse("a.b = true") == (["a", "b"], True)
    assert parse("a=C=C") == (["a"], "C=C")
    assert parse("a=1\nb=2") == (["a"], "1\nb=2")


def test_names_suggest_close_ones() -> None:
    assert unknown("model", "gdss-qm", ["gdss-qm9", "pard"]).endswith("did you mean 'gdss-qm9'?")
    assert unknown("model", "zzz", ["a", "b"]).endswith("known: 'a', 'b'")
    assert "none at all" in unknown("model", "zzz", [])


def test_build_converts_and_plain_inverts() -> None:
    recipe = Recipe.read("toy-ring")
    again = build(type(recipe.optimiser), plain(recipe.optimiser), "again")
    assert again == recipe.optimiser and isinstance(again.betas, tuple)
