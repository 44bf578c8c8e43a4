"""Knowledge distribution: what masked copies lose, measured on a live model that is bit for bit the same afterwards."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import shearfx
from shearfx.errors import CheckpointError, PlanError
from shearfx.knowledge import KnowledgeDistribution, Row, check_possible, estimate, knowledge_distribution, name_of
from shearfx.knowledge.crucial import unlike_their_like
from shearfx.precision import double_precision
from shearfx.pruning_plan import of_cuts
from shearfx.selection import Selection, Tied, select
from tests import zoo

QUICK = ["llama", "gpt2", "t5", "cnn_resnet"]
SLOW = ["llama_lora", "mixtral", "resnet_hf"]
MODELS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
RATIOS = (0.3, 0.6)
slowly = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def classified(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """A loss of the user's: the first classes' cross entropy."""
    given = {name: value for name, value in batch.items() if name != "targets"}
    output = model(given["x"]) if "x" in given else model(**given)
    logits = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits.flatten(1), batch["targets"])


class Case:
    """A model in float64 with two batches for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        built = zoo.get(name).build().to(torch.float64)
        self.model = built.module
        self.graph = shearfx.trace(self.model, *built.args, **built.kwargs)
        self.tied = select(self.graph, self.model, Selection(form="fx"))[0]
        draw = torch.Generator().manual_seed(0)
        self.scores = {g.name: torch.rand(g.size, generator=draw) for t in self.tied for g in t.groups}
        self.loss: Callable[[nn.Module, Any], Tensor] | None = None
        self.batches: list[Any] = []
        for size in (2, 3):
            if name in ("cnn_resnet", "resnet_hf"):
                self.loss = classified
                key, image = ("x", built.args[0]) if built.args else ("pixel_values", built.kwargs["pixel_values"])
                x = torch.randn(size, *image.shape[1:], dtype=torch.float64, generator=draw)
                self.batches.append({key: x, "targets": torch.randint(4, (size,), generator=draw)})
                continue
            ids = torch.randint(3, 60, (size, 7 + size), generator=draw)
            if name == "t5":
                labels = torch.randint(3, 60, (size, 6), generator=draw)
                labels[0, 4:] = -100
                start = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1].clamp(min=0)], 1)
                self.batches.append({"input_ids": ids, "decoder_input_ids": start, "labels": labels})
            elif size == 3:
                mask = torch.ones_like(ids)
                mask[1, -2:] = 0
                self.batches.append({"input_ids": ids, "attention_mask": mask})
            else:
                self.batches.append(ids)

    def analyse(self, **options: Any) -> KnowledgeDistribution:
        options = {"tied": self.tied, "scores": self.scores, "ratios": RATIOS, "loss": self.loss, **options}
        with double_precision():
            return knowledge_distribution(self.graph, self.model, self.batches, **options)

    def naive(self, model: nn.Module) -> tuple[float, list[Tensor]]:
        """The mean loss, and the distributions that go into the mean KL."""
        losses, weight, found = 0.0, 0.0, []
        with torch.no_grad(), double_precision():
            for batch in self.batches:
                if self.loss is not None:
                    count = float(len(batch["targets"]))
                    losses, weight = losses + float(self.loss(model, batch)) * count, weight + count
                    given = {k: v for k, v in batch.items() if k != "targets"}
                    output = model(given["x"]) if "x" in given else model(**given)
                    logits = output if isinstance(output, Tensor) else output.logits
                    found.append(F.log_softmax(logits.flatten(0, -2), -1))
                    continue
                batch = batch if isinstance(batch, dict) else {"input_ids": batch}
                logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
                if "labels" in batch:
                    targets = batch["labels"]
                else:
                    targets, logits = batch["input_ids"][:, 1:], logits[:, :-1]
                    if "attention_mask" in batch:
                        targets = targets.masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
                logits, targets = logits[targets != -100], targets[targets != -100]
                losses += float(F.cross_entropy(logits, targets, reduction="sum"))
                weight += len(targets)
                found.append(F.log_softmax(logits, -1))
        return losses / weight, found


case = functools.cache(Case)


@functools.cache
def analysed(name: str) -> KnowledgeDistribution:
    return case(name).analyse()


def state(model: nn.Module) -> list[Any]:
    found: list[Any] = [(name, t.clone()) for name, t in model.state_dict(keep_vars=False).items()]
    for path, module in model.named_modules():
        own = module.__dict__.get("forward")
        found.append((path, own, module.training, dict(module._forward_hooks), dict(module._forward_pre_hooks)))
    return found


def assert_same(model: nn.Module, before: list[Any]) -> None:
    for old, new in zip(before, state(model), strict=True):
        assert len(old) != 2 or torch.equal(old[1], new[1]), old[0]
        assert len(old) == 2 or old == new


# -- what is measured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_what_masked_copies_lose(name: str) -> None:
    this, found = case(name), analysed(name)
    loss, reference = this.naive(this.model)
    assert found.loss == pytest.approx(loss, rel=1e-10)
    assert [(row.name, row.ratio) for row in found.rows] == [(name_of(t), r) for t in this.tied for r in RATIOS]
    groups = {g.name: g for g in this.graph.groups}
    moved = 0.0
    for row in found.rows:
        group = groups[row.name]
        assert row.shut == min(max(1, int(row.ratio * group.size + 0.5)), group.size - 1)
        kept = sorted(torch.argsort(this.scores[group.name])[row.shut :].tolist())
        plan = of_cuts(this.graph, {group.name: kept})
        loss, log_p = this.naive(shearfx.mask(this.model, plan))
        kl = sum(float(F.kl_div(p, q, log_target=True, reduction="sum")) for p, q in zip(log_p, reference, strict=True))
        assert row.kl is not None
        assert row.loss == pytest.approx(loss, rel=1e-10)
        assert row.kl == pytest.approx(kl / sum(map(len, log_p)), rel=1e-9, abs=1e-13)
        assert row.perplexity == pytest.approx(math.exp(loss), rel=1e-10)
        assert row.deviation == pytest.approx(math.exp(loss) - math.exp(found.loss), rel=1e-9, abs=1e-9)
        assert row.relative == pytest.approx(row.deviation / found.perplexity, rel=1e-9, abs=1e-12)
        assert row.share == pytest.approx(taken(this.model, plan.kept), rel=1e-9)
        moved = max(moved, row.kl)
    assert moved > 1e-4  # or there would have been nothing to compare


def taken(model: nn.Module, kept: Mapping[str, Mapping[int, Any]]) -> float:
    """The share of a model's parameters that is not kept."""
    left = total = 0
    for name, parameter in model.named_parameters():
        sizes = [len(kept.get(name, {}).get(axis, range(size))) for axis, size in enumerate(parameter.shape)]
        total, left = total + parameter.numel(), left + math.prod(sizes)
    return 1 - left / total


@pytest.mark.parametrize("name", [*MODELS, "albert"])
def test_the_model_is_what_it_was(name: str) -> None:
    this = case(name)
    this.model.train()
    next(iter(this.model.children())).eval()
    before = state(this.model)
    try:
        this.analyse(loss=this.loss or language_loss)
        assert_same(this.model, before)
    finally:
        this.model.eval()


def language_loss(model: nn.Module, batch: Any) -> Tensor:
    batch = batch if isinstance(batch, dict) else {"input_ids": batch}
    logits: Tensor = model(**batch).logits
    return logits.square().mean()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("llama", RuntimeError),
        pytest.param("mixtral", KeyboardInterrupt, marks=pytest.mark.slow),
        ("t5", KeyboardInterrupt),
    ],
)
@slowly
@given(after=st.integers(0, 30))
def test_the_model_is_what_it_was_after_an_interrupt(name: str, error: type[BaseException], after: int) -> None:
    """Wherever a layer is interrupted: while layers are found, checked, recorded, or gates shut."""
    this = case(name)
    left = after

    def interrupt(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error

    last = [m for path, m in this.model.named_modules() if path.endswith(("down_proj", "mlp", "DenseReluDense"))][-1]
    hook = last.register_forward_hook(interrupt)
    before = state(this.model)
    try:
        with pytest.raises(error):
            this.analyse(reuse=after % 2 == 0)
            raise error  # there were fewer calls than that
        assert_same(this.model, before)
    finally:
        hook.remove()


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


# -- cost and progress -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
def test_cost_is_said_before_and_is_what_it_takes(reuse: bool) -> None:
    this = case("llama")
    calls = {"model": 0, "layers": 0}
    model: Any = this.model
    hooks = [model.register_forward_hook(lambda *_: calls.update(model=calls["model"] + 1))]
    for layer in model.model.layers:
        ran = layer.self_attn.register_forward_hook(lambda *_: calls.update(layers=calls["layers"] + 1))
        hooks.append(ran)
    said: list[Any] = []
    told: list[tuple[int, int]] = []
    try:
        cost = estimate(this.graph, model, this.batches, tied=this.tied, ratios=RATIOS, reuse=reuse)
        calls.update(model=0, layers=0)
        announce = lambda c: said.append((c, told.copy()))  # noqa: E731
        found = this.analyse(announce=announce, progress=lambda *now: told.append(now), reuse=reuse)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(said) == 1 and said[0][1] == []
    announced = said[0][0]
    assert (announced.passes, announced.reused, announced.layers) == (cost.passes, cost.reused, cost.layers)
    assert told == [(i + 1, cost.passes) for i in range(cost.passes)]
    assert cost.passes <= calls["model"] <= cost.passes + cost.reference
    assert found.reused == pytest.approx(cost.reused)
    if reuse:
        assert cost.layers == 2 and cost.recorded > 0
        measured = cost.passes * cost.layers * (1 - cost.reused)
        assert measured <= calls["layers"] <= measured + cost.reference * cost.layers
        assert "of 2 layers, 25% of them reused" in str(cost)


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


# -- the result --------------------------------------------------------------------------------------------


def row(name: str, loss: float, *, kind: str = "ffn", share: float = 0.01, ratio: float = 0.5, kl: float = 0.1) -> Row:
    perplexity = math.exp(loss) if loss < 700 else math.inf
    deviation = perplexity - math.exp(2)
    return Row(name, (name,), kind, 1, ratio, 1, 2, share, loss, perplexity, deviation, deviation / math.exp(2), kl)


losses = st.lists(st.one_of(st.floats(1, 30), st.just(math.inf), st.just(2.0)), min_size=1, max_size=40)


def of_losses(values: Sequence[float], **more: Any) -> KnowledgeDistribution:
    return KnowledgeDistribution(tuple(row(f"g{i}", v, **more) for i, v in enumerate(values)), 2.0, 100, 1, (0.5,))


@given(losses, st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_larger_gamma_leaves_more_whole(values: list[float], one: float, other: float) -> None:
    found = of_losses(values)
    less, more = (found.unprunable(gamma) for gamma in sorted((one, other)))
    assert more[: len(less)] == less
    assert len(less) == math.floor(min(one, other) * len(values) + 1e-9) < len(values)
    of = {r.name: r.loss for r in found.rows}
    left = [of[name] for name in of if name not in more]
    assert not more or min(of[name] for name in more) >= max(left)
    assert found.unprunable(0) == found.unprunable(None) == ()


def test_equal_deviations_are_taken_in_the_order_of_the_model() -> None:
    assert of_losses([3.0, 4.0, 3.0, 3.0, 2.0]).unprunable(0.6) == ("g1", "g0", "g2")
    assert of_losses([3.0] * 10).unprunable(0.3) == ("g0", "g1", "g2")  # 0.3 * 10 is 3, whatever floats say


def test_ratios_count_alike_in_logarithms() -> None:
    rows = (row("a", 2.1, ratio=0.2), row("a", 9.0), row("b", 4.0, ratio=0.2), row("b", 8.0))
    found = KnowledgeDistribution(rows, 2.0, 100, 1, (0.2, 0.5))
    assert [s.name for s in found.ranking()] == ["b", "a"]
    assert [s.deviation for s in found.ranking()] == pytest.approx([4, 3.55])


def test_kl_ranks_by_itself() -> None:
    rows = (row("a", 2.1, kl=0.5), row("b", 4.0, kl=0.1))
    found = KnowledgeDistribution(rows, 2.0, 100, 1, (0.5,))
    assert found.unprunable(0.5) == ("b",) and found.unprunable(0.5, by="kl") == ("a",)
    with pytest.raises(PlanError, match="no metric"):
        found.ranking("loss")  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [1.0, -0.1, math.nan, "some", True])
def test_no_share_is_refused(gamma: Any) -> None:
    with pytest.raises(PlanError, match="gamma"):
        of_losses([3.0, 4.0]).unprunable(gamma)
    with pytest.raises(PlanError, match="gamma"):
        case("llama").analyse(gamma=gamma)


deviations = st.one_of(st.floats(-1, 0), st.floats(1e-6, 10), st.just(math.inf))
standings = st.lists(st.tuples(st.sampled_from("ab"), st.floats(1e-4, 0.1), deviations), min_size=1, max_size=40)


@given(standings, st.floats(1e-3, 1e3), st.floats(1e-3, 1), st.randoms())
def test_auto_never_picks_everything_and_knows_no_units(some: list[Any], by: float, share: float, mix: Any) -> None:
    named = [(f"g{i}", *one) for i, one in enumerate(some)]
    picked = unlike_their_like(named)
    for kind in {one[1] for one in named}:
        members = [one for one in named if one[1] == kind]
        assert 2 * sum(one[0] in picked for one in members) <= len(members)
    mixed = mix.sample(named, len(named))
    assert unlike_their_like(mixed) == picked
    if all(math.isfinite(d) for *_, d in named):
        # powers of two, so that no rounding moves anything across the bound
        by, share = 2.0 ** round(math.log2(by)), 2.0 ** round(math.log2(share))
        assert len(unlike_their_like([(n, k, s * share, d * by) for n, k, s, d in named]) ^ picked) <= 1


@given(st.integers(8, 40), st.randoms(use_true_random=False), st.integers(1, 3))
def test_auto_finds_what_is_unlike_its_like(count: int, draw: Any, planted: int) -> None:
    usual = [("ffn", 0.02, 0.1 * draw.uniform(0.8, 1.25)) for _ in range(count)]
    heads = [("heads", 0.004, 0.1 * draw.uniform(0.8, 1.25)) for _ in range(count)]  # five times as dear, as a kind
    crucial = [(kind, share, deviation * 10) for kind, share, deviation in draw.sample(usual + heads, planted)]
    named = [(f"g{i}", *one) for i, one in enumerate([*usual, *heads, *crucial])]
    assert unlike_their_like(named) == {f"g{2 * count + i}" for i in range(planted)}


def test_auto_does_not_take_noise_for_knowledge() -> None:
    """Deviations of a model that knows nothing: above zero as often as below."""
    draw = torch.Generator().manual_seed(0)
    picked = [len(of_losses((2 + 1e-3 * torch.randn(60, generator=draw)).tolist()).unprunable()) for _ in range(50)]
    assert sum(picked) / (60 * 50) < 0.01  # beyond three standard deviations are 0.13%, estimated ones a few more


def test_auto_leaves_nothing_whole_where_all_are_alike_or_harmless() -> None:
    assert of_losses([3.0] * 9).unprunable() == of_losses([1.9] * 9).unprunable() == ()
    assert of_losses([2.1] * 9 + [math.inf]).unprunable() == ("g9",)
    assert of_losses([2.0, 9.0]).unprunable() == ()  # two of a kind do not tell which is the odd one


@given(losses)
def test_a_distribution_survives_json(values: list[float]) -> None:
    found = of_losses(values)
    text = found.to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert KnowledgeDistribution.from_json(text) == found


def test_files_are_whole_and_named_when_they_are_something_else(tmp_path: Path) -> None:
    found = analysed("llama")
    found.save(tmp_path / "knowledge.json")
    assert KnowledgeDistribution.load(tmp_path / "knowledge.json") == found
    assert [p.name for p in tmp_path.iterdir()] == ["knowledge.json"]
    with pytest.raises(CheckpointError, match="nowhere"):
        found.save(tmp_path / "nowhere" / "knowledge.json")
    for text in ("", "[]", '{"format": "x"}', found.to_json()[:-9]):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(CheckpointError, match="no knowledge distribution"):
            KnowledgeDistribution.load(tmp_path / "other.json")


# -- what is possible ----------------------------------------------------------------------------------------


def test_a_gamma_that_leaves_too_little_is_refused_and_a_possible_one_named() -> None:
    this = case("llama")
    ranked = [s.name for s in analysed("llama").ranking()]
    graph, tied = this.graph, this.tied
    most = [check_possible(graph, tied, ranked[:n], 0.0) for n in range(len(ranked))]
    assert most == sorted(most, reverse=True) and most[-1] < most[0]
    for n in range(1, len(ranked)):
        ratio = (most[n] + most[n - 1]) / 2
        if most[n] == most[n - 1]:
            continue
        assert check_possible(graph, tied, ranked[: n - 1], ratio) == most[n - 1]
        with pytest.raises(PlanError, match="left whole") as caught:
            check_possible(graph, tied, ranked[:n], ratio)
        words = str(caught.value).split("gamma=")
        if len(words) > 1:
            gamma = float(words[1].split()[0])
            names = analysed("llama").unprunable(gamma)
            assert len(names) == n - 1 and check_possible(graph, tied, names, ratio) >= ratio


@settings(max_examples=15, deadline=None)
@given(gamma=st.floats(0, 0.99), ratio=st.floats(0, 0.9))
def test_a_share_is_refused_before_the_analysis_only_if_no_order_allows_it(gamma: float, ratio: float) -> None:
    this = case("llama")
    try:
        check_possible(this.graph, this.tied, gamma, ratio)
    except PlanError:
        names = [name_of(one) for one in sorted(this.tied, key=lambda t: t.groups[0].params * t.groups[0].size)]
        with pytest.raises(PlanError):
            check_possible(this.graph, this.tied, names[: math.floor(gamma * len(names) + 1e-9)], ratio)
    assert check_possible(this.graph, this.tied, "auto", 0.01) == check_possible(this.graph, this.tied, None, 0.01)


def test_most_of_the_model_left_whole_is_refused_before_the_analysis() -> None:
    this = case("llama")
    with pytest.raises(PlanError, match=r"pass gamma=.* or less|leave no node group whole"):
        check_possible(this.graph, this.tied, 0.95, 0.3)
    with pytest.raises(PlanError, match="no node group"):
        check_possible(this.graph, this.tied, ["nothing"], 0.1)


# -- bad requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratios": ()}, "ratios"),
        ({"ratios": (0.5, 1.0)}, "ratios"),
        ({"ratios": (0.5, 0.5)}, "ratios"),
        ({"tied": []}, "no node group"),
        ({"scores": {}}, "scores"),
        ({"loss": lambda model, batch: torch.zeros(2)}, "no scalar"),
        ({"loss": lambda model, batch: torch.tensor(math.nan)}, "loss of batch 0"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    this = case("llama")
    before = state(this.model)
    with pytest.raises(PlanError, match=said):
        this.analyse(**options)
    assert_same(this.model, before)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no batches"),
        (torch.ones(2, 5, dtype=torch.long), "not batches"),
        ([{"nonsense": torch.ones(1, 2)}], "neither labels nor input_ids"),
        ([{"input_ids": torch.ones(1, 5, dtype=torch.long), "nonsense": 3, "labels": [1]}], "labels"),
        ([torch.ones(2, 1, dtype=torch.long)], "over 0 tokens"),
        ([3], "not token ids"),
    ],
)
def test_data_that_the_model_cannot_take_is_named(data: Any, said: str) -> None:
    this = case("llama")
    with pytest.raises(PlanError, match=said):
        knowledge_distribution(this.graph, this.model, data, tied=this.tied, scores=this.scores)


def test_groups_that_are_tied_lose_in_proportion() -> None:
    this = case("llama")
    heads = [t.groups[0] for t in this.tied if t.groups[0].kind == "ffn"]
    both = Tied(tuple(heads), (1,) * len(heads))
    (found,) = this.analyse(tied=[both], ratios=(0.5,)).rows
    assert found.groups == tuple(g.name for g in heads) and found.layer is None
    assert found.shut == sum(g.size // 2 for g in heads) and found.of == sum(g.size for g in heads)
    kept = {g.name: sorted(torch.argsort(this.scores[g.name])[g.size // 2 :].tolist()) for g in heads}
    loss, _ = this.naive(shearfx.mask(this.model, of_cuts(this.graph, kept)))
    assert found.loss == pytest.approx(loss, rel=1e-10)


def test_the_base_s_analysis_serves_the_model_with_adapters() -> None:
    this = Case("llama")
    plain = this.analyse()
    wrapped: Any = get_peft_model(this.model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with double_precision():
        found = knowledge_distribution(
            this.graph, wrapped.double(), this.batches, tied=this.tied, scores=this.scores, ratios=RATIOS
        )
    assert found.reused > 0.1
    for a, b in zip(plain.rows, found.rows, strict=True):  # B starts at zero
        assert a.loss == pytest.approx(b.loss, rel=1e-10)
