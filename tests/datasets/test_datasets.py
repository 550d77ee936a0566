"""Cards, the search for files, and downloads from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sci import datasets

CONTENT = bytes(range(256)) * 40


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status, announced, body = {
            "/good": (200, len(CONTENT), CONTENT),
            "/other": (200, len(CONTENT), CONTENT[::-1]),
            "/short": (200, 1000, CONTENT[:1000]),
            "/broken": (200, len(CONTENT), CONTENT[:1000]),
        }.get(self.path, (404, 0, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing of the machine that could answer instead of the test's own server."""
    monkeypatch.delenv("SCI_DATA", raising=False)
    monkeypatch.setenv("SCI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def make(*urls: str, name: str = "numbers.bin", content: bytes = CONTENT) -> datasets.Card:
    """A card of one file with the given addresses."""
    form = datasets.Form(name, "bytes", hashlib.sha256(content).hexdigest(), len(content), urls)
    return datasets.Card(
        "numbers", "Numbers", "Bytes.", "none", "nowhere", (), (datasets.File((form,)),)
    )


def address(server: ThreadingHTTPServer, page: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{page}"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Cards


@pytest.mark.parametrize("name", datasets.available())
def test_card_is_complete(name: str) -> None:
    card = datasets.card(name)
    assert card.name == name
    assert card.licence and card.homepage.startswith("https://") and card.citation
    names = [form.name for file in card.files for form in file.forms]
    assert len(names) == len(set(names))
    assert name in str(card) and card.licence in str(card)
    packaged = Path(datasets.__file__).parent / "files"
    for file in card.files:
        assert any(form.urls for form in file.forms) or (packaged / file.name).is_file(), (
            f"{file.name} can be had nowhere"
        )
        for form in file.forms:
            for url in form.urls:
                assert url.startswith("https://")


def test_form_names_differ_between_cards() -> None:
    # A folder in SCI_DATA is searched by name over all data sets.
    names = [
        form.name
        for name in datasets.available()
        for file in datasets.card(name).files
        for form in file.forms
    ]
    assert len(names) == len(set(names))


def test_unknown_names_list_close_ones() -> None:
    with pytest.raises(KeyError, match="community-small"):
        datasets.card("comunity_small")
    with pytest.raises(KeyError, match="valid_idx_qm9.json"):
        datasets.path("qm9", file="valid_index_qm9.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title = ", "titel = "), "lacks title"),
        (("sha256 = ", "md5 = "), "lacks sha256"),
        (("bytes = ", "size = 3\nbytes = "), "unknown fields size"),
        (('sha256 = "', 'sha256 = "X'), "64 lower-case"),
        (('name = "tree.npz"', 'name = "../tree.npz"'), "bare name"),
        (('"https://', '"ftp://'), "must begin with https"),
        (("title = ", "title "), "not valid TOML"),
    ],
)
def test_malformed_card_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    packaged = Path(datasets.__file__).parent / "cards" / "tree.toml"
    text = packaged.read_text()
    assert change[0] in text
    broken = tmp_path / "broken.toml"
    broken.write_text(text.replace(*change))
    with pytest.raises(ValueError, match=message) as caught:
        datasets.read_card(broken)
    assert "broken.toml" in str(caught.value)
    assert datasets.read_card(packaged) == datasets.card("tree")


# Files that ship


def test_qm9_ships_and_is_whole() -> None:
    with gzip.open(datasets.path("qm9"), "rt") as stream:
        lines = stream.read().splitlines()
    assert lines[0].split(",") == ["gdb_index", "smiles", "canonical", "characterized"]
    assert len(lines) == 1 + 133_885
    rows = json.loads(datasets.path("qm9", file="valid_idx_qm9.json").read_text())["valid_idxs"]
    assert len(set(rows)) == 13_082


def test_shared_data_match_their_cards(shared: Path) -> None:
    for name in datasets.available():
        for file in datasets.card(name).files:
            found = datasets.path(name, folder=shared, file=file.name)
            assert found.name == file.name
            assert found.is_relative_to(shared)


# The search


def test_order_of_places(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = make()
    places = [tmp_path / "named" / "a" / "b", tmp_path / "data", cache / "numbers"]
    for place in places:
        place.mkdir(parents=True)
        (place / "numbers.bin").write_bytes(CONTENT)
    monkeypatch.setenv("SCI_DATA", str(tmp_path / "data"))
    assert datasets.path(card, folder=tmp_path / "named") == places[0] / "numbers.bin"
    assert datasets.path(card) == places[1] / "numbers.bin"
    (places[1] / "numbers.bin").unlink()
    assert datasets.path(card) == places[2] / "numbers.bin"


def test_a_named_folder_may_begin_at_home(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers.bin").write_bytes(CONTENT)
    assert datasets.path(make(), folder="~/data") == tmp_path / "data" / "numbers.bin"


def test_search_is_three_levels_deep_and_skips_hidden_folders(tmp_path: Path) -> None:
    deep = tmp_path / "named" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "numbers.bin").write_bytes(CONTENT)
    assert datasets.path(make(), folder=tmp_path / "named") == deep / "numbers.bin"
    with pytest.raises(FileNotFoundError):
        datasets.path(make(), folder=tmp_path)
    (deep.parent.parent).rename(tmp_path / "named" / ".a")
    with pytest.raises(FileNotFoundError):
        datasets.path(make(), folder=tmp_path / "named")


def test_damaged_file_is_named_unless_an_intact_one_is_there(tmp_path: Path) -> None:
    first, second = tmp_path / "named" / "a", tmp_path / "named" / "b"
    first.mkdir(parents=True)
    second.mkdir()
    (first / "numbers.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(
        datasets.FileDamaged, match="10239 bytes where the card says 10240"
    ) as caught:
        datasets.path(make(), folder=tmp_path / "named")
    assert str(first / "numbers.bin") in str(caught.value)
    (first / "numbers.bin").write_bytes(CONTENT[::-1])
    with pytest.raises(datasets.FileDamaged, match="SHA-256"):
        datasets.path(make(), folder=tmp_path / "named")
    (second / "numbers.bin").write_bytes(CONTENT)
    assert datasets.path(make(), folder=tmp_path / "named") == second / "numbers.bin"


def test_places_that_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="folder=.*nowhere.* is not a folder"):
        datasets.path("qm9", folder=tmp_path / "nowhere")
    monkeypatch.setenv("SCI_DATA", str(tmp_path / "lost"))
    with pytest.raises(FileNotFoundError, match="SCI_DATA=.*lost.* is not a folder"):
        datasets.path("qm9")


def test_either_form_is_found_and_the_preferred_one_wins(tmp_path: Path) -> None:
    ours, theirs = make().files[0].forms[0], make(name="theirs.bin", content=b"theirs").files[0]
    card = replace(make(), files=(datasets.File((ours, *theirs.forms)),))
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "theirs.bin").write_bytes(b"theirs")
    assert datasets.path(card, folder=tmp_path / "named").name == "theirs.bin"
    (tmp_path / "named" / "numbers.bin").write_bytes(CONTENT)
    assert datasets.path(card, folder=tmp_path / "named").name == "numbers.bin"
    assert datasets.path(card, folder=tmp_path / "named", file="theirs.bin").name == "numbers.bin"


# Downloads


def test_download_once(server: ThreadingHTTPServer, cache: Path) -> None:
    card = make(address(server, "good"))
    found = datasets.path(card, progress=False)
    assert found == cache / "numbers" / "numbers.bin"
    assert found.read_bytes() == CONTENT
    assert datasets.path(card) == found
    assert server.asked == ["/good"]  # type: ignore[attr-defined]


def test_download_shows_progress(
    server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets.path(make(address(server, "good")))
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "error", "message"),
    [
        ("other", datasets.FileDamaged, "SHA-256"),
        ("short", datasets.FileDamaged, "1000 bytes where the card says 10240"),
        ("broken", FileNotFoundError, "the connection broke before the end"),
        ("missing", FileNotFoundError, "the server answered 404"),
    ],
)
def test_failed_download_leaves_nothing(
    server: ThreadingHTTPServer, cache: Path, page: str, error: type[Exception], message: str
) -> None:
    url = address(server, page)
    with pytest.raises(error, match=message) as caught:
        datasets.path(make(url), progress=False)
    for needed in (url, "numbers.bin", "SCI_DATA", "folder="):
        assert needed in str(caught.value)
    assert files(cache) == []


def test_no_server(cache: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    url = address(server, "good")
    server.server_close()
    with pytest.raises(FileNotFoundError, match="no connection") as caught:
        datasets.path(make(url), progress=False)
    assert url in str(caught.value) and str(cache) in str(caught.value)
    assert files(cache) == []


def test_no_address(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no address offers it.*from nowhere"):
        datasets.path(make())


def test_next_address_is_tried(server: ThreadingHTTPServer, cache: Path) -> None:
    pages = ("missing", "broken", "other", "good")
    card = make(*(address(server, page) for page in pages))
    assert datasets.path(card, progress=False).read_bytes() == CONTENT
    assert server.asked == [f"/{page}" for page in pages]  # type: ignore[attr-defined]
    assert files(cache) == ["numbers.bin"]


def test_damaged_cache_is_repaired(server: ThreadingHTTPServer, cache: Path) -> None:
    (cache / "numbers").mkdir(parents=True)
    (cache / "numbers" / "numbers.bin").write_bytes(CONTENT[:-1])
    found = datasets.path(make(address(server, "good")), progress=False)
    assert found.read_bytes() == CONTENT


def test_damaged_cache_is_not_used(server: ThreadingHTTPServer, cache: Path) -> None:
    (cache / "numbers").mkdir(parents=True)
    (cache / "numbers" / "numbers.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(FileNotFoundError, match="404"):
        datasets.path(make(address(server, "missing")), progress=False)


def test_interrupted_download_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: object, url: str, output: str, _: object) -> None:
        Path(output).write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", half)
    with pytest.raises(KeyboardInterrupt):
        datasets.path(make("http://127.0.0.1/good"), progress=False)
    assert files(cache) == []


def test_many_at_once(server: ThreadingHTTPServer, cache: Path) -> None:
    card = make(address(server, "good"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: datasets.path(card, progress=False), range(8)))
    assert set(found) == {cache / "numbers" / "numbers.bin"}
    assert found[0].read_bytes() == CONTENT
    assert files(cache) == ["numbers.bin"]


def test_cache_that_cannot_be_made(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCI_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="name another one in SCI_CACHE"):
        datasets.path(make(address(server, "good")), progress=False)
    assert server.asked == []  # type: ignore[attr-defined]
