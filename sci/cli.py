"""The command ``sci``: list models, sample, train, tune, evaluate, and take the tour."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Score and flow generative models for science.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_state = {"debug": False}
F = TypeVar("F", bound=Callable[..., None])

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override one setting; repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def main() -> None:
    """Runs the command."""
    app(prog_name="sci")


def friendly(command: F) -> F:
    """Turns the errors a user can cause into one red line and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            _complain("interrupted; run the same command again to continue")
            raise typer.Exit(130) from None
        except (
            ValueError,
            TypeError,
            KeyError,
            OSError,
            ImportError,
            RuntimeError,
            ArithmeticError,
        ) as error:
            if _state["debug"]:
                raise
            _complain(_message(error))
            raise typer.Exit(2) from None

    return wrapped  # type: ignore[return-value]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Score and flow generative models for science."""
    _state["debug"] = debug
    if version:
        from sci import __version__

        typer.echo(f"sciflows {__version__}")
        raise typer.Exit


@app.command()
@friendly
def models() -> None:
    """List the trained models, with what is said of them; imports none."""
    from rich.table import Table

    from sci import registry

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("model", "wing", "class", "weights", "what it is"):
        table.add_column(name, overflow="fold")
    for entry in registry.models().values():
        weights = entry.folder / "model.safetensors"
        size = f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else "missing"
        table.add_row(entry.name, entry.wing, entry.model, size, _summary(entry))
    _console().print(table)


@app.command()
@friendly
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: a model's name, a recipe's name, or a .toml file.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder.")] = None,
    settings: Settings = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Fine-tune this model: a name or a checkpoint folder."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The training seed.")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe; the same command again continues a run that was stopped."""
    from sci.recipes import Recipe
    from sci.training import train as run_training

    chosen = Recipe.read(recipe, settings or (), seed)
    folder = out or Path("runs") / chosen.name
    run = run_training(chosen, folder, start=start, device=device, progress=not quiet)
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) != 0:
        return
    losses = ", ".join(f"{name} {value:.4g}" for name, value in run.losses.items())
    state = "finished" if run.finished else "stopped; the same command continues"
    typer.echo(
        f"{run.folder}: step {run.step} of {chosen.training.steps}, {state}. "
        f"{run.wall_minutes:.1f} minutes ({run.cpu_minutes:.1f} CPU). {losses}"
    )
    typer.echo(f"model: {run.folder / 'model'}")


@app.command()
@friendly
def sample(
    name: Annotated[str, typer.Argument(help="A trained model: its name or its folder.")],
    n: Annotated[int, typer.Option("-n", "--number", help="How many items.")] = 100,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; its suffix is the format.")
    ] = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(help="The sampling seed.")] = 0,
    chunk: Annotated[int, typer.Option(help="Items a part file.")] = 1000,
    batch_size: Annotated[int | None, typer.Option(help="Items at once.")] = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option(help="Begin anew where the file exists.")] = False,
    keep_parts: Annotated[bool, typer.Option(help="Keep the part files, to extend later.")] = False,
    quiet: Quiet = False,
) -> None:
    """Generate items into a file; the same command again continues, a larger -n extends."""
    from sci.generation import generate_to
    from sci.model import load, positive

    positive("-n", n)
    model = load(name)
    path = generate_to(
        model,
        n,
        out or Path(f"{Path(name).name}.h5"),
        seed=seed,
        request=_request(model, settings or ()),
        chunk=chunk,
        batch_size=batch_size,
        device=device,
        progress=not quiet,
        overwrite=overwrite,
        keep_parts=keep_parts,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(f"{path}: {n} items of {name}, sampling seed {seed}")


@app.command()
@friendly
def tune(
    name: Annotated[str, typer.Argument(help="A trained model: its name or its folder.")],
    nfe: Annotated[
        list[int], typer.Option("--nfe", help="Network evaluations an item; repeatable.")
    ],
    n: Annotated[int, typer.Option("-n", "--number", help="Items; half fit, half judge.")] = 128,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A folder to copy the model to, with what is found."),
    ] = None,
    settings: Settings = None,
    budget: Annotated[
        int | None, typer.Option(help="Evaluations an item to search; 500 times --nfe.")
    ] = None,
    teacher: Annotated[int, typer.Option(help="Evaluations of the fine trajectory.")] = 200,
    measure: Annotated[
        str, typer.Option(help="What is made small: distance, square, geometric or median.")
    ] = "distance",
    seed: Annotated[int, typer.Option(help="The seed of the items and of the search.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Items at once.")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Fit samplers of few evaluations to a model and keep them with it; Ctrl-C keeps the best so far."""
    from sci import checkpoint
    from sci.model import find_folder, load
    from sci.tuning import table, tune_model

    folder = find_folder(name)
    if out is not None:
        checkpoint.stands(folder, out)
    elif not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to: give a folder to copy the model to, -o FOLDER"
        )
    model = load(name, device)
    fields = _request(model, settings or ())
    found = []
    for count in dict.fromkeys(nfe):
        tuned = tune_model(
            model, count, n, budget, teacher, measure, seed, not quiet, batch_size, **fields
        )
        found.append(tuned)
        if tuned.improved:
            if out is not None:
                checkpoint.copy(folder, out)
            path = checkpoint.write_samplers(out or folder, {count: tuned})
            typer.echo(f"{path}: the sampler of {count} evaluations")
        if tuned.interrupted:
            break
    _console().print(table(found))
    if found[-1].interrupted:
        kept = "the best so far was kept" if found[-1].improved else "nothing better was found yet"
        _complain(f"interrupted at {found[-1].nfe} evaluations; {kept}")
        raise typer.Exit(130)


@app.command()
@friendly
def evaluate(
    what: Annotated[str, typer.Argument(help="A file of generated data, or a trained model.")],
    reference: Annotated[
        str | None, typer.Option("--reference", "-r", help="The data to compare with.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=".json, .md, .html or .txt.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--number", help="Items to sample (models).")
    ] = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(help="The sampling seed (models).")] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Judge a file, or a model by its samples, against real data; prints the floor beside it."""
    from sci import registry
    from sci.report import Report

    if out is not None:
        Report.check_suffix(out)
    model: Any = None
    if Path(what).is_file():
        if n is not None or settings:
            raise ValueError(
                f"{what} is a file: -n and --set are for models, which are sampled first"
            )
        protocol, basis = {}, {}
    else:
        suffixes = {suffix for entry in registry.data_entries() for suffix in entry.suffixes}
        if Path(what).suffix.lower() in suffixes and not Path(what).is_dir():
            raise FileNotFoundError(f"there is no file {what}")
        from sci.model import load, positive

        model = load(what, device)
        protocol = model.training_record.get("recipe", {}).get("evaluation", {})
        count = positive("-n", n if n is not None else protocol.get("n", 1000))
        fields = _request(model, settings or ())
    reference = reference or protocol.get("reference")
    if reference is None:
        raise ValueError("say what to compare with: --reference NAME, e.g. --reference qm9")
    if model is None:
        data = registry.data_class(what).read(what)
    else:
        data = model.sample(count, seed=seed, progress=not quiet, **fields)
        basis = _basis(model, data, seed)
    report = data.evaluate(reference)
    report.notes = {**basis, **report.notes}
    typer.echo(str(report))
    if out is not None:
        report.write(out)


@app.command()
@friendly
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the page.")] = Path(
        "demo"
    ),
    wing: Annotated[list[str] | None, typer.Option(help="Only this wing; repeatable.")] = None,
    quiet: Quiet = False,
) -> None:
    """Take the tour: one page of pictures and tables from every wing."""
    from sci.demo import build

    path = build(out, wing or None, None if quiet else lambda line: typer.echo(line, err=True))
    typer.echo(str(path))


def _request(model: Any, settings: Iterable[str]) -> dict[str, Any]:
    """The request fields of ``--set``, checked by the model."""
    from sci.fields import parse

    fields: dict[str, Any] = {}
    for setting in settings:
        keys, value = parse(setting)
        fields[".".join(keys)] = value
    model.request(**fields)
    return fields


def _basis(model: Any, data: Any, seed: int) -> dict[str, Any]:
    """What the figures of a sampled model rest on: size, seeds, network evaluations, training cost."""
    record = model.training_record
    basis = {"n": len(data), "nfe": data.attrs.get("nfe"), "sampling seed": seed}
    if "cpu_minutes" in record:
        basis["training seed"] = record["seed"]
        basis["training cost"] = f"{record['cpu_minutes']:.1f} CPU minutes on {record['device']}"
    return {key: value for key, value in basis.items() if value is not None}


def _summary(entry: Any) -> str:
    """The registry's line, else the first sentence of the model's card."""
    card = entry.folder / "card.md"
    if entry.summary or not card.is_file():
        return str(entry.summary)
    lines = (line.strip() for line in card.read_text("utf-8").splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")


def _console() -> Any:
    from rich.console import Console

    return Console()


def _complain(text: str) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    console.print(f"sci: {text}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
