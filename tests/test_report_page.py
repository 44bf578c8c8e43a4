"""The report in a real browser: from a file, without network; charts are drawn and saved, names stay text."""

from __future__ import annotations

import base64
import csv
import json
import struct
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shearfx.viz.report.page import report
from tests.browser import Browser, browser
from tests.report_runs import write_run
from tests.test_viz_page import LAPTOP, OVERLAPS, colours

pytestmark = pytest.mark.slow  # starting a browser takes seconds

CHARTS = {"perplexity", "kept-width", "knowledge", "fading", "pruning-loss", "saliency", "degradation", "sampling",
          "recovery-loss"}  # fmt: skip
EVIL = "<img src=x onerror=\"document.title='broken'\"></script><b>"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Iterator[Any]:
    """Opens the report on some runs; at the end, the page has to have had nothing to complain about."""
    chromium.problems.clear()

    def opened(*runs: Path, **options: Any) -> Browser:
        path = tmp_path / "report.html"
        path.write_bytes(report(runs).encode(errors="replace"))
        chromium.open(path, **{**LAPTOP, **options})
        chromium.settle()
        return chromium

    yield opened
    assert chromium.problems == []


def figures(page: Browser) -> list[str]:
    return list(page.run("[...document.querySelectorAll('figure')].map((e) => e.dataset.name)"))


def drawn(page: Browser, name: str) -> dict[bytes, int]:
    """Colours of a chart on the screen."""
    box = page.run(
        f"(b => [b.x + scrollX, b.y + scrollY, b.width, b.height])"
        f"(document.querySelector('figure[data-name=\"{name}\"] .chart').getBoundingClientRect())"
    )
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 0.5}
    shot = page.ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    return dict(colours(base64.b64decode(shot["data"])))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_chart_is_drawn_and_no_text_lies_on_another(show: Any, tmp_path: Path, dark: bool) -> None:
    page = show(write_run(tmp_path / "run"), dark=dark)
    assert set(figures(page)) == CHARTS
    for name in CHARTS:
        found = drawn(page, name)
        (background, most) = max(found.items(), key=lambda one: one[1])
        assert background == (bytes.fromhex("0d1117") if dark else b"\xff\xff\xff"), name
        assert len(found) > 10 and sum(found.values()) - most > 200, name  # a blank one has its background alone
    assert page.run(OVERLAPS) == []
    assert page.run("document.documentElement.scrollWidth") == LAPTOP["width"]
    marks = "[...document.querySelectorAll('figure')].every((e) => e.querySelector('svg.legend text') && "
    assert page.run(marks + "e.querySelector('svg[aria-description]'))")


@pytest.mark.parametrize("width", [420, 800, 1920])
def test_no_text_lies_on_another_at_other_widths_or_with_runs_beside_each_other(
    show: Any, tmp_path: Path, width: int
) -> None:
    page = show(write_run(tmp_path / "a"), write_run(tmp_path / "b", progressive=False), width=width)
    assert page.run(OVERLAPS) == []
    assert page.run("document.documentElement.scrollWidth") <= width


def test_hostile_names_are_shown_and_not_executed(show: Any, tmp_path: Path) -> None:
    page = show(write_run(tmp_path / "run", sources=(EVIL, "wiki"), path=f"{EVIL}.layers", model=f"/m/{EVIL}"))
    assert "broken" not in page.run("document.title").split("'")[0]
    assert page.run("document.querySelectorAll('img, main b').length") == 0
    assert EVIL in page.run("document.querySelector('[data-name=result]').textContent")
    assert set(figures(page)) == CHARTS


def test_charts_and_tables_are_saved(show: Any, tmp_path: Path) -> None:
    page = show(write_run(tmp_path / "run"))
    saved = tmp_path / "saved"
    saved.mkdir()
    page.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(saved))

    def save(name: str, kind: str) -> bytes:
        tools = f"document.querySelector('[data-name=\"{name}\"] .saves')"
        page.run(f"[...{tools}.children].find((e) => e.textContent === '{kind}').click()")
        file = saved / f"{name}.{kind.lower()}"
        end = time.monotonic() + 30
        while not file.is_file() or not file.stat().st_size:
            assert time.monotonic() < end, f"{file.name} was not saved"
            time.sleep(0.05)
        return file.read_bytes()

    for name in CHARTS:
        root = ET.fromstring(save(name, "SVG"))
        texts = [text for one in root.iter("{http://www.w3.org/2000/svg}text") if (text := "".join(one.itertext()))]
        assert len(texts) > 4, name  # the title, the legend and the axes
    png = save("kept-width", "PNG")
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", png[16:20])[0] > LAPTOP["width"]
    assert len(colours(png)) > 10
    table = list(csv.reader(save("result", "CSV").decode().splitlines()))
    assert table[0] == ["", "before", "cut", "recovered", "change"]
    assert table[1][:4] == ["parameters", "10000", "7000", "7000"]
    points = list(csv.DictReader(save("degradation", "CSV").decode().splitlines()))
    assert {row["source"] for row in points} == {"stories", "wiki"} and float(points[0]["value"]) == 1.1


def test_hovering_tells_the_numbers(show: Any, tmp_path: Path) -> None:
    page = show(write_run(tmp_path / "run"))
    where = "document.querySelector('figure[data-name=recovery-loss] .chart svg:not(.legend)')"
    box = page.run(f"{where}.scrollIntoView({{block: 'center'}}), (b => [b.x, b.y, b.width, b.height])"
                   f"({where}.getBoundingClientRect())")  # fmt: skip
    before = page.run(f"{where}.textContent")
    page.ask("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] / 2, y=box[1] + box[3] / 2)
    page.settle()
    told = page.run(f"{where}.textContent")
    assert "running mean" in told and "running mean" not in before


def test_paper_is_light_and_holds_everything(show: Any, tmp_path: Path) -> None:
    page = show(write_run(tmp_path / "run"), dark=True)
    pdf = base64.b64decode(page.ask("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    assert page.run("[...document.querySelectorAll('details')].every((e) => e.open)")


def test_a_damaged_run_is_a_page_that_says_what_is_missing(show: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    (run / "stages.json").write_text('{"dense": [')
    (run / "plan.json").unlink()
    page = show(run)
    told = page.run("document.querySelector('.missing').textContent")
    assert "stages.json is damaged" in told and "plan.json" in told
    assert "unfinished" in page.run("document.querySelector('.state').textContent")
    assert "recovery-loss" in figures(page)
    assert json.loads(page.run("document.getElementById('data').textContent"))["runs"]
