"""Losses, mixtures, the loop and its checkpoints."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.data import Examples
from shearfx.errors import CheckpointError, TrainingError
from shearfx.training import Loop, Mixture, Recovery, Stage, losses_of, token_loss, weights_of
from shearfx.training.state_files import read_state, write_state


def reference_loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, distill: float) -> Tensor:
    flat, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    hard = F.cross_entropy(flat, targets, ignore_index=-100)
    if teacher is None:
        return hard
    counts = targets != -100
    q, p = (F.log_softmax(t[:, :-1].flatten(0, 1)[counts], -1) for t in (teacher, logits))
    return (1 - distill) * hard + distill * F.kl_div(p, q, log_target=True, reduction="batchmean")


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 3), tokens=st.integers(2, 9), vocabulary=st.integers(2, 7), seed=st.integers(0, 99),
    distill=st.sampled_from((0.0, 0.3, 1.0)), taught=st.booleans(), scale=st.sampled_from((1.0, 3.0)),
    at_once=st.integers(1, 30), far=st.sampled_from((0.0, 200.0)),
)  # fmt: skip
def test_token_loss_and_its_gradient_are_those_of_the_textbook(
    batch: int, tokens: int, vocabulary: int, seed: int, distill: float, taught: bool, scale: float, at_once: int,
    far: float,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    logits = (torch.randn(batch, tokens, vocabulary) + far).requires_grad_()  # as no exponential in float32 would do
    labels = torch.randint(0, vocabulary, (batch, tokens))
    labels[torch.rand(batch, tokens) < 0.3] = -100
    labels[0, 1] = 0
    teacher = torch.randn(batch, tokens, vocabulary) if taught else None
    with patch("shearfx.inference.CACHED", at_once):
        found = token_loss(logits, labels, teacher, distill)
    (gradient,) = torch.autograd.grad(found * scale if scale != 1 else found, logits)
    wanted = reference_loss(logits, labels, teacher if distill else None, distill)
    (expected,) = torch.autograd.grad(wanted * scale, logits)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_that_is_impossible_for_the_teacher_is_no_distance(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 6).to(dtype).requires_grad_()
    teacher = torch.randn(1, 5, 6)
    teacher[..., 2] = -math.inf
    labels = torch.tensor([[0, 1, 3, 4, 5]])
    found = token_loss(logits, labels, teacher, 1.0)
    q, p = teacher[:, :-1].softmax(-1), logits[:, :-1].float().log_softmax(-1)
    there = torch.where(q > 0, q * (q.clamp(min=1e-30).log() - p), 0).sum(-1).mean()
    assert torch.allclose(found, there, atol=1e-5)
    (gradient,) = torch.autograd.grad(found, logits)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [*itertools.product((torch.float32, torch.bfloat16), (1.0, 1 / 13, 65536.0)), (torch.float16, 65536.0)],
)
def test_a_scaled_loss_has_a_scaled_gradient_in_any_dtype(dtype: torch.dtype, scale: float) -> None:
    """As gradients are accumulated, or a scaler keeps them from vanishing in float16."""
    torch.manual_seed(0)
    logits = (torch.randn(2, 40, 300) * 3).to(dtype).requires_grad_()
    labels = torch.randint(300, (2, 40))
    (gradient,) = torch.autograd.grad(token_loss(logits, labels) * scale, logits)
    exact = logits.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(reference_loss(exact, labels, None, 0.0) * scale, exact)
    assert gradient.dtype == dtype
    assert float((gradient.float() - expected).norm() / expected.norm()) < {4: 1e-6, 2: 3e-3}[dtype.itemsize]


def windows(name: str, count: int, length: int = 6, seed: int = 0) -> Examples:
    ids = torch.randint(0, 11, (count, length), generator=torch.Generator().manual_seed(seed))
    return Examples(name, "pretrain", ids, ids)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 99), cut=st.integers(0, 12))
def test_a_mixture_goes_through_everything_before_it_repeats_and_resumes(sizes: list[int], seed: int, cut: int) -> None:
    sources = [windows(f"s{i}", size, seed=i) for i, size in enumerate(sizes)]
    whole = Mixture(sources, 2, seed=seed)
    drawn = [whole.next()["input_ids"] for _ in range(20)]
    first = Mixture(sources, 2, seed=seed)
    for _ in range(cut):
        first.next()
    second = Mixture(sources, 2, seed=seed + 1)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, second.next()["input_ids"]) for a in drawn[cut:])
    for name, times in whole.epochs().items():
        size = len(whole.sources[name])
        seen = math.floor(times)
        rows = torch.cat(drawn).tolist()
        for window in whole.sources[name].ids.tolist():
            assert rows.count(window) >= seen, (name, size)


def test_mixtures_that_make_no_sense_are_refused() -> None:
    for sources in ([], [windows("a", 2), windows("a", 3)], [windows("a", 2), windows("b", 2, length=7)]):
        with pytest.raises(TrainingError, match="make no mixture"):
            Mixture(sources, 2, seed=0)
    with pytest.raises(TrainingError, match="no weights"):
        Mixture([windows("a", 2)], 2, seed=0, weights={"a": 0.0})


@given(
    degradation=st.dictionaries(st.sampled_from("abcde"), st.floats(-1, 5), min_size=1),
    balance=st.floats(0, 1),
)
def test_subsets_prefer_what_was_lost_and_keep_a_share_of_the_rest(
    degradation: dict[str, float], balance: float
) -> None:
    weights = weights_of(degradation, balance)
    assert math.isclose(sum(weights.values()), 1, abs_tol=1e-9)
    assert all(weight >= balance / len(weights) - 1e-9 for weight in weights.values())
    order = sorted(weights, key=lambda name: degradation[name])
    assert all(weights[a] <= weights[b] + 1e-9 for a, b in itertools.pairwise(order))


class Toy(nn.Module):
    """Predicts the next token from the present one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.drop, self.head = nn.Embedding(11, 8), nn.Dropout(0.2), nn.Linear(8, 11)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        return type("Output", (), {"logits": self.head(self.drop(self.embed(input_ids)))})()


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return token_loss(model(batch["input_ids"]).logits, batch["labels"])


def loop_of(model: nn.Module, folder: Path | None, steps: int = 9, **options: Any) -> Loop:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return Loop(model, optimizer, Mixture([windows("a", 7)], 2, seed=1), loss_of, steps, accumulate=2,
                checkpoint=folder, **options)  # fmt: skip


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole = Toy()
    torch.manual_seed(7)
    losses = [m["loss"] for m in loop_of(whole, None).run()]
    first = Toy()
    torch.manual_seed(7)
    loop = loop_of(first, tmp_path / "state")
    running = loop.run()
    for _ in range(stop):
        next(running)
    loop.save()
    again = loop_of(second := Toy(seed=3), tmp_path / "state")
    assert again.resume() is not None
    assert [m["loss"] for m in again.run()] == losses[stop:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_state(tmp_path: Path) -> None:
    model = Toy()
    loop = loop_of(model, tmp_path / "state", every=0.0)
    running = loop.run()
    next(running)
    good = copy.deepcopy(model.state_dict())
    next(running)  # its loss is finite: what the first step left is good
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"the loss of step 2 is nan; the state of an earlier step is in"):
        next(running)
    again = loop_of(fresh := Toy(seed=5), tmp_path / "state")
    again.resume()
    assert again.step == 1
    assert all(torch.equal(value, good[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("every", [0.0, 1e6])
def test_a_step_that_ruins_the_weights_is_not_kept(tmp_path: Path, steps: int, every: float) -> None:
    """Only the next loss shows it: the advised resume, at a lower rate, begins before it."""
    loop = loop_of(Toy(), tmp_path / "state", every=every, warm=0)
    running = loop.run()
    for _ in range(steps):
        next(running)
    good = {name: value.clone() for name, value in loop.model.state_dict().items()}
    loop._peaks = [1e20]  # finite weights, and logits that are not
    kept = f"; the state of an earlier step is in {tmp_path / 'state'}" if every == 0 else ""
    with pytest.raises(TrainingError, match=re.escape(f"the loss of step {steps + 1} is ") + f"(inf|nan){kept}\n"):
        next(running), next(running)
    again = loop_of(Toy(), tmp_path / "state", warm=0)
    if every:
        assert again.resume() is None, "nothing was kept yet: the run begins anew"
    else:
        assert again.resume() is not None and again.step == steps
        assert all(torch.equal(value, good[name]) for name, value in again.model.state_dict().items())
        assert all(math.isfinite(metrics["loss"]) for metrics in again.run())


def test_a_run_goes_on_at_another_learning_rate(tmp_path: Path) -> None:
    """What the error of a diverging loss asks for."""
    loop = loop_of(Toy(), tmp_path / "state", warm=0)
    next(loop.run())
    loop.save()
    whole = [m["lr"] for m in loop_of(Toy(), None, warm=0).run()]
    again = loop_of(Toy(), tmp_path / "state", warm=0)
    again.optimizer.param_groups[0]["lr"] = 0.01
    again = Loop(again.model, again.optimizer, again.batches, loss_of, 9, accumulate=2, checkpoint=again.checkpoint,
                 warm=0)  # fmt: skip
    again.resume()
    assert [m["lr"] for m in again.run()] == pytest.approx([rate / 5 for rate in whole[1:]])


@given(st.integers(1, 12), st.floats(0.0, 30.0))
@settings(max_examples=15, deadline=None)
def test_steps_that_take_longer_than_was_thought_are_fewer(steps: int, left: float) -> None:
    now = [100.0]

    def slow(model: nn.Module, batch: Any) -> Tensor:
        now[0] += 1.0  # two microbatches a step
        return loss_of(model, batch)

    with patch("shearfx.training.loop.time.monotonic", lambda: now[0]):
        loop = loop_of(Toy(), None, steps=steps, deadline=100.0 + left)
        loop.loss = slow
        metrics = list(loop.run())
    taken = len(metrics)
    assert taken == min(steps, max(1, int(left / 2)))
    assert loop.steps == taken and now[0] <= 100.0 + max(left, 2.0)


def test_a_run_that_was_cut_off_while_it_was_slow_takes_all_steps_there_is_time_for(tmp_path: Path) -> None:
    now = [100.0]

    def slow(model: nn.Module, batch: Any) -> Tensor:
        now[0] += 10.0
        return loss_of(model, batch)

    with patch("shearfx.training.loop.time.monotonic", lambda: now[0]):
        first = loop_of(Toy(), tmp_path / "state", deadline=150.0, every=1e9)
        first.loss = slow
        next(first.run())
        assert first.steps < 9
        first.save()
        again = loop_of(Toy(), tmp_path / "state", deadline=1000.0, every=1e9)
        again.resume()
        assert [m["step"] for m in again.run()] == list(range(2, 10))


def test_the_learning_rate_rises_and_falls_as_stated() -> None:
    loop = loop_of(Toy(), None, steps=10, warm=4, least=0.1)
    rates = [m["lr"] for m in loop.run()]
    assert math.isclose(rates[0], 0.05 / 4)
    assert max(rates) <= 0.05 and rates[-1] < 0.01
    assert rates[4:] == sorted(rates[4:], reverse=True)


def trees() -> st.SearchStrategy[Any]:
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=5),
        st.sampled_from(("tensor:0", "text:x")), st.builds(torch.tensor, st.lists(st.integers(-3, 3), max_size=3)),
    )  # fmt: skip
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3),
            st.dictionaries(st.integers(0, 9), inner, max_size=3),
        ),
        max_leaves=8,
    )  # fmt: skip


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and left == right


@settings(max_examples=60, deadline=None)
@given(tree=trees())
def test_states_come_back_as_they_were(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("state") / "s"
    write_state(folder, {"root": tree})
    assert same(read_state(folder)["root"], tree)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    write_state(tmp_path / "s", {"a": torch.ones(3)})
    (tmp_path / "s" / "tensors.safetensors").write_bytes(b"xx")
    with pytest.raises(CheckpointError, match="no readable state"):
        read_state(tmp_path / "s")
    with pytest.raises(CheckpointError, match="set at"):
        write_state(tmp_path / "t", {"a": {1, 2}})
    assert not (tmp_path / "t").exists()


def recovery(model: Toy, folder: Path | None = None, **options: Any) -> Recovery:
    easy, hard = windows("easy", 12, seed=1), windows("hard", 12, seed=2)
    stage = Stage("pretrain", (easy, hard), (easy, hard))
    settings = {"steps": 24, "rounds": 4, "tolerance": -1.0, "seed": 3} | options
    return Recovery(model, lambda: torch.optim.AdamW(model.parameters(), lr=0.05), [stage],
                    settings.pop("reference", {"easy": 1.5, "hard": 1.0}), checkpoint=folder, **settings)  # fmt: skip


def test_progress_goes_on_where_a_run_was_cut_off(tmp_path: Path) -> None:
    """Two stages of twelve steps; the second is stopped at its fifth and gone on with."""
    told: list[tuple[int, int]] = []

    class StopError(Exception):
        pass

    def stop(metrics: dict[str, Any]) -> None:
        if len(told) == 16:
            raise StopError

    def both(**options: Any) -> Recovery:
        made = recovery(Toy(), tmp_path, every=0.0, progress=lambda done, of: told.append((done, of)), **options)
        made.stages = [made.stages[0], Stage("instruct", made.stages[0].train, made.stages[0].validation)]
        return made

    with pytest.raises(StopError):
        both(on_step=stop).run()
    assert told == [(step, 24) for step in range(1, 17)]
    told.clear()
    both().run()
    assert told[0][0] in (16, 17)  # what was saved before the stop
    assert told == [(step, 24) for step in range(told[0][0], 25)]


def test_recovery_judges_every_round_and_draws_by_what_is_lost() -> None:
    model = Toy()
    before = losses_of(model, [windows("easy", 12, seed=1)])
    rounds = recovery(model).run()
    assert [one.step for one in rounds] == [0, 6, 12, 18, 24]
    assert rounds[0].losses["easy"] == pytest.approx(before["easy"])
    assert rounds[0].weights == weights_of(rounds[0].degradation, 0.2)
    assert rounds[0].weights["hard"] > rounds[0].weights["easy"]
    assert sum(rounds[-1].losses.values()) < sum(rounds[0].losses.values())
    assert rounds[-1].weights == {}


def test_recovery_stops_when_nothing_more_comes_back() -> None:
    rounds = recovery(Toy(), tolerance=10.0, patience=1).run()
    assert [one.step for one in rounds] == [0, 6]


def test_recovery_wants_a_reference_for_every_source() -> None:
    with pytest.raises(TrainingError, match="no loss of the full model is known for hard"):
        recovery(Toy(), reference={"easy": 1.0}).run()


def test_recovery_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = recovery(first := Toy()).run()

    class StopError(Exception):
        pass

    def stop(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 11:
            raise StopError

    torch.manual_seed(5)
    with pytest.raises(StopError):
        recovery(Toy(), tmp_path / "r", every=0.0, on_step=stop).run()
    rounds = recovery(second := Toy(seed=9), tmp_path / "r", every=0.0).run()
    assert [one.step for one in rounds] == [one.step for one in whole]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
