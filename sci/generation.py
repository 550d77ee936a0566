"""Generation of many items in chunks: resumable, seeded, over many processes.

While it works, ``<out>.parts/`` holds a manifest (which model, request, seed and layout) and one file a chunk,
each written atomically. The same call after an interruption makes only what is missing; a call with a larger
``n`` extends; one with another request is refused. Under ``torchrun`` rank r makes the chunks k with
k mod world = r, and rank 0 merges. Noise is addressed by item, so an item does not depend on who makes it; the
result is bit-equal for the same chunk layout, which the manifest holds.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sci import files
from sci.fields import plain
from sci.model import Model, choose_device, evaluating, positive
from sci.noise import Noise

__all__ = ["generate_to"]

_FORMAT = 1


def generate_to(
    model: Model,
    n: int,
    out: str | os.PathLike[str],
    seed: int = 0,
    request: Mapping[str, Any] | object | None = None,
    chunk: int = 1000,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
    overwrite: bool = False,
    keep_parts: bool = False,
) -> Path:
    """Generates items 0 to n - 1 into a file; safe to interrupt and to run again.

    Arguments:
        model: The model; it is moved to the device.
        n: How many items, at least 1.
        out: The file, or folder where the model's data are written as folders; the suffix chooses the format.
        seed: The sampling seed.
        request: The model's request: an instance, or its fields.
        chunk: Items a part file.
        batch_size: Items at once; the model's own by default.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
        progress: Whether to show a progress bar.
        overwrite: Whether to begin anew where ``out`` or its parts exist already.
        keep_parts: Whether to keep the part files after merging, so that a larger ``n`` can extend a file
            of any format. An HDF5 file is extended without them.

    Returns:
        The path of the finished file.

    Raises:
        FileExistsError: If ``out`` exists and cannot be extended.
        ValueError: If the parts are of another request, an argument is out of range, or the data cannot be
            written with this suffix.
        OSError: If the disk is full: the parts made so far stay, nothing is half-written.
    """
    n, chunk = positive("n", n), positive("chunk", chunk)
    batch_size = positive("batch_size", model.batch_size if batch_size is None else batch_size)
    if request is None or isinstance(request, Mapping):
        request = model.request(**(request or {}))
    known = getattr(model.Data, "suffixes", ())
    if known and Path(out).suffix not in known:
        raise ValueError(f"{out}: {model.Data.__name__} are written as {', '.join(known)}")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    parts = _Parts(Path(out), _identity(model, seed, request, chunk, batch_size), model.Data)
    if rank == 0 and not overwrite and parts.finished(n):
        return parts.out
    if rank != 0 and not parts.await_manifest(n, overwrite):
        return parts.out
    with files.exclusive(parts.folder / f"lock-{rank}", f"the file {out}"):
        if rank == 0:
            parts.prepare(n, overwrite, world)
        model.to(choose_device(device))
        work = _Work(model, request, seed, batch_size, parts)
        mine = [span for k, span in enumerate(parts.spans(n)) if k % world == rank]
        todo = [span for span in mine if not parts.path(span).exists()]
        with tqdm(total=n, unit="item", disable=not progress or rank != 0) as bar:
            bar.update(
                n - sum(stop - start for start, stop in (todo if world == 1 else parts.missing(n)))
            )
            for span in todo:
                work.make(span, bar)
            if rank == 0:
                parts.await_all(n, bar)
                work.merge(n, keep_parts)
    return parts.out


class _Parts:
    """The part files of one output: which spans of items there are, and which are made."""

    def __init__(self, out: Path, identity: dict[str, Any], data: Any) -> None:
        self.out, self.identity, self.data = out, identity, data
        self.folder = out.with_name(f"{out.name}.parts")
        self.manifest = self.folder / "manifest.json"
        self.suffix: str = getattr(data, "suffix", ".h5")
        self.prefix = 0

    def finished(self, n: int) -> bool:
        """Whether ``out`` holds exactly these items already, and no work is pending.

        Raises:
            FileExistsError: If ``out`` exists and is neither this result nor extensible to it.
        """
        if not self.out.exists() or self.manifest.exists():
            return False
        remedy = "give another file, or overwrite it (--overwrite)"
        if self.out.suffix != self.suffix:
            raise FileExistsError(
                f"{self.out} exists and only {self.suffix} files can be extended; {remedy}"
            )
        stored = files.read_attributes(self.out)
        attrs = stored.get("attrs", stored)  # data classes keep them nested, or as the root's own
        if attrs.get("generation") != files.digest(self.identity):
            raise FileExistsError(
                f"{self.out} was not made by this model, request, seed and layout; {remedy}"
            )
        if attrs["n"] > n:
            raise FileExistsError(
                f"{self.out} holds {attrs['n']} items already, more than {n}; {remedy}"
            )
        self.prefix = attrs["n"]
        return self.prefix == n

    def prepare(self, n: int, overwrite: bool, world: int) -> None:
        """Checks or writes the manifest; an HDF5 file that is to be extended becomes the first part."""
        if overwrite and self.manifest.exists():
            if world > 1:
                raise ValueError(f"several processes cannot overwrite; remove {self.folder} first")
            for path in self.folder.glob("items-*"):
                path.unlink()
            self.manifest.unlink()
        if self.manifest.exists() and not any(self.folder.glob("items-*")):
            self.manifest.unlink()  # of a request that made nothing, such as a refused one
        if self.manifest.exists():
            there = files.read_json(self.manifest)
            differing = sorted(k for k, v in self.identity.items() if there["identity"].get(k) != v)
            if differing:
                listed = "; ".join(f"{k}: {there['identity'].get(k)!r} there" for k in differing)
                raise ValueError(
                    f"{self.folder} holds parts of another request ({listed}): finish that one, give another "
                    "file, or begin anew (--overwrite)"
                )
            if there["n"] > n:
                raise ValueError(
                    f"{self.folder} holds parts of a request for {there['n']} items, more than {n}: give another "
                    "file, or begin anew (--overwrite)"
                )
            self.prefix = there["prefix"]
        else:
            for path in self.folder.glob("items-*"):
                path.unlink()  # no manifest says what they are: a kill while the parts were dropped leaves such
            if self.prefix:
                with files.atomic(self.path((0, self.prefix))) as temporary:
                    shutil.copyfile(self.out, temporary)
        files.write_json(self.manifest, {"identity": self.identity, "n": n, "prefix": self.prefix})

    def await_manifest(self, n: int, overwrite: bool) -> bool:
        """Waits until rank 0 has written the manifest of this job.

        Returns:
            False where ``out`` is finished and no manifest will come: rank 0 had nothing to do, or did all of it
            and dropped the parts before this rank looked.
        """
        while True:
            try:
                there = files.read_json(self.manifest)
            except FileNotFoundError:
                if not overwrite and self._complete(n):
                    return False
            else:
                if there["identity"] == self.identity and there["n"] == n:
                    self.prefix = there["prefix"]
                    return True
            time.sleep(0.2)

    def _complete(self, n: int) -> bool:
        """Whether ``out`` is there and, where its format says so, holds exactly these items."""
        try:
            return self.finished(n)
        except FileExistsError:
            # A format without attributes is there only when rank 0 has merged; another file is rank 0's to refuse.
            return self.out.suffix != self.suffix

    def spans(self, n: int) -> list[tuple[int, int]]:
        """The chunks of items 0 to n - 1, an extended file first."""
        chunk = self.identity["chunk"]
        edges = [0, *([self.prefix] if self.prefix else [])]
        edges += [edge for edge in range(chunk, n, chunk) if edge > self.prefix]
        return list(itertools.pairwise([*edges, n]))

    def path(self, span: tuple[int, int]) -> Path:
        """The part file of a chunk."""
        return self.folder / f"items-{span[0]:09d}-{span[1]:09d}{self.suffix}"

    def missing(self, n: int) -> list[tuple[int, int]]:
        """The chunks that are not made yet."""
        return [span for span in self.spans(n) if not self.path(span).exists()]

    def await_all(self, n: int, bar: Any) -> None:
        """Waits until the other ranks have made theirs."""
        while missing := self.missing(n):
            bar.n = n - sum(stop - start for start, stop in missing)
            bar.refresh()
            time.sleep(0.2)


class _Work:
    """Makes parts and merges them."""

    def __init__(
        self, model: Model, request: Any, seed: int, batch_size: int, parts: _Parts
    ) -> None:
        self.model, self.request, self.seed = model, request, seed
        self.batch_size, self.parts = batch_size, parts

    @torch.no_grad()
    def make(self, span: tuple[int, int], bar: Any = None) -> Any:
        """Generates a chunk and writes its part file."""
        made = []
        with evaluating(self.model):
            for start in range(span[0], span[1], self.batch_size):
                items = range(start, min(start + self.batch_size, span[1]))
                noise = Noise(self.seed, items, device=self.model.device)
                made.append(self.model.generate(self.request, items, noise))
                if bar is not None:
                    bar.update(len(items))
        data = self.parts.data.concat(made)
        with files.atomic(self.parts.path(span)) as temporary:
            data.write(temporary)
        return data

    def merge(self, n: int, keep_parts: bool) -> None:
        """Joins the parts into the output, and drops them."""
        spans = self.parts.spans(n)
        data = self.parts.data.concat([self._read(span) for span in spans])
        data.attrs.update(self.model.provenance(self.seed, self.request))
        data.attrs.update({"n": n, "generation": files.digest(self.parts.identity)})
        with files.atomic(self.parts.out) as temporary:
            data.write(temporary)
        if not keep_parts:
            shutil.rmtree(self.parts.folder)
            return
        kept = {self.parts.path(span) for span in spans}
        for path in set(self.parts.folder.glob("items-*")) - kept:
            path.unlink()

    def _read(self, span: tuple[int, int]) -> Any:
        try:
            return self.parts.data.read(self.parts.path(span))
        except files.FileDamaged:
            if span[0] == 0 and span[1] == self.parts.prefix:
                raise
            return self.make(span)


def _identity(model: Model, seed: int, request: Any, chunk: int, batch_size: int) -> dict[str, Any]:
    """What decides the bits of the result."""
    from sci import __version__

    return {
        "format_version": _FORMAT,
        "version": __version__,
        "model": model.name,
        "weights": [each.digest() for each in (model, *model.partners(request))],
        "request": plain(request),
        "seed": seed,
        "chunk": chunk,
        "batch_size": batch_size,
        "dtype": str(next((p.dtype for p in model.parameters()), torch.float32)),
    }
