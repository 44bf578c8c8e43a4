"""The page in a real browser: from a file, without network, by mouse and keyboard."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import shearfx
from shearfx.pruning_plan import of_cuts
from shearfx.viz import dot, page
from shearfx.viz.build import scene_of
from shearfx.viz.scene import Box, Scene, operators
from shearfx.viz.view import folded
from tests import zoo
from tests.browser import Browser, browser
from tests.tiny_models import traced

pytestmark = pytest.mark.slow  # starting a browser takes seconds

LAPTOP = {"width": 1366, "height": 768}
COUNT = "document.querySelectorAll({!r}).length"
OVERLAPS = """(() => {
  const boxes = [...document.querySelectorAll('svg text')]
    .filter((t) => t.textContent.trim() && t.getClientRects().length)
    .map((t) => [t.textContent, t.getBoundingClientRect()]);
  const found = [];
  for (let i = 0; i < boxes.length; i += 1) for (let j = 0; j < i; j += 1) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 1.5 && y > 0.3 * Math.min(a.height, b.height)) found.push(`${boxes[i][0]} over ${boxes[j][0]}`);
  }
  return found;
})()"""
"""Texts that lie on each other; boxes of fonts have room above and below the letters, so a touch of them is none."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Iterator[Any]:
    """Opens a scene; at the end, the page has to have had nothing to complain about."""
    chromium.problems.clear()

    def opened(scene: Scene, **options: Any) -> Browser:
        path = tmp_path / "graph.html"
        path.write_text(page.to_html(scene), encoding="utf-8")
        chromium.open(path, **{**LAPTOP, **options})
        chromium.settle()
        return chromium

    yield opened
    assert chromium.problems == []


@functools.cache
def llama() -> Scene:
    return scene_of(traced("llama")[1])


def colours(png: bytes) -> Counter[bytes]:
    """How many pixels of a screenshot have each colour."""
    at, data, width, channels = 8, b"", 0, 3
    while at < len(png):
        (size,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        content = png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, channels = struct.unpack(">I", content[:4])[0], {2: 3, 6: 4}[content[9]]
        elif kind == b"IDAT":
            data += content
        at += size + 12
    raw, line, found = zlib.decompress(data), width * channels, Counter[bytes]()
    before = bytearray(line)
    for start in range(0, len(raw), line + 1):
        row = bytearray(raw[start + 1 : start + 1 + line])
        for i in range(line):
            a, b = row[i - channels] if i >= channels else 0, before[i]
            c = before[i - channels] if i >= channels else 0
            p = a + b - c
            near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row[i] = (row[i] + (0, a, b, (a + b) // 2, near)[raw[start]]) % 256
        before = row
        found.update(bytes(row[i : i + 3]) for i in range(0, line, channels))
    return found


# -- what a reader does ------------------------------------------------------------------------------------


def test_every_node_of_the_folded_picture_is_there(show: Any) -> None:
    page_ = show(llama())
    page_.click("[title=fit]")
    wanted = {leaf.id if isinstance(leaf.item, Box) else f"op:{leaf.id}" for leaf in folded(llama()).leaves}
    found = set(page_.run("[...document.querySelectorAll('.leaf')].map((e) => e.dataset.id)"))
    assert found == wanted
    titles = page_.run("[...document.querySelectorAll('.box > .title')].map((e) => e.textContent)")
    assert any("layers.0" in t and "× 2" in t for t in titles)


def test_search_finds_modules_and_parameters_and_goes_there(show: Any) -> None:
    page_ = show(llama())
    page_.press("/", 191)
    page_.type("layers.1 down_proj.weight")
    hits = page_.run("[...document.querySelectorAll('#results button')].map((e) => e.textContent)")
    assert hits[0].startswith("model.layers.1.mlp.down_proj.weight")
    page_.press("Enter", 13)
    assert page_.run("document.querySelector('#detail h2').textContent") == "model.layers.1.mlp.down_proj"
    page_.run("chosen = document.querySelector('.leaf.chosen').getBoundingClientRect(), true")
    box = page_.run("[chosen.x, chosen.y, chosen.right, chosen.bottom]")
    assert 0 <= box[0] < box[2] <= LAPTOP["width"]
    assert 0 <= box[1] < box[3] <= LAPTOP["height"]
    page_.run("document.querySelector('input').focus()")
    page_.run("document.querySelector('input').select()")
    page_.type("no such thing")
    assert "nothing by that name" in page_.run("document.querySelector('#results').textContent")


def test_a_group_lights_up_every_member_and_says_its_certificate(show: Any) -> None:
    scene = llama()
    page_ = show(scene)
    page_.click("[title=fit]")
    group = next(g for g in scene.groups.values() if g.kind == "heads")
    page_.click(f"#legend [data-group='{group.name}']")
    lit = set(page_.run("[...document.querySelectorAll('.leaf.lit')].map((e) => e.dataset.id)"))
    wanted = {
        leaf.id if isinstance(leaf.item, Box) else f"op:{leaf.id}"
        for leaf in folded(scene).leaves
        if any(group.name in op.groups for copy in leaf.copies for op in copy)
    }
    assert lit == wanted
    said = page_.run("document.querySelector('#detail').textContent")
    for part in (group.name, group.certificate, f"{len(group.members)} members", *(m[0] for m in group.members)):
        assert part in said, part
    page_.press("Escape", 27)
    assert page_.run(COUNT.format(".leaf.lit")) == 0


def test_a_click_says_why_something_is_pinned(show: Any) -> None:
    page_ = show(llama())
    page_.click("[title=fit]")
    page_.click("[data-id='op:output'] .frame")
    said = page_.run("document.querySelector('#detail').textContent")
    assert "why is this pinned?" in said
    assert "a dim of the model's output" in said
    page_.click("[data-id='op:output'] .frame")
    page_.press("Escape", 27)
    norm = next(leaf.id for leaf in folded(llama()).leaves if leaf.item.title == "norm")
    page_.click(f"[data-id='{norm}'] .frame")
    assert "modeling_llama.py:" in page_.run("document.querySelector('#detail').textContent")


def test_folds_unfold_and_boxes_open_and_close_again(show: Any) -> None:
    page_ = show(llama())
    page_.click("[title=fit]")
    before = page_.run(COUNT.format(".leaf"))
    page_.click(".fold > .toggle")
    page_.click("[title=fit]")
    unfolded = page_.run(COUNT.format(".leaf"))
    assert unfolded > 1.5 * before
    page_.click(".fold > .toggle")
    page_.click("[title=fit]")
    assert page_.run(COUNT.format(".leaf")) == before
    norm = next(leaf for leaf in folded(llama()).leaves if leaf.item.title == "norm")
    assert isinstance(norm.item, Box)
    page_.run(f"document.querySelector(\"[data-toggle='{norm.id}']\").dispatchEvent(new MouseEvent('click'))")
    page_.click("[title=fit]")
    assert page_.run(COUNT.format(".leaf")) == before - 1 + len(norm.item.children)


def test_boxes_open_and_close_by_keyboard(show: Any) -> None:
    page_ = show(llama())
    norm = next(leaf for leaf in folded(llama()).leaves if leaf.item.title == "norm")
    leaf = COUNT.format(f".leaf[data-id='{norm.id}']")
    page_.press("/", 191)
    page_.type("model.norm")
    page_.press("Enter", 13)
    page_.run("document.querySelector('.opener').focus()")
    assert page_.run(leaf) == 1
    for said, there in (("close", 0), ("open", 1)):  # the focus stays, so the same key goes back
        page_.press("\r", 13)
        assert page_.run("document.activeElement.textContent") == said
        assert page_.run(leaf) == there


def test_paper_holds_the_whole_picture_and_its_legend(show: Any) -> None:
    page_ = show(llama())
    page_.run("for (let i = 0; i < 6; i += 1) document.querySelector(\"[title='zoom in']\").click()")
    page_.settle()
    where = "document.querySelector('.layer').getAttribute('transform')"
    zoomed, part = page_.run(where), page_.run(COUNT.format(".leaf"))
    leaves = len(folded(llama()).leaves)
    assert part < leaves
    page_.ask("Emulation.setEmulatedMedia", media="print")
    page_.run("dispatchEvent(new Event('beforeprint'))")
    assert page_.run(COUNT.format(".leaf .title")) == leaves
    page_.run("root = document.querySelector('.box .frame').getBoundingClientRect(), 1")
    page_.run("paper = picture.getBoundingClientRect(), 1")
    assert page_.run("root.x >= paper.x && root.right <= paper.right && root.bottom <= paper.bottom")
    assert page_.run("root.height > 0.9 * paper.height || root.width > 0.9 * paper.width")
    assert page_.run("legend.getBoundingClientRect().height > 50 && !detail.getClientRects().length")
    page_.ask("Emulation.setEmulatedMedia", media="")
    page_.run("dispatchEvent(new Event('afterprint'))")
    assert page_.run(where) == zoomed
    assert page_.run(COUNT.format(".leaf")) == part


def test_zoom_and_pan_by_mouse(show: Any) -> None:
    page_ = show(llama())
    where = "document.querySelector('.layer').getAttribute('transform')"
    before = page_.run(where)
    page_.ask("Input.dispatchMouseEvent", type="mouseWheel", x=500, y=300, deltaX=0, deltaY=-240)
    page_.until(f"{where} !== {before!r}")
    zoomed = page_.run(where)
    for kind, x in (("mousePressed", 60), ("mouseMoved", 160), ("mouseReleased", 160)):
        page_.ask("Input.dispatchMouseEvent", type=kind, x=x, y=600, button="left", buttons=1, clickCount=1)
    page_.until(f"{where} !== {zoomed!r}")


def test_a_plan_is_shown(show: Any) -> None:
    graph = traced("llama")[1]
    ffn = [g for g in graph.groups if g.kind == "ffn"]
    page_ = show(scene_of(graph, of_cuts(graph, {ffn[0].name: range(10), ffn[1].name: range(12)})))
    page_.click("[title=fit]")
    texts = page_.run("[...document.querySelectorAll('#picture text')].map((e) => e.textContent)")
    assert "ffn 24→10–12" in texts
    assert any("of its parameters cut" in text for text in texts)


def test_names_are_shown_and_never_run(show: Any) -> None:
    evil = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>'
    scene = llama()
    ops = list(operators(scene.root))
    first = dataclasses.replace(ops[0], title=evil, source=evil)
    root = dataclasses.replace(scene.root, title=evil, path=evil, children=(first, *scene.root.children[1:]))
    groups = {n: dataclasses.replace(g, reason=evil) for n, g in scene.groups.items()}
    page_ = show(dataclasses.replace(scene, title=evil, summary=evil, root=root, groups=groups))
    assert page_.run("document.querySelector('h1').textContent") == evil
    page_.click(f"[data-id='op:{first.name}'] .frame")
    page_.click("#legend [data-group]")
    page_.run("document.querySelector('input').focus()")
    page_.type("img")
    assert page_.run("window.hacked === undefined && document.images.length === 0")


# -- what it looks like ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_not_blank_and_follows_light_and_dark(show: Any, dark: bool) -> None:
    seen = colours(show(llama(), dark=dark, width=900, height=500).picture())
    paper = bytes.fromhex("0d1117" if dark else "ffffff")
    total = sum(seen.values())
    assert 0.05 < seen[paper] / total < 0.9
    for chip in ("b4b4b4", "e69f00" if not dark else "b4b4b4"):
        assert seen[bytes.fromhex(chip)] > 20, chip


@pytest.mark.parametrize("name", ["llama", "gpt2", "resnet_hf", "llama_lora", "mixtral", "t5"])
def test_texts_do_not_overlap(name: str, show: Any, tmp_path: Path) -> None:
    model = zoo.get(name).build()
    scene = scene_of(shearfx.trace(model.module, *model.args, **model.kwargs))
    page_ = show(scene, width=2400, height=8000)
    page_.click("[title=fit]")
    assert page_.run(COUNT.format("svg text")) > 100
    assert page_.run(OVERLAPS) == []
    page_.run("[a, b] = document.querySelectorAll('.label'), a.parentNode.append(a.cloneNode(true)), true")
    assert page_.run(OVERLAPS) != [], "one text on another has to be found"
    if shutil.which("dot"):
        path = tmp_path / "graph.svg"
        path.write_text(dot.to_svg(scene), encoding="utf-8")
        page_.open(path, width=2400, height=8000)
        assert page_.run(OVERLAPS) == []


def test_a_whole_model_of_8b_opens_quickly_and_unfolds(show: Any, chromium: Browser, tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, vocab_size=128256)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    graph = shearfx.trace(model, input_ids=torch.zeros(2, 16, dtype=torch.long, device="meta"), use_cache=False)
    start = time.process_time()
    scene = scene_of(graph)
    text = page.to_html(scene)
    assert time.process_time() - start < 5
    assert len(text.encode()) < 5_000_000
    page_ = show(scene)
    took = page_.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert took < 2000, f"{took} ms until it was there"
    page_.press("u", 85)
    page_.until(f"{COUNT.format('.leaf')} > 600")
    # what is drawn stays bounded wherever one looks: that is what keeps it smooth
    assert page_.run(COUNT.format("#picture *")) < 6000
    page_.run("document.querySelector('input').focus()")
    page_.type("layers.17.mlp.up_proj")
    page_.press("Enter", 13)
    assert page_.run("document.querySelector('#detail h2').textContent") == "model.layers.17.mlp.up_proj"
    assert page_.run(COUNT.format("#picture *")) < 3000
