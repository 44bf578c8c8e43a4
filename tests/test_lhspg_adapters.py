"""LHSPG on adapters as users make them, on quantised bases, on parameters that gates scale themselves."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import shearfx
from shearfx.errors import PlanError
from shearfx.optim import LHSPG
from shearfx.precision import double_precision
from shearfx.saliency.combined import Combined
from shearfx.selection import Tied
from tests import zoo
from tests.tiny_models import fresh, furthest, learn_something, optimizer, output_of, tied, traced, train
from tests.zoo import float_outputs

SHORT: dict[str, Any] = {"warmup": 1, "periods": 2, "period_length": 2}
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "q and v": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "all-linear, rank and alpha": ("llama", {"r": 5, "lora_alpha": 11}),
    "dropout": ("llama", {"lora_dropout": 0.5}),
    "rsLoRA": ("llama", {"use_rslora": True, "r": 4}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "up_proj", "down_proj"]}),
    "modules to save": (
        "llama",
        {"target_modules": ["up_proj", "o_proj"], "modules_to_save": ["down_proj", "lm_head"]},
    ),
    "Conv1D": ("gpt2", {}),
    "a pattern of ranks": ("llama", {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"q_proj": 5}}),
    "convolutions": ("convolutions", {"target_modules": ["first", "second", "head"]}),
}


def merged_and_masked(name: str, model: nn.Module, opt: LHSPG) -> Tensor:
    """What PEFT's own merge computes with all that the plan cuts set to zero."""
    opt.detach()
    copied: Any = copy.deepcopy(model)
    plain = copied.merge_and_unload()
    opt.gates.attach()
    return output_of(name, shearfx.mask(plain, opt.plan()))


@pytest.mark.parametrize("carrier", ["gates", "weights"])
@pytest.mark.parametrize("which", ADAPTERS)
def test_every_kind_of_adapter_fades_to_what_masking_gives(which: str, carrier: str) -> None:
    name, lora = ADAPTERS[which]
    model = learn_something(fresh(name, lora, torch.float64))
    opt = optimizer(name, model, carrier=carrier, merge="period", **SHORT)
    for step in range(6):
        model.train()
        train(name, model, opt, 1, step)
        model.eval()
        if step in (2, 4):  # periods end
            assert furthest(output_of(name, model), merged_and_masked(name, model, opt)) <= 1e-10
    assert sum(map(len, opt.zeros.values())) == 9


def test_of_several_adapters_the_active_one_fades_alone() -> None:
    model: Any = learn_something(fresh("llama", {}, torch.float64))
    model.add_adapter("other", LoraConfig(r=3, target_modules="all-linear"))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".other." in n}
    opt = optimizer("llama", model, carrier="weights", merge="end", **SHORT)
    assert all(one.a.shape[0] == 2 for one in opt.adapters.values())
    train("llama", model, opt, 5)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(PlanError, match="2 adapters"):
        optimizer("llama", model)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True, "target_modules": ["first", "head"]}, "bias of its own"),
    ],
)
def test_what_is_no_sum_is_refused_with_the_reason(lora: dict[str, Any], said: str) -> None:
    name = "convolutions" if "lora_bias" in lora else "llama"
    with pytest.raises(PlanError, match=said):
        optimizer(name, fresh(name, lora))


def test_a_merged_adapter_is_refused() -> None:
    model: Any = fresh("llama", {})
    model.merge_adapter()
    with pytest.raises(PlanError, match="unmerge"):
        optimizer("llama", model)


# -- the paper's form ---------------------------------------------------------------------------------------------


def test_the_papers_form_runs_and_can_be_changed() -> None:
    model = fresh("llama", {"lora_dropout": 0.1}, torch.float64)
    opt = LHSPG.paper(traced("llama")[1], model, tied=tied("llama"), form="fx", target=0.3, lr=0.01, **SHORT)
    assert opt.ranking == "loss" and opt.unit == "structures" and opt.merge == "period"
    train("llama", model, opt, 5)
    assert sum(map(len, opt.zeros.values())) == round(0.3 * sum(t.groups[0].size for t in tied("llama")))
    assert furthest(output_of("llama", model), merged_and_masked("llama", model, opt)) <= 1e-10
    changed = LHSPG.paper(traced("llama")[1], fresh("llama", {}), tied=tied("llama"), merge="never", carrier="gates")
    assert changed.merge == "never" and changed.gates.places.sites


def test_scores_of_adapters_need_adapters_that_have_learnt() -> None:
    opt = optimizer("llama", fresh("llama", {}), saliency=Combined(), warmup=0)
    with pytest.raises(PlanError, match="zero everywhere"):
        train("llama", opt.model, opt, 1)
    assert opt.steps == 0 and not opt.zeros


def test_scores_that_are_all_equal_are_refused() -> None:
    graph = traced("llama")[1]
    opt = optimizer("llama", fresh("llama", {}), scores={g.name: torch.ones(g.size) for g in graph.groups}, warmup=0)
    with pytest.raises(PlanError, match="alike"):
        train("llama", opt.model, opt, 1)


def test_relative_scores_are_ranked_globally_only_when_asked() -> None:
    graph, model = traced("llama")[1], fresh("llama", {})
    scores = {g.name: torch.arange(g.size) + 1000.0 * i for i, g in enumerate(graph.groups)}
    options: dict[str, Any] = {"scores": scores, "merge": "never", "tied": tied("llama", ["ffn"]), "target": 10}
    for ranking, counts in ((None, [5, 5]), ("loss", [10])):
        opt = optimizer("llama", copy.deepcopy(model), ranking=ranking, **options, **SHORT)
        train("llama", opt.model, opt, 5)
        assert sorted(map(len, opt.zeros.values())) == counts
    for saliency, unit in (("magnitude", "relative"), ("fisher", "loss"), ("taylor", "loss"), (Combined(), "relative")):
        assert optimizer("llama", copy.deepcopy(model), saliency=saliency).ranking == unit


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": -1}, {"target": 1.5}, {"target": True}, {"target": 10**6}, {"penalty": "soft"}, {"merge": "often"},
        {"penalty": "constant"}, {"half_space_eps": 1.0}, {"warmup": -1}, {"periods": 0}, {"period_length": 0},
        {"variant": "lion"}, {"carrier": "air"}, {"data": iter([])}, {"ranking": "global"}, {"saliency": "nonsense"},
        {"compensate": iter([])}, {"compensate": [], "carrier": "weights"},
        {"merge_moments": "lose"}, {"merge_warmup": -1}, {"merge_warmup": 1.5},
    ],
    ids=lambda wrong: " ".join(wrong),  # values print an address, which differs between workers
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_training(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        optimizer("llama", fresh("llama", {}), **wrong)


# -- quantised bases ------------------------------------------------------------------------------------------------


class EightBit(nn.Linear):
    """A weight of eight bits with a scale, as bitsandbytes keeps it, computed on the CPU."""

    scale: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> EightBit:
        found = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        scale = linear.weight.detach().abs().max() / 127
        found.register_buffer("scale", scale)
        found.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        found.bias = linear.bias
        return found

    def plain(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.plain(), self.bias)


class FourBit(EightBit):
    """Two weights in a byte, one after the other in a single column, as bitsandbytes packs them."""

    @classmethod
    def of(cls, linear: nn.Linear) -> FourBit:
        found = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        scale = linear.weight.detach().abs().max() / 7
        found.register_buffer("scale", scale)
        numbers = ((linear.weight.detach() / scale).round() + 8).to(torch.uint8).flatten()
        found.weight = nn.Parameter((numbers[::2] * 16 + numbers[1::2])[:, None], requires_grad=False)
        found.bias = linear.bias
        return found

    def plain(self) -> Tensor:
        numbers = torch.cat([self.weight // 16, self.weight % 16], 1).reshape(self.out_features, self.in_features)
        return (numbers.to(self.scale.dtype) - 8) * self.scale


def quantised(kind: type[EightBit], plain: bool = False) -> nn.Module:
    """Every adapted layer on few bits, or on what these say in 32."""
    model = learn_something(fresh("llama", {}))
    for module in list(model.modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            few = kind.of(layer.base_layer)
            if plain:
                layer.base_layer.weight.data = few.plain()
            else:
                layer.base_layer = few
    return model


@pytest.mark.parametrize("kind", [EightBit, FourBit])
def test_a_quantised_base_fades_by_gates_and_is_not_merged_into(
    kind: type[EightBit], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = quantised(kind), quantised(kind, plain=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.is_floating_point()}
    assert len(before) == 14
    with pytest.raises(PlanError, match="quantised"):
        optimizer("llama", model, merge="end", half_space_eps=-math.inf)
    with pytest.raises(PlanError, match="half_space_eps"):
        optimizer("llama", model, merge="never")
    with pytest.raises(PlanError, match="gates"):
        opt = optimizer("llama", copy.deepcopy(model), merge="never", carrier="weights", half_space_eps=-math.inf)
        train("llama", opt.model, opt, 11)
    for epsilon in (-math.inf, 0.6):
        if epsilon > 0:
            monkeypatch.setattr("peft.utils.integrations.dequantize_module_weight", lambda module: module.plain())
        options: dict[str, Any] = {"merge": "never", "saliency": "fisher", "half_space_eps": epsilon, **SHORT}
        models = copy.deepcopy(model), copy.deepcopy(plain)
        opts = [optimizer("llama", one, **options) for one in models]
        losses = [train("llama", one, opt, 6) for one, opt in zip(models, opts, strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert opts[0].zeros == opts[1].zeros and sum(map(len, opts[0].zeros.values())) == 9
        assert all(torch.equal(p, before[n]) for n, p in models[0].named_parameters() if n in before)
        with pytest.raises(PlanError, match="quantised"):
            opts[0].construct()


# -- parameters that gates scale themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("mixtral", "expert"), ("mamba", "ssm")])
def test_trained_parameters_that_gates_would_scale_fade_as_weights(name: str, kind: str) -> None:
    """Fused experts and Mamba's own parameters: gates would put back what they were before training."""
    built = zoo.get(name).build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    built = built.to(torch.float64)
    model = built.module
    kinds = {g.kind for g in graph.groups}
    found = [Tied((g,), (1,)) for g in graph.groups
             if g.certificate == "exact" and (kind in g.kind or (kind not in kinds and g.size > 8))][:2]  # fmt: skip
    assert found
    scores = {g.name: torch.rand(g.size) for t in found for g in t.groups}
    options: dict[str, Any] = {
        "tied": found, "form": "fx", "target": 6, "unit": "structures", "scores": scores, "lr": 1e-3, **SHORT
    }  # fmt: skip
    with pytest.raises(PlanError, match='carrier="weights"'):
        LHSPG(graph, model.requires_grad_(True), **options)

    def output() -> Tensor:
        with torch.no_grad(), double_precision():
            return float_outputs(model(*built.args, **built.kwargs))[0]

    opt = LHSPG(graph, model, carrier="weights", **options)
    moved = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(6):
        opt.zero_grad()
        float_outputs(model(*built.args, **built.kwargs))[0].sin().mean().backward()
        opt.step()
    assert sum(map(len, opt.zeros.values())) == 6
    assert any(not torch.equal(p, moved[n]) for n, p in model.named_parameters())
    with double_precision():
        masked = float_outputs(shearfx.mask(model, opt.plan())(*built.args, **built.kwargs))[0]
    assert furthest(output(), masked) == 0
    # frozen they may fade by gates, and open gates are the model as it was
    model.requires_grad_(False)
    head = cast(Any, model).get_output_embeddings().weight.requires_grad_(True)
    opt = LHSPG(graph, model, carrier="gates", **options)
    for _ in range(6):
        head.grad = torch.zeros_like(head)
        opt.step()
    with double_precision():
        masked = float_outputs(shearfx.mask(model, opt.plan())(*built.args, **built.kwargs))[0]
    assert furthest(output(), masked) <= 1e-10


# -- memory ---------------------------------------------------------------------------------------------------


class Allocated(TorchDispatchMode):
    """Numbers in new tensors: the most in one, and the most in all that lived at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest, self.what, self.live, self.peak = 0, "", 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        mine = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in mine:
                storage = value.untyped_storage()
                size, key = storage.nbytes() // value.element_size(), storage.data_ptr()
                if key and key not in self._known:
                    self._known.add(key)
                    self.live += size
                    weakref.finalize(storage, self._freed, key, size)
                    self.peak = max(self.peak, self.live)
                    if size > self.largest:
                        self.largest, self.what = size, str(func)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Wide(nn.Module):
    """A million weights in one layer, read by another."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.wide, self.out = nn.Linear(4, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(torch.relu(self.wide(torch.relu(self.inp(x)))))
        return found


@pytest.mark.parametrize("options", [
    {"merge": "period", "half_space_eps": 0.3}, {"merge": "period", "half_space_eps": 0.3, "carrier": "weights"},
    {"merge": "never", "saliency": "lora_cosine"}, {"merge": "end", "saliency": "magnitude", "carrier": "weights"},
    {"merge": "never", "saliency": "fisher", "penalty": "constant", "strength": 0.1},
    {"merge": "end", "saliency": "taylor", "carrier": "weights", "variant": "sgd", "momentum": 0.9},
    {"merge": "period", "merge_moments": "reset", "saliency": Combined()},
], ids=["gates", "weights", "scored", "magnitude", "fisher", "taylor", "combined"])  # fmt: skip
def test_a_step_allocates_nothing_in_proportion_to_the_weights(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen weights are looked at a part at a time, which is made a 32nd of the largest here."""
    monkeypatch.setattr("shearfx.low_rank.CHUNK", 2**15)
    torch.manual_seed(0)
    base = Wide()
    graph = shearfx.trace(base, torch.randn(2, 4))
    model = get_peft_model(cast(Any, base), LoraConfig(r=2, target_modules=["inp", "wide", "out"]))
    learn_something(model)
    groups = [Tied((g,), (1,)) for g in graph.groups]
    assert sum(t.groups[0].size for t in groups) == 2048
    if "saliency" not in options:
        options = options | {"scores": {g.name: torch.rand(g.size) for g in graph.groups}}
    opt = LHSPG(
        graph, model, tied=groups, target=0.5, unit="structures", warmup=0, periods=2, period_length=2, form="fx",
        **options
    )  # fmt: skip
    weight = base.wide.base_layer.weight.numel()  # type: ignore[union-attr, operator]
    for _ in range(4):
        model(torch.randn(2, 4)).sum().backward()
        with Allocated() as allocated:
            opt.step()
        assert 0 < allocated.largest <= weight / 16, allocated.what
        assert allocated.peak <= weight / 4
        opt.zero_grad()
    assert sum(map(len, opt.zeros.values())) == 1024
