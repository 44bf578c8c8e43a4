"""What saliencies see in a run: fresh windows for each cut, and labels that make Fisher information what it is."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
from shearfx.config import ShearConfig
from shearfx.gating import Gates
from shearfx.gradients import IGNORED
from shearfx.pipeline.scoring_data import Moved, ScoringData, call_loss, drawn_labels
from shearfx.pipeline.study import Study
from shearfx.saliency import find
from tests.tiny_runs import Telling, options, tiny_llama, write_text
from tests.tiny_tokenizers import byte_tokenizer


class Certain(nn.Module):
    """After each token, surely the one that is larger by one; or, where unsure, that or the one after."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        logits = torch.full((*input_ids.shape, 300), -1e4)
        logits.scatter_(2, input_ids[..., None] + 1, float(torch.log(self.share)))
        logits.scatter_(2, input_ids[..., None] + 2, float(torch.log1p(-self.share)))
        return SimpleNamespace(logits=logits)


@given(st.integers(1, 3), st.integers(2, 140), st.integers(0, 5))
def test_what_is_drawn_follows_the_token_before(rows: int, tokens: int, seed: int) -> None:
    ids = torch.arange(rows * tokens).view(rows, tokens) % 250
    labels = drawn_labels(Certain(), ids, torch.Generator().manual_seed(seed))
    assert labels.dtype == torch.int64 and (labels[:, 0] == IGNORED).all()
    assert torch.equal(labels[:, 1:], ids[:, :-1] + 1)


def test_what_is_drawn_is_as_likely_as_the_model_says() -> None:
    ids = torch.zeros(40, 101, dtype=torch.int64)
    labels = drawn_labels(Certain(0.7), ids, torch.Generator().manual_seed(0))[:, 1:]
    assert set(labels.unique().tolist()) == {1, 2}
    assert (labels == 1).double().mean() == pytest.approx(0.7, abs=0.03)  # four standard errors
    again = drawn_labels(Certain(0.7), ids, torch.Generator().manual_seed(0))[:, 1:]
    assert torch.equal(labels, again)


def test_fisher_information_of_drawn_labels_measures_how_far_the_model_moves() -> None:
    """KL(full || with a gate at 1 - e) is e^2 / 2 times it, to second order; with the text's labels it is not."""
    model = tiny_llama().double()
    ids = torch.tensor([[5, 9, 200, 31, 7, 2, 77, 120]])
    graph = shearfx.trace(model, input_ids=ids, use_cache=False)
    group = next(group for group in graph.groups if group.kind == "ffn")
    many = ids.expand(50, -1)
    batches = [
        {"input_ids": many, "labels": drawn_labels(model, many, torch.Generator().manual_seed(seed))}
        for seed in range(20)
    ]

    def fisher(data: list[Any]) -> Tensor:
        found = find("fisher").score(graph, model, groups=[group], data=data, loss=call_loss)
        return found[group.name].double() * (50 * 7) ** 2  # of the sum over a window, not the mean over a batch

    step, moved = 1e-2, []
    full = logs(model, ids)
    for structure in range(8):
        values = torch.ones(group.size, dtype=torch.float64)
        values[structure] -= step
        with Gates(graph, model, [group]) as gates:
            gates.set({group.name: values})
            moved.append(float((full.exp() * (full - logs(model, ids))).sum()) * 2 / step**2)
    exact = torch.tensor(moved, dtype=torch.float64)
    drawn = fisher(batches)[:8]
    text = fisher([many])[:8]
    assert torch.allclose(drawn, exact, rtol=0.25)  # a thousand draws
    assert not torch.allclose(text, exact, rtol=0.5)


def logs(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    return found


def data_of(folder: Path, saliency: str, **more: Any) -> tuple[ScoringData, ShearConfig]:
    asked = options(write_text(folder / "text.txt"), saliency=saliency, **more)
    config = ShearConfig.of_mapping(asked)
    model = tiny_llama()
    study = Study(model, byte_tokenizer(), config, Telling())
    study.read()
    return ScoringData(study, model, find(saliency), config.cuts), config


def test_each_cut_has_windows_of_its_own(tmp_path: Path) -> None:
    data, config = data_of(tmp_path, "fisher", cuts=3, scoring_windows=5)
    seen: set[tuple[int, ...]] = set()
    for cut in (1, 2, 3):
        batches = data.of(cut - 1)
        assert sum(len(batch["input_ids"]) for batch in batches) == 5
        assert all(len(batch["input_ids"]) <= config.batch_size for batch in batches)
        assert all(batch["labels"].shape == batch["input_ids"].shape for batch in batches)
        assert any(bool((batch["labels"][:, 1:] != batch["input_ids"][:, 1:]).any()) for batch in batches)
        rows = {tuple(row.tolist()) for batch in batches for row in batch["input_ids"]}
        assert not rows & seen
        seen |= rows


@pytest.mark.parametrize(("saliency", "more"), [("taylor", {}), ("fisher", {"scoring_labels": "text"})])
def test_text_is_what_the_others_see(tmp_path: Path, saliency: str, more: dict[str, Any]) -> None:
    data, _ = data_of(tmp_path, saliency, **more)
    assert all(isinstance(batch, Tensor) for batch in data.of(0))


def study_of(**more: Any) -> Study:
    study = Study(tiny_llama(max_position_embeddings=100), byte_tokenizer(), ShearConfig.of_mapping(more), Telling())
    study.read()
    return study


def test_long_windows_are_neighbours(tmp_path: Path) -> None:
    """As long as the model has positions for: three windows of 32 for 100."""
    study = study_of(**options(write_text(tmp_path / "text.txt")))
    (text,) = study.train["pretrain"]
    found = study.long_windows(4, seed=1)
    assert [tuple(ids.shape) for ids in found] == [(1, 96)] * 4
    runs = text.ids[: len(text) // 3 * 3].view(-1, 96).tolist()
    at = [runs.index(ids[0].tolist()) for ids in found]
    assert len(set(at)) == 4
    assert len(study.long_windows(10_000, seed=1)) == len(runs)  # all there are
    assert not all(torch.equal(a, b) for a, b in zip(found, study.long_windows(4, seed=2), strict=True))


def test_long_windows_take_sources_in_turn(tmp_path: Path) -> None:
    """A source shorter than such a window gives what it has."""
    short = tmp_path / "short.txt"
    short.write_text(" ".join(f"{n}" for n in range(40)))
    asked = options(write_text(tmp_path / "text.txt"), validation=1)
    study = study_of(**asked | {"pretrain": (*asked["pretrain"], str(short))})
    first, second, third = study.long_windows(3, seed=0)
    assert first.shape == third.shape == (1, 96)
    assert second.shape[1] == 32 * min(3, len(study.train["pretrain"][1])) < 96


def test_how_far_a_model_moved_is_a_mean_over_tokens() -> None:
    """A quarter of the windows says it roughly."""
    model = Certain(0.7)
    moved = Moved(model, [torch.zeros(1, n, dtype=torch.int64) for n in (12, 40, 40, 40)])
    assert moved() == pytest.approx(0.0, abs=1e-6)
    model.share.data.fill_(0.5)
    expected = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert moved() == pytest.approx(expected, rel=1e-4) and moved.roughly() == pytest.approx(expected, rel=1e-4)
