"""Reports as text, Markdown, HTML and JSON; the tour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy

from sci import demo
from sci.report import Report


@pytest.fixture
def report() -> Report:
    rows = {
        "model": {"valid": (0.9534, 0.0042), "FCD": 1.2, "MMD": 4.2e-5},
        "floor | real": {"valid": 1.0, "FCD": (0.21, 0.01)},
        "training set": {"valid": 1.0, "FCD": None, "time": 12345.678},
    }
    return Report("QM9 <test>", rows, {"n": 1000, "seeds": (0, 1), "nfe": 20, "cost": None})


def test_text_is_aligned(report: Report) -> None:
    lines = str(report).splitlines()
    assert lines[0] == "QM9 <test>" and lines[1].split() == ["valid", "FCD", "MMD", "time"]
    assert (
        len({len(line) for line in lines[1:5] if line.rstrip().endswith(("time", "-", "12346"))})
        == 1
    )
    assert "0.953 ± 0.004" in lines[2] and "4.20e-05" in lines[2]
    assert lines[3].split()[-2:] == ["-", "-"] and "0.210 ± 0.010" in lines[3]
    assert lines[5:] == ["n: 1000", "seeds: 0, 1", "nfe: 20"]


def test_markdown_and_html(report: Report) -> None:
    lines = report.to_markdown().splitlines()
    assert lines[0] == "**QM9 <test>**"
    assert lines[2] == "|  | valid | FCD | MMD | time |" and "floor \\| real" in lines[5]
    page = report.to_html()
    assert "QM9 &lt;test&gt;" in page and page.count("<tr>") == 4 and "<script" not in page
    assert report._repr_html_() == page


def test_round_trip_and_files(report: Report, tmp_path: Path) -> None:
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    for suffix in (".json", ".md", ".html", ".txt"):
        report.write(tmp_path / f"r{suffix}")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["rows"]["model"]["valid"] == {"value": 0.9534, "spread": 0.0042}
    assert (tmp_path / "r.md").read_text() == report.to_markdown()
    assert "<table>" in (tmp_path / "r.html").read_text()
    with pytest.raises(ValueError, match=r"'\.pdf'"):
        report.write(tmp_path / "r.pdf")


def test_bad_values_are_named() -> None:
    for value in ("high", (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="model / valid is"):
            Report("t", {"model": {"valid": value}})  # type: ignore[dict-item]


def test_special_numbers() -> None:
    text = str(
        Report("t", {"m": {"a": float("nan"), "b": 0.0, "c": -0.0123, "d": 2.5e7, "e": 150}})
    )
    assert text.splitlines()[2].split() == ["m", "nan", "0.000", "-0.0123", "2.50e+07", "150"]


def test_the_tour_is_one_file(tmp_path: Path) -> None:
    lines: list[str] = []
    path = demo.build(tmp_path / "demo", ["toys"], lines.append)
    page = path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    assert "Toys &amp; rings" in page and "A &lt;b&gt;toy" in page and "<svg" in page
    assert "<figcaption>the table</figcaption>" in page and "<table>" in page
    assert lines[0] == "toys ..." and lines[1].startswith("toys: Toys & rings (")
    assert 'src="http' not in page and "href=" not in page.replace("xlink:href=", "")


def test_the_tour_shows_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"toys": "toy:demo", "broken": "no_such_module_here:demo"}
    monkeypatch.setattr("sci.registry.demos", lambda: table)
    page = demo.build(tmp_path).read_text()
    assert "Not shown." in page and "no_such_module_here" in page and "Toys" in page
    with pytest.raises(RuntimeError, match="no section could be made"):
        demo.build(tmp_path, ["broken"])
    with pytest.raises(KeyError, match="did you mean 'toys'"):
        demo.build(tmp_path, ["toy"])
    monkeypatch.setattr("sci.registry.demos", dict)
    with pytest.raises(RuntimeError, match="no wing has"):
        demo.build(tmp_path)


def test_the_tour_takes_pictures_of_many_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    picture = Image.new("RGB", (2, 2))
    parts = [picture, picture._repr_png_(), "words"]
    monkeypatch.setattr(toy, "demo", lambda folder: demo.Section("One", parts=parts))
    page = demo.build(tmp_path, ["toys"]).read_text()
    assert page.count("data:image/png;base64,iVBOR") == 2 and "<p>words</p>" in page
    monkeypatch.setattr(toy, "demo", lambda folder: demo.Section("One", parts=[3.5]))
    with pytest.raises(TypeError, match="cannot show a float"):
        demo.build(tmp_path, ["toys"])
