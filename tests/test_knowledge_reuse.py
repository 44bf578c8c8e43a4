"""Knowledge distribution: layers before the one that is shut are not run again, nor what was measured before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
from shearfx.errors import CheckpointError
from shearfx.knowledge import KnowledgeDistribution, knowledge_distribution
from shearfx.selection import Tied
from tests.knowledge_cases import (
    MODELS,
    Case,
    analysed,
    case,
    slowly,
)

# -- reuse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_reuse_changes_nothing(name: str) -> None:
    found = analysed(name)
    assert found.reused > 0.1 and not found.note
    everything = case(name).analyse(reuse=False)
    assert everything.reused == 0 and everything.note == "reuse=False"
    assert everything.rows == found.rows and everything.loss == found.loss


class Blocks(nn.Module):
    """Two-layer blocks after one another, with whatever oddity a test is about."""

    def __init__(self, oddity: str = "") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), *[nn.ReLU(inplace=True)] * (oddity == "inplace"))
            for _ in range(4)
        )
        self.oddity = oddity

    def forward(self, x: Tensor) -> Tensor:
        if self.oddity == "twice":
            for block in (*self.blocks, *self.blocks):
                x = x + block(x)
            return x
        for block in self.blocks:
            y = block(x)
            if self.oddity == "changed":
                y += x
                x = y
            elif self.oddity == "random":
                x = x + y + 1e-3 * torch.randn(y.shape, dtype=y.dtype)
            else:
                x = x + y
        return x


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    value: Tensor = model(batch).square().mean()
    return value


@pytest.mark.parametrize(
    ("oddity", "reused", "note"),
    [
        ("", True, ""),
        ("inplace", True, ""),
        ("changed", True, ""),
        ("twice", False, "no list of layers"),
        ("random", False, "does not give the same"),
        ("none", False, "reuse=False"),
    ],
)
def test_layers_are_found_or_it_says_why_not(oddity: str, reused: bool, note: str) -> None:
    module = Blocks(oddity).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    graph = shearfx.trace(Blocks("").double().eval(), x) if oddity == "random" else shearfx.trace(module, x)
    tied = [Tied((g,), (1,)) for g in graph.groups if g.size == 6]
    assert len(tied) == 4
    scores = {g.name: torch.rand(g.size) for t in tied for g in t.groups}

    def analyse(reuse: bool) -> KnowledgeDistribution:
        return knowledge_distribution(
            graph, module, [x, x + 1], tied=tied, scores=scores, loss=squares, reuse=reuse, kl=False
        )

    found = analyse(oddity != "none")
    assert (found.reused > 0) == reused
    assert note in found.note and bool(note) == bool(found.note)
    assert all(row.kl is None for row in found.rows)
    if oddity != "random":
        assert found.rows == analyse(False).rows


def test_what_a_shut_pass_leaves_in_the_model_is_noticed() -> None:
    seen = [torch.zeros(())]

    class Writes(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            seen[0] = y.mean()
            return y

    class Reads(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x) * (1 + seen[0])  # type: ignore[no-untyped-call]
            return y

    module = Blocks().double().eval()
    module.blocks[2], module.blocks[3] = Writes(*module.blocks[2]), Reads(*module.blocks[3])  # type: ignore[misc]
    x = torch.randn(5, 4, dtype=torch.float64)
    graph = shearfx.trace(Blocks().double().eval(), x)
    tied = [Tied((g,), (1,)) for g in graph.groups if g.size == 6]
    scores = {g.name: torch.rand(g.size) for t in tied for g in t.groups}
    found = knowledge_distribution(graph, module, [x], tied=tied, scores=scores, loss=squares)
    assert found.reused == 0 and "does not give the same" in found.note


def test_layers_that_go_another_way_for_some_batch_are_all_run() -> None:
    class Early(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks if len(x) > 2 else list(self.blocks)[::-1]:
                x = x + block(x)
            return x

    module, x = Early().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    graph = shearfx.trace(Blocks().double().eval(), x)
    tied = [Tied((g,), (1,)) for g in graph.groups if g.size == 6]
    scores = {g.name: torch.rand(g.size) for t in tied for g in t.groups}
    batches = [x, x[:2], x + 1]
    found = knowledge_distribution(graph, module, batches, tied=tied, scores=scores, loss=squares)
    everything = knowledge_distribution(graph, module, batches, tied=tied, scores=scores, loss=squares, reuse=False)
    assert found.rows == everything.rows and found.reused == pytest.approx(2 / 3 * 6.5 / 12)


# -- going on ----------------------------------------------------------------------------------------------


@slowly
@given(cut=st.floats(0, 1), half=st.booleans())
def test_going_on_gives_the_same(tmp_path_factory: pytest.TempPathFactory, cut: float, half: bool) -> None:
    """Cut off after any byte: what is whole is used, the rest measured anew."""
    this = case("llama")
    path = tmp_path_factory.mktemp("cache") / "measured.jsonl"
    whole = this.analyse(cache=path)
    assert whole.rows == analysed("llama").rows
    content = path.read_bytes()
    assert content.count(b"\n") == 1 + len(this.batches) * (1 + len({(r.name, r.shut) for r in whole.rows}))
    path.write_bytes(content[: int(cut * len(content))] + b'{"batch": 1, "na\n' * half * (cut > 0.5))
    again: list[tuple[int, int]] = []
    resumed = this.analyse(cache=path, progress=lambda *now: again.append(now))
    assert resumed.rows == whole.rows and resumed.loss == whole.loss
    assert sorted(path.read_bytes().splitlines()) == sorted(content.splitlines())
    assert len(again) == 0 or again[-1][0] == again[-1][1]
    third: list[tuple[int, int]] = []
    assert this.analyse(cache=path, progress=lambda *now: third.append(now)).rows == whole.rows
    assert not third  # nothing is measured twice


def test_an_interrupted_analysis_goes_on_without_scoring_again(tmp_path: Path) -> None:
    this = case("llama")
    path = tmp_path / "measured.jsonl"
    whole = this.analyse(scores=None)

    def stop(done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        this.analyse(scores=None, cache=path, progress=stop)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += torch.is_grad_enabled()

    hook = this.model.register_forward_hook(count)
    told: list[int] = []
    try:
        resumed = this.analyse(scores=None, cache=path, progress=lambda done, _: told.append(done))
    finally:
        hook.remove()
    assert resumed.rows == whole.rows and told[0] == 14 and not calls


@pytest.mark.parametrize("what", ["ratios", "kl", "scores", "data", "weights", "tied"])
def test_measurements_of_another_request_are_refused(what: str, tmp_path: Path) -> None:
    this = Case("llama")
    this.analyse(cache=tmp_path / "cache")
    options: dict[str, Any] = {}
    if what == "ratios":
        options = {"ratios": (0.3,)}
    elif what == "kl":
        options = {"kl": False}
    elif what == "scores":
        options = {"scores": {name: -score for name, score in this.scores.items()}}
    elif what == "data":
        this.batches[0] = this.batches[0] + 1
    elif what == "tied":
        options = {"tied": this.tied[1:]}
    else:
        with torch.no_grad():
            next(this.model.parameters())[0, 0] += 1
    before = (tmp_path / "cache").read_bytes()
    with pytest.raises(CheckpointError, match="another request"):
        this.analyse(cache=tmp_path / "cache", **options)
    assert (tmp_path / "cache").read_bytes() == before


def test_damage_in_the_middle_is_named_by_line(tmp_path: Path) -> None:
    this, path = case("llama"), tmp_path / "cache"
    this.analyse(cache=path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3][:20] + "\n", *lines[4:]]))
    with pytest.raises(CheckpointError, match="line 4 is damaged"):
        this.analyse(cache=path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(CheckpointError, match="no cache"):
        this.analyse(cache=path)
