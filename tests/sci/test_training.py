"""Training: resuming bit for bit, groups, averages, clean stops, fine-tuning."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Alternating, Ring, Toy

from sci import tree
from sci.model import Model, ParameterGroup
from sci.optimisation import Batches, Optimisation, mix
from sci.recipes import Recipe
from sci.runs import RunFolder
from sci.training import train


def recipe(*overrides: str, model: str = "toy") -> Recipe:
    return Recipe.read("toy-ring", [f"recipe.model={model}", *overrides])


def fit(out: Path, *overrides: str, **options: Any) -> Any:
    chosen = options.pop("recipe", None) or recipe(*overrides)
    return train(chosen, out, device="cpu", progress=False, **options)


def arrays(out: Path) -> dict[str, torch.Tensor]:
    """Every array of a finished run: the last checkpoint and the model."""
    checkpoint = RunFolder(out).load_checkpoint()
    assert checkpoint is not None
    leaves, structure = tree.flatten(
        {"state": checkpoint[1]["model"], "average": checkpoint[1]["average"]}
    )
    moments = [
        value
        for optimiser in checkpoint[1]["optimisers"]
        for slot in optimiser["state"].values()
        for value in slot.values()
    ]
    named = dict(zip(structure.names, leaves, strict=True))
    return {
        **named,
        **{f"moment {k}": value for k, value in enumerate(moments)},
        **Model.load(out / "model").state_dict(),
    }


def assert_same(first: Path, second: Path) -> None:
    a, b = arrays(first), arrays(second)
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_batches_are_a_function_of_seed_and_step() -> None:
    batches = Batches(10, 4, seed=0)
    rows = torch.cat([batches.indices(step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(Batches(10, 4, seed=0).indices(3), rows[12:16])
    assert not torch.equal(Batches(10, 4, seed=1).indices(0), rows[:4])
    shares = [Batches(10, 4, 0, rank, 2).indices(2) for rank in range(2)]
    assert sorted(torch.cat(shares).tolist()) == sorted(rows[8:12].tolist())
    assert len(Batches(3, 8, 0).indices(0)) == 8
    with pytest.raises(ValueError, match="does not divide"):
        Batches(10, 5, 0, 0, 2)
    with pytest.raises(ValueError, match="no item"):
        Batches(0, 5, 0)
    assert mix(1, 23) != mix(12, 3) and 0 <= mix(0) < 2**63


def test_training_learns_and_leaves_a_whole_run(tmp_path: Path) -> None:
    run = fit(tmp_path / "r", "training.steps=300")
    assert run.finished and run.step == 300 and run.cpu_minutes > 0
    log = RunFolder(run.folder).log.rows()
    assert [int(row["step"]) for row in log] == list(range(10, 301, 10))
    assert float(log[-1]["loss"]) < 0.8 * float(log[0]["loss"])
    assert float(log[-1]["validation/loss"]) < float(log[3]["validation/loss"])
    assert float(log[-1]["learning_rate"]) < 1e-5 < float(log[5]["learning_rate"])
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == ["step-275.pt", "step-300.pt"]
    record = run.model.training_record
    assert record["steps"] == 300 and record["seed"] == 3 and record["wall_minutes"] > 0
    assert run.model.config.scale == pytest.approx(float(Ring(500, 0).values.std()))
    assert "300 steps" in (run.folder / "model" / "card.md").read_text()


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_arrays_of_an_uninterrupted_one(
    tmp_path: Path, kills: int
) -> None:
    """kill -9 at moments that no step boundary knows of."""
    pause = ["--set", "data.pause=0.01"]
    command = [
        sys.executable,
        "-m",
        "sci",
        "train",
        "toy-ring",
        "-q",
        "--device",
        "cpu",
        *pause,
        "-o",
    ]
    for kill in range(kills):
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        checkpoints = tmp_path / "killed" / "checkpoints"
        seen = set(checkpoints.glob("step-*.pt")) if kill else set()
        deadline = time.monotonic() + 60
        while not set(checkpoints.glob("step-*.pt")) - seen and time.monotonic() < deadline:
            time.sleep(0.003)
        time.sleep(0.02 * kill)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "model").exists()
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    fit(tmp_path / "whole", "data.pause=0.01")
    assert_same(tmp_path / "killed", tmp_path / "whole")
    steps = [int(row["step"]) for row in RunFolder(tmp_path / "killed").log.rows()]
    assert steps == list(range(10, 121, 10))


def test_two_groups_with_their_own_losses_rates_and_activity(tmp_path: Path) -> None:
    chosen = recipe(
        "training.steps=4",
        "optimiser.clip=none",
        "optimiser.weight_decay=0",
        model="alternating-toy",
    )
    torch.manual_seed(0)
    model = Alternating()
    optimisation = Optimisation(model, chosen)
    head, body = model.network[-1].weight, model.network[0].weight
    data = Ring(64, 0)
    moved = []
    for step in range(4):
        before = head.clone(), body.clone()
        optimisation.step(data.collate(torch.arange(32)), step)
        moved.append([not torch.equal(a, b) for a, b in zip(before, (head, body), strict=True)])
    assert moved == [[False, True], [True, True], [False, True], [True, True]]


def test_a_group_feels_only_its_own_loss() -> None:
    chosen = recipe("optimiser.name=sgd", "optimiser.clip=none", "optimiser.schedule.warmup=0")
    torch.manual_seed(0)
    model = Alternating()
    batch = Ring(64, 0).collate(torch.arange(32))
    optimisation = Optimisation(model, chosen)
    losses = optimisation.losses(batch, 1, "step", 1, 0)
    expected = torch.autograd.grad(losses["size"], list(model.network[-1].parameters()))
    optimisation.step(batch, 1)
    for parameter, gradient in zip(model.network[-1].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_bad_groups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy()
    everything = list(model.parameters())
    batch = Ring(8, 0).collate(torch.arange(4))
    for groups, error, message in (
        ([ParameterGroup(everything), ParameterGroup(everything[:1])], ValueError, "shares"),
        ([], ValueError, "nothing to train"),
        ([ParameterGroup([])], ValueError, "empty"),
        ([ParameterGroup(everything, "los")], KeyError, "did you mean 'loss'"),
    ):
        monkeypatch.setattr(model, "parameter_groups", lambda groups=groups: groups)
        with pytest.raises(error, match=message):
            Optimisation(model, recipe()).step(batch, 0)


def test_average_follows_its_formula_with_warm_up() -> None:
    torch.manual_seed(0)
    model = Toy()
    optimisation = Optimisation(model, recipe("training.ema_decay=0.3"))
    average = model.network[0].weight.detach().clone()
    data = Ring(64, 0)
    for step in range(6):
        optimisation.step(data.collate(torch.arange(32)), step)
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * model.network[0].weight.detach()
    raw = model.network[0].weight.detach().clone()
    with optimisation.averaged() as averaged:
        torch.testing.assert_close(averaged.network[0].weight, average)
        assert not averaged.training
    assert torch.equal(model.network[0].weight, raw) and model.training


def test_gradients_are_clipped() -> None:
    torch.manual_seed(0)
    model = Toy()
    optimisation = Optimisation(model, recipe("optimiser.clip=0.01"))
    report = optimisation.step(Ring(64, 0).collate(torch.arange(32)), 0)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert float(report["gradient_norm"]) > 0.1 and float(norm) == pytest.approx(0.01, rel=1e-3)


def test_validation_has_fixed_draws_and_uses_the_average() -> None:
    torch.manual_seed(0)
    model = Toy()
    optimisation = Optimisation(model, recipe())
    held_out = Ring(64, 1)
    first = optimisation.validate(held_out, 0)
    with torch.no_grad():
        model.network[-1].bias.add_(5.0)
    assert optimisation.validate(held_out, 7) == first
    for average in optimisation.average:
        average.add_(0.5)
    assert optimisation.validate(held_out, 0) != first


def test_time_limit_stops_cleanly_and_a_rerun_goes_on(tmp_path: Path) -> None:
    limited = fit(tmp_path / "a", "training.max_minutes=0.0001")
    assert not limited.finished and 0 < limited.step < 120
    assert limited.model.training_record["steps"] == limited.step
    again = fit(tmp_path / "a")
    assert again.finished and again.wall_minutes > limited.wall_minutes
    fit(tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")
    # A finished run is left as it is.
    stamp = (tmp_path / "a" / "model" / "config.json").stat().st_mtime_ns
    assert fit(tmp_path / "a").finished
    assert (tmp_path / "a" / "model" / "config.json").stat().st_mtime_ns == stamp


def test_sigterm_stops_at_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sci", "train", "toy-ring", "-q", "--device", "cpu"]
    command += ["--set", "data.pause=0.02", "-o", str(tmp_path / "r")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "r" / "log.csv"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "the same command continues" in out
    step, _ = RunFolder(tmp_path / "r").load_checkpoint() or (0, {})
    assert 0 < step < 120 and Model.load(tmp_path / "r" / "model").training_record["steps"] == step


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    fit(tmp_path / "r", "training.steps=5")
    with pytest.raises(ValueError, match=r"training\.steps: 5 there, 6 asked"):
        fit(tmp_path / "r", "training.steps=6")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds no run"):
        fit(tmp_path / "other")


def test_a_run_that_never_began_makes_room(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="width"):
        fit(tmp_path / "r", "training.steps=5", "model.width=wide")
    assert fit(tmp_path / "r", "training.steps=5", "model.width=8").model.config.width == 8
    with pytest.raises(ValueError, match=r"model\.width: 8 there, 9 asked"):
        fit(tmp_path / "r", "training.steps=5", "model.width=9")


@pytest.mark.parametrize("left", ["an earlier model", "half a model", "no model"])
def test_a_kill_between_the_last_checkpoint_and_the_model(tmp_path: Path, left: str) -> None:
    whole = fit(tmp_path / "whole", "training.steps=20")
    stopped = fit(tmp_path / "r", "training.steps=20", "training.max_minutes=0.00001")
    assert stopped.step < 20
    shutil.copytree(tmp_path / "r" / "model", tmp_path / "earlier")
    fit(tmp_path / "r", "training.steps=20")
    shutil.rmtree(tmp_path / "r" / "model")
    if left != "no model":
        shutil.copytree(tmp_path / "earlier", tmp_path / "r" / "model")
    if left == "half a model":
        (tmp_path / "r" / "model" / "config.json").unlink()
    run = fit(tmp_path / "r", "training.steps=20")
    assert run.finished and run.model.training_record["steps"] == 20
    assert_same(run.folder, whole.folder)


def test_stray_files_do_not_stop_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / ".config.0123456789ab.partial.json").write_text("{")  # of a kill while claiming
    fit(folder, "training.steps=2")
    shutil.copy(folder / "checkpoints" / "step-2.pt", folder / "checkpoints" / "step-2 (copy).pt")
    assert fit(folder, "training.steps=2").finished


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    state = {"average": {"w": torch.arange(4.0)}}
    folder.save_checkpoint(1, state)
    path = folder.save_checkpoint(2, {"average": {"w": torch.arange(4.0) + 1}})
    content = torch.load(path, weights_only=True)
    content["state"]["average"]["w"][0] = 7
    torch.save(content, path)
    with pytest.warns(UserWarning, match=r"step-2\.pt.*checksum"):
        found = folder.load_checkpoint()
    assert found is not None and found[0] == 1
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"step-2\.pt"):
        assert folder.load_checkpoint() is not None
    with pytest.raises(FloatingPointError, match=r"at step 3 average\.w"):
        folder.save_checkpoint(3, {"average": {"w": torch.tensor([torch.nan])}})


def test_a_diverging_run_stops_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is .*last checkpoint is of step"):
        fit(tmp_path / "r", "optimiser.lr=1e30", "optimiser.clip=none", "training.log_every=1")
    assert not (tmp_path / "r" / "model").exists()


def test_fine_tuning_starts_from_the_model(tmp_path: Path) -> None:
    fit(tmp_path / "base", "training.steps=150", "model.width=24")
    tuned = fit(
        tmp_path / "tuned",
        "training.steps=1",
        "optimiser.lr=1e-9",
        start=tmp_path / "base" / "model",
    )
    assert tuned.model.config.width == 24
    assert tuned.model.training_record["start"] == str(tmp_path / "base" / "model")
    base = Model.load(tmp_path / "base" / "model").state_dict()
    for name, value in tuned.model.state_dict().items():
        torch.testing.assert_close(value, base[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be fine-tuned"):
        fit(tmp_path / "no", "model.width=8", start=tmp_path / "base" / "model")
    with pytest.raises(ValueError, match="recipe trains a 'alternating-toy'"):
        other = recipe(model="alternating-toy")
        fit(tmp_path / "no2", recipe=other, start=tmp_path / "base" / "model")


def test_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    run = fit(tmp_path / "r", "training.precision=bf16-mixed", "training.steps=30")
    exact = fit(tmp_path / "e", "training.steps=30")
    for (_, half), (_, full) in zip(
        run.model.state_dict().items(), exact.model.state_dict().items(), strict=True
    ):
        assert half.dtype == torch.float32 and not torch.equal(half, full)
        torch.testing.assert_close(half, full, rtol=0.2, atol=0.05)


def test_compiling_must_keep_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(Toy, "compile_networks", lambda self: called.append(1))
    fit(tmp_path / "a", "training.compile=true", "training.steps=2")
    assert called == [1]

    def wrap(self: Toy) -> None:
        self.network = torch.nn.Sequential(self.network)

    monkeypatch.setattr(Toy, "compile_networks", wrap)
    with pytest.raises(RuntimeError, match="changed the names"):
        fit(tmp_path / "b", "training.compile=true", "training.steps=2")


def test_overhead_of_a_step_is_small(tmp_path: Path) -> None:
    quick = (
        "training.validate_every=0",
        "training.checkpoint_every.steps=10000",
        "optimiser.clip=1",
    )
    short = fit(tmp_path / "a", "training.steps=100", *quick)
    long = fit(tmp_path / "b", "training.steps=500", *quick)
    per_step = 60 * (long.cpu_minutes - short.cpu_minutes) / 400
    # The toy's own forward, backward and update take about 1 ms of it.
    assert per_step < 6e-3


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sci"]
    command += ["train", "toy-ring", "-q", "--device", "cpu", "-o", str(tmp_path / "r")]
    subprocess.run(command, check=True, timeout=300)
    record = Model.load(tmp_path / "r" / "model").training_record
    assert record["devices"] == 2 and record["steps"] == 120
    assert record["losses"]["validation/loss"] < 1.5


def test_without_a_compiler_the_networks_run_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        assert fit(tmp_path, "training.compile=true", "training.steps=2").finished
