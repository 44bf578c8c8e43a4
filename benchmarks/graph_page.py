"""The page of a Llama-3-8B: how long it takes to draw and to open, and whether it stays smooth unfolded.

python -m benchmarks.graph_page        # needs Chromium
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import shearfx
from benchmarks import record
from shearfx.viz import dot, page
from shearfx.viz.build import scene_of
from tests.browser import Browser, browser

MOVES = 60
"""Turns of the wheel, and then steps of a drag."""
FRAMES = """window.frames_ = []; window.last_ = performance.now();
(function next() {
  const now = performance.now();
  frames_.push(now - last_), last_ = now, requestAnimationFrame(next);
})();
true"""


def main() -> None:
    """Measure, and keep the table."""
    warnings.simplefilter("ignore")
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, vocab_size=128256)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    graph = shearfx.trace(model, input_ids=torch.zeros(2, 16, dtype=torch.long, device="meta"), use_cache=False)
    start = time.monotonic()
    html = page.to_html(scene_of(graph))
    drawn = time.monotonic() - start
    start = time.monotonic()
    svg = dot.to_svg(scene_of(graph))
    laid = time.monotonic() - start
    rows: list[dict[str, Any]] = [
        {"what": "draw the page", "figure": f"{drawn:.2f} s, {len(html.encode()) / 1e6:.2f} MB"},
        {"what": "draw the SVG, folded", "figure": f"{laid:.2f} s, {len(svg.encode()) / 1e6:.2f} MB"},
    ]
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as chromium:
        place = Path(folder) / "graph.html"
        place.write_text(html, encoding="utf-8")
        chromium.open(place, width=1366, height=768)
        opened = chromium.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
        rows.append({"what": "open it, until it is drawn", "figure": f"{opened / 1000:.2f} s"})
        chromium.press("u", 85)
        chromium.until("document.querySelectorAll('.leaf').length > 600")
        frames = moved(chromium)
    slow = sorted(frames)[int(0.95 * len(frames))]
    rows.append({"what": f"zoom and drag, unfolded: {len(frames)} frames",
                 "figure": f"median {statistics.median(frames):.0f} ms, 95% below {slow:.0f} ms"})  # fmt: skip
    record.keep("graph_page", "The dependency graph of a Llama-3-8B", record.table(rows, ("what", "figure")), rows)


def moved(chromium: Browser) -> list[float]:
    """Milliseconds from frame to frame while the picture is zoomed and dragged."""
    chromium.run(FRAMES)
    for _ in range(MOVES):
        chromium.ask("Input.dispatchMouseEvent", type="mouseWheel", x=500, y=400, deltaX=0, deltaY=120)
    held: dict[str, Any] = {"y": 400, "button": "left"}
    chromium.ask("Input.dispatchMouseEvent", type="mousePressed", x=300, clickCount=1, **held)
    for step in range(MOVES):
        chromium.ask("Input.dispatchMouseEvent", type="mouseMoved", x=300 + 5 * step, buttons=1, **held)
    chromium.ask("Input.dispatchMouseEvent", type="mouseReleased", x=300 + 5 * MOVES, clickCount=1, **held)
    return [float(number) for number in chromium.run("frames_.join(',')").split(",")]


if __name__ == "__main__":
    main()
