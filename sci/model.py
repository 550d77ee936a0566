"""The contract of a model: configuration, losses, generation; and its checkpoint folder.

A checkpoint is a folder: ``model.safetensors`` (the weights, float32 or float16), ``config.json`` (format
version, the model's short name, its configuration, the SHA-256 of the weights, how it was trained),
``card.md`` (what it is, its licence, its measured quality), and ``samplers.json`` where samplers were fitted
to it (``sci tune``). Nothing in it is code: the class is found from the short name through the registry.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sci import checkpoint, files, registry
from sci.devices import choose_device
from sci.fields import build, plain, unknown
from sci.noise import Noise

if TYPE_CHECKING:
    from sci.samplers import Multistep
    from sci.samplers.tuned import Tuned

__all__ = [
    "Model",
    "ParameterGroup",
    "Prepared",
    "Problem",
    "TrainingData",
    "always",
    "choose_device",
    "evaluating",
    "find_folder",
    "load",
    "positive",
]

M = TypeVar("M", bound="Model")


def always(step: int) -> bool:
    """True: the default activity of a parameter group."""
    return True


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that one optimiser follows.

    Arguments:
        parameters: The parameters; groups must not share any.
        loss: The entry of :meth:`Model.losses` that these parameters descend.
        learning_rate: Peak learning rate; None takes the recipe's.
        clip: Largest gradient norm of the group; None takes the recipe's.
        active: Of the step (int, from 0): whether the group moves at it.
    """

    parameters: list[nn.Parameter]
    loss: str = "loss"
    learning_rate: float | None = None
    clip: float | None = None
    active: Callable[[int], bool] = always


class TrainingData(Protocol):
    """A data set as training sees it: a length, and batches by index."""

    def __len__(self) -> int: ...

    def collate(self, indices: Tensor) -> Any:
        """The batch of the items ``indices`` (int64, shape (batch,)): a tree of CPU tensors."""


@dataclass(frozen=True)
class Prepared:
    """What :meth:`Model.prepare` learns from data.

    Arguments:
        train: The training set.
        validation: Held-out data for the validation losses, or None.
        config: Fields of the model's Config that the data decide (a vocabulary, a law of sizes).
    """

    train: TrainingData
    validation: TrainingData | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What a sampler is given for some items.

    Arguments:
        denoiser: A :class:`sci.Denoiser`, or a wrapper of one.
        like: A tree of the shape of their state, each leaf (B, ...).
        condition: A tree with a batch axis, or None.
        sampler: What samples them unless another one is asked for; None for ``sci.samplers.default``.
    """

    denoiser: Any
    like: Any
    condition: Any = None
    sampler: Any = None


@dataclass(frozen=True)
class NoFields:
    """A configuration or request without fields."""


class Model(nn.Module):
    """A generative model that can be trained by a recipe, saved, loaded and sampled.

    A subclass names its ``Config``, ``Request`` and ``Data`` classes and its short ``name``, builds its
    networks in ``__init__(config)`` (calling ``super().__init__(config)`` first), and defines
    :meth:`losses`, :meth:`prepare` and :meth:`generate`; :meth:`problem`, too, where samplers are to be
    fitted to it (``sci tune``).

    Attributes:
        Config: Frozen dataclass of JSON-able fields: all that ``__init__`` needs.
        Request: Frozen dataclass: what a user asks for when sampling; drives ``--set``.
        Data: The data object that generation returns (``concat``, ``write``, ``read``, ``attrs``); its
            ``suffixes`` are the files it can be written to.
        name: The short name in ``config.json``; the registry finds the class by it.
        batch_size: Items a batch when sampling, unless the user says otherwise.
        tuned: Samplers that were fitted to these weights, by their network evaluations an item.

    Arguments:
        config: An instance of ``Config``.
    """

    Config: ClassVar[type] = NoFields
    Request: ClassVar[type] = NoFields
    Data: ClassVar[type] = list
    name: ClassVar[str] = ""
    batch_size: ClassVar[int] = 256

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        config = self.Config() if config is None else config
        if not isinstance(config, self.Config):
            raise TypeError(
                f"{type(self).__name__} takes a {self.Config.__name__}, not a {type(config).__name__}"
            )
        self.config = config
        self.training_record: dict[str, Any] = {}
        self.tuned: dict[int, Tuned] = {}

    @classmethod
    def prepare(cls, options: dict[str, Any], origin: Any = None) -> Prepared:
        """Loads the data of a recipe's ``[data]`` table.

        Arguments:
            options: The table.
            origin: The Config of the model to fine-tune, or None. The data are then encoded as that model
                sees them, and only what may differ from it is learnt.

        Returns:
            Training data, validation data, and the Config fields that the data decide.
        """
        raise TypeError(f"{cls.__name__} defines no prepare(options), so no recipe can train it")

    def losses(self, batch: Any, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of a batch: scalars that are means over items. All are logged.

        Arguments:
            batch: What ``TrainingData.collate`` gives, on the model's device.
            step: The training step, from 0.
            generator: The only source of randomness, on the model's device.
        """
        raise TypeError(f"{type(self).__name__} defines no losses, so it cannot be trained")

    def parameter_groups(self) -> list[ParameterGroup]:
        """The groups of parameters to optimise; by default all of them on the loss ``"loss"``."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

    def compile_networks(self) -> None:
        """Compiles the networks in place (``network.compile()``), which must not change any state key.

        Called by training when the recipe asks for it; worth a call before a long generation, too. By default
        nothing is compiled.
        """

    def generate(self, request: Any, items: Sequence[int], noise: Noise) -> Any:
        """Generates the items as one batch; callers have switched gradients off.

        Arguments:
            request: An instance of ``Request``.
            items: The items' numbers: they address the noise, so an item is the same in any batch.
            noise: One stream an item, on the model's device.

        Returns:
            An instance of ``Data`` of ``len(items)`` items; its ``attrs`` name the sampler and the NFE.
        """
        raise TypeError(f"{type(self).__name__} defines no generate, so it cannot be sampled")

    def problem(self, request: Any, items: Sequence[int], noise: Noise) -> Problem:
        """What a sampler is given to generate the items; arguments as for :meth:`generate`.

        A model that defines it calls it in :meth:`generate`, and can be tuned.
        """
        raise TypeError(
            f"{type(self).__name__} defines no problem(request, items, noise), so no sampler can be "
            "fitted to it: return a sci.model.Problem from it, what generate() gives its sampler"
        )

    def partners(self, request: Any) -> Sequence[Model]:
        """Other models that take part in a request: their weights decide the result as well."""
        return ()

    def tuned_sampler(self, steps: int) -> Multistep | None:
        """The sampler that was fitted to the model for so many evaluations an item, if there is one."""
        tuned = self.tuned.get(steps)
        return None if tuned is None else tuned.sampler()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters(), torch.empty(0)).device

    @classmethod
    def request(cls, **fields: Any) -> Any:
        """Makes a ``Request`` from keyword arguments.

        Raises:
            TypeError: For a field that the model does not know; its fields are listed.
            ValueError: For a value of the wrong type or range.
        """
        known = getattr(cls.Request, "__dataclass_fields__", {})
        for name in fields:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__}: {unknown('request field', name, known)} "
                    f"(all fields: {', '.join(sorted(known)) or 'none'})"
                )
        return build(cls.Request, fields, f"request to {cls.__name__}")

    @torch.no_grad()
    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool = True,
        **request: Any,
    ) -> Any:
        """Generates ``n`` items.

        Arguments:
            n: How many, at least 1.
            seed: The sampling seed. Item k depends on (seed, k) only: ``sample(10)`` begins ``sample(20)``.
            batch_size: Items at once; a matter of memory and speed, not of results.
            progress: Whether to show a progress bar.
            **request: The model's request fields, e.g. ``steps=20``.

        Returns:
            The model's data object, with the model, version, seed, request and date in ``attrs``.

        Raises:
            TypeError: For an unknown request field.
            ValueError: If ``n`` or ``batch_size`` is not a positive integer.
        """
        from tqdm.auto import tqdm

        n = positive("n", n)
        batch_size = positive("batch_size", self.batch_size if batch_size is None else batch_size)
        asked = self.request(**request)
        parts = []
        with evaluating(self), tqdm(total=n, unit="item", disable=not progress, leave=False) as bar:
            for start in range(0, n, batch_size):
                items = range(start, min(start + batch_size, n))
                parts.append(self.generate(asked, items, Noise(seed, items, device=self.device)))
                bar.update(len(items))
        data = self.Data.concat(parts)  # type: ignore[attr-defined]
        data.attrs.update(self.provenance(seed, asked))
        return data

    def provenance(self, seed: int, request: Any) -> dict[str, Any]:
        """What everything generated carries in its attributes: model, version, seed, request, date."""
        from sci import __version__

        return {
            "model": self.training_record.get("name", self.name),
            "version": __version__,
            "seed": seed,
            "request": plain(request),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def digest(self) -> str:
        """SHA-256 over the name, the configuration, the weights and the samplers fitted to them."""
        total = hashlib.sha256(files.digest([self.name, plain(self.config)]).encode())
        if self.tuned:
            total.update(files.digest(plain(self.tuned)).encode())
        for key, value in sorted(self.state_dict().items()):
            array = value.detach().cpu().contiguous()
            total.update(f"\0{key}\0{array.dtype}\0{tuple(array.shape)}\0".encode())
            total.update(array.reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()

    def save(
        self,
        folder: str | os.PathLike[str],
        card: str | None = None,
        dtype: torch.dtype | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes the checkpoint folder; each file appears whole, ``config.json`` last.

        Arguments:
            folder: The folder; an existing checkpoint in it is replaced, its card kept if none is given,
                its fitted samplers replaced by those of this model.
            card: The model card, in Markdown.
            dtype: ``torch.float16`` halves the size of floating weights; None keeps them as they are.
            training: How the model was trained; None keeps what the model carries.

        Returns:
            The folder.

        Raises:
            ValueError: If a weight is not finite, or overflows in ``dtype``.
        """
        folder = Path(folder)
        record = self.training_record if training is None else dict(training)
        checkpoint.write(
            folder, self.name, self.config, self.state_dict(), record, card, dtype, self.tuned
        )
        return folder

    @classmethod
    def load(cls: type[M], folder: str | os.PathLike[str]) -> M:
        """Reads a checkpoint folder.

        Arguments:
            folder: What :meth:`save` wrote.

        Returns:
            The model in evaluation mode on the CPU, its floating weights in float32.

        Raises:
            FileNotFoundError: If the folder or one of its files is missing.
            sci.files.FileDamaged: If a file is truncated, altered, or holds weights that are not finite.
            ValueError: If it is of a format, or has entries, that this version does not know.
            KeyError: If the registry does not know its model; close names are listed.
        """
        folder = Path(folder)
        entries = checkpoint.read_config(folder)
        kind = cls._kind(entries["model"], folder)
        weights = checkpoint.read_weights(folder, entries["weights_sha256"])
        model = kind(build(kind.Config, entries["config"], f"config of {folder / 'config.json'}"))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise files.FileDamaged(
                f"{folder / 'model.safetensors'} does not fit the configuration beside it: {error}"
            ) from error
        model.training_record = entries["training"]
        model.tuned = checkpoint.read_samplers(folder, entries["weights_sha256"])
        return model.eval()

    @classmethod
    def _kind(cls: type[M], name: str, folder: Path) -> type[M]:
        if cls.name and cls.name == name:
            return cls
        try:
            kind = registry.find_class(name)
        except KeyError as error:
            raise KeyError(f"{folder / 'config.json'}: {error.args[0]}") from error
        if not issubclass(kind, cls):
            raise ValueError(f"{folder} holds a {kind.__name__} ({name!r}), not a {cls.__name__}")
        return kind


def load(name: str | os.PathLike[str], device: str | torch.device = "cpu") -> Model:
    """Loads a model that ships, by name, or a checkpoint folder.

    Arguments:
        name: A name of ``sci models``, or the path of a checkpoint folder.
        device: Where to put it: ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for the best there is.

    Returns:
        The model, in evaluation mode.

    Raises:
        KeyError: If it is neither a known name (close names are listed) nor a folder.
        FileNotFoundError, sci.files.FileDamaged, ValueError: As :meth:`Model.load`.
    """
    chosen = choose_device(device)
    model = Model.load(find_folder(name))
    if os.fspath(name) in registry.models():
        model.training_record = {**model.training_record, "name": os.fspath(name)}
    return model.to(chosen)


def find_folder(name: str | os.PathLike[str]) -> Path:
    """The checkpoint folder of a model that ships, by name, or the given folder.

    Raises:
        KeyError: If it is neither a known name (close names are listed) nor a folder.
        FileNotFoundError: If it is the path of no folder.
    """
    text = os.fspath(name)
    if text in registry.models():
        return registry.model(text).folder
    if Path(text).is_dir():
        return Path(text)
    if len(Path(text).parts) > 1:
        raise FileNotFoundError(f"there is no checkpoint folder {text}")
    raise KeyError(
        f"{unknown('model', text, registry.models())} (there is no folder of that name either)"
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside, and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def positive(name: str, value: Any) -> int:
    """Checks a positive integer.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive integer")
    return int(value)
