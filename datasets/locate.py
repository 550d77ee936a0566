"""From a card to a file on this disk whose checksum is right.

Places are searched in this order: the folder that the caller names, the folder in ``SCI_DATA``, the
files that ship with the package, the cache of earlier downloads. The first file with the right name *and*
the right SHA-256 wins. Only then is anything downloaded, to a temporary name in the cache that is moved
into place after its checksum has been verified. So the bytes are the same wherever they came from, and an
interrupted download leaves nothing behind that could be mistaken for data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sci.datasets.catalogue import Card, File, Form, card

if TYPE_CHECKING:
    from requests.exceptions import RequestException

_PACKAGED = Path(__file__).parent / "files"
_DEPTH = 3
_TIMEOUT = 30.0


class FileDamaged(ValueError):
    """A file has the right name and the wrong content: it is truncated, damaged or another file."""


def path(
    name: str | Card,
    folder: str | os.PathLike[str] | None = None,
    file: str | None = None,
    progress: bool = True,
) -> Path:
    """Where a data file lies on this machine; downloads it the first time if it is nowhere.

    Arguments:
        name: one of :func:`sci.datasets.available`, or a card from :func:`sci.datasets.read_card`.
        folder: a folder to search before all others, three levels deep.
        file: which file of a data set that has several; default: the main one, which its card lists first.
        progress: whether a download shows a progress bar.

    Returns:
        The path of a file with a verified checksum. Some files exist in more than one form (see
        :attr:`sci.datasets.File.forms`); the name of the path says which one this is.

    Raises:
        KeyError: no such data set, or no such file of it; close names are listed.
        FileDamaged: a file of that name has another content than the card says, or a download does.
        FileNotFoundError: ``folder`` or ``SCI_DATA`` is no folder, or the file is nowhere and cannot be downloaded.
        OSError: the cache cannot be written; ``SCI_CACHE`` names another.
    """
    which = name if isinstance(name, Card) else card(name)
    wanted = which.file(file)
    named = (
        [(f"folder={os.fspath(folder)!r}", Path(folder).expanduser())] if folder is not None else []
    )
    if environment := os.environ.get("SCI_DATA"):
        named.append((f"SCI_DATA={environment!r}", Path(environment).expanduser()))
    for origin, place in named:
        if not place.is_dir():
            raise FileNotFoundError(
                f"{origin} is not a folder; name the folder that holds the data, or leave it out"
            )
        if found := _search(place, wanted, which.name, origin):
            return found
    cache = cache_folder() / which.name
    for place in (_PACKAGED, cache):
        for form in wanted.forms:
            if (candidate := place / form.name).is_file() and _fault(candidate, form) is None:
                return candidate
    return _download(which, wanted, cache, [str(place) for _, place in named], progress)


def cache_folder() -> Path:
    """The folder that downloads go to: ``SCI_CACHE``, or ``sciflows`` in the cache folder of the platform."""
    if environment := os.environ.get("SCI_CACHE"):
        return Path(environment).expanduser()
    import pooch

    return Path(pooch.os_cache("sciflows"))


def _search(root: Path, file: File, dataset: str, origin: str) -> Path | None:
    """The file of the earliest form that lies under ``root``; raises if only damaged ones do."""
    paths: dict[str, list[Path]] = {form.name: [] for form in file.forms}
    for candidate in _walk(root, _DEPTH):
        if candidate.name in paths:
            paths[candidate.name].append(candidate)
    faults = []
    for form in file.forms:
        for candidate in paths[form.name]:
            fault = _fault(candidate, form)
            if fault is None:
                return candidate
            faults.append(f"{candidate} {fault}")
    if faults:
        raise FileDamaged(
            f"{origin} has no intact copy of {file.name} of data set {dataset!r}: {'; '.join(faults)}. "
            "Replace the file, rename it if it is something else, or look elsewhere (folder=, SCI_DATA)."
        )
    return None


def _walk(root: Path, depth: int) -> Iterator[Path]:
    """All files under ``root``, in a fixed order, hidden folders left out, ``depth`` levels of folders deep."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except PermissionError:
        return
    yield from (Path(entry.path) for entry in entries if entry.is_file())
    if depth > 0:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _walk(Path(entry.path), depth - 1)


def _fault(path: Path, form: Form) -> str | None:
    """What is wrong with a file, or None."""
    size = path.stat().st_size
    if size != form.bytes:
        return f"has {size} bytes where the card says {form.bytes}"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return (
        None if digest == form.sha256 else f"has SHA-256 {digest} where the card says {form.sha256}"
    )


def _download(which: Card, file: File, cache: Path, looked: list[str], progress: bool) -> Path:
    """Tries every address of every form; the first intact file wins."""
    import pooch
    from requests.exceptions import RequestException

    if any(form.urls for form in file.forms):
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"the folder for downloads, {cache}, cannot be made ({error.strerror}); name another one in SCI_CACHE"
            ) from error
    damaged, unreachable = [], []
    for form in file.forms:

        def fetch(url: str, output: str, _: object, form: Form = form) -> None:
            pooch.HTTPDownloader(progressbar=progress, timeout=_TIMEOUT)(url, output, None)
            if fault := _fault(Path(output), form):
                raise FileDamaged(f"{url} {fault}")

        for url in form.urls:
            try:
                pooch.retrieve(
                    url, f"sha256:{form.sha256}", fname=form.name, path=cache, downloader=fetch
                )
                return cache / form.name
            except FileDamaged as error:
                damaged.append(str(error))
            except RequestException as error:
                unreachable.append(f"{url}: {_reason(error)}")
    looked = [*looked, str(_PACKAGED), str(cache)]
    by_hand = [f"{url} (save it as {form.name})" for form in file.forms for url in form.urls]
    remedy = (
        f"Get it from {' or '.join(by_hand) or which.homepage} into a folder, and name that folder in "
        f"SCI_DATA or in sci.datasets.path({which.name!r}, folder=...)."
    )
    if damaged:
        raise FileDamaged(
            f"the download of {file.name} of data set {which.name!r} is not the file of its card and was thrown away: "
            f"{'; '.join(damaged + unreachable)}. Try again; if it stays so, the address serves another file. {remedy}"
        )
    reason = (
        "no address offers it"
        if not by_hand
        else f"it could not be downloaded: {'; '.join(unreachable)}"
    )
    raise FileNotFoundError(
        f"{file.name} of data set {which.name!r} is not in {', '.join(looked)}, and {reason}. {remedy}"
    )


def _reason(error: RequestException) -> str:
    """What went wrong with a request, without the layers of the libraries that noticed."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code}"
    if isinstance(error, exceptions.Timeout):
        return f"no answer within {_TIMEOUT:g} seconds"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke before the end"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection"
    return f"{type(error).__name__}: {error}"
