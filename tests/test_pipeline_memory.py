"""What a run takes of memory: what it lets go of, what it foresees, and what it says when there is none left."""

from __future__ import annotations

import copy
import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from shearfx.config import ShearConfig
from shearfx.data import Examples
from shearfx.errors import TrainingError
from shearfx.footprint import Allocations, available, bytes_text, peak, reset_peak
from shearfx.models import load_model
from shearfx.pipeline.adapting import adapting
from shearfx.pipeline.estimate import MemoryEstimate, estimate
from shearfx.pipeline.held import Held, convert, weight_bytes
from shearfx.pipeline.out_of_memory import memory_guard
from shearfx.pipeline.stages import measure_knowledge
from shearfx.pipeline.study import Study
from shearfx.pipeline.tellers import Silent
from shearfx.training import Mixture
from shearfx.training.losses import causal_loss
from tests.tiny_runs import Runs, Telling, as_loaded, options, tiny_llama, write_model, write_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("tiny")
    return Runs(write_model(folder / "model"), write_text(folder / "text.txt"))


# -- what is held ------------------------------------------------------------------------------------------


def test_buffers_that_a_module_computes_keep_their_precision() -> None:
    model = tiny_llama()
    before = model.model.rotary_emb.inv_freq.clone()
    convert(model, CPU, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    assert before.dtype == torch.float32 and not torch.equal(
        before.bfloat16().float(), before
    )  # it would have mattered


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_held_once_where_it_can_be_read_again(own: bool, dtype: torch.dtype) -> None:
    model = tiny_llama()
    reference, size = copy.deepcopy(model), weight_bytes(model)
    held = Held(model, CPU, dtype, (lambda: copy.deepcopy(reference)) if own else None)
    work = held.work
    assert work.dtype == dtype
    assert (work is model) == (own or dtype == torch.float32)
    assert held.beside == (0 if work is model else size)
    held.drop_work()
    for name, value in reference.state_dict().items():
        assert torch.equal(held.original.state_dict()[name], value)
    held.release()
    assert weight_bytes(model) == (0 if own else size)
    assert torch.equal(
        held.original.get_parameter("lm_head.weight"), reference.lm_head.weight
    )  # who asks again has it read again


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_nobody_needs_is_used_up(needed: bool, dtype: torch.dtype) -> None:
    model = tiny_llama()
    held = Held(model, CPU, dtype, tiny_llama)
    work = held.work
    source, consume = held.to_cut(work_needed=needed)
    assert source.dtype == torch.float32
    assert consume == (not needed or dtype == torch.bfloat16)
    assert weight_bytes(work) > 0 or not needed
    kept = Held(model := tiny_llama(), CPU, dtype)
    assert kept.to_cut(work_needed=needed) == (model, False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "down_proj")])
def test_a_model_that_had_adapters_for_a_while_is_what_it_was(
    training: bool, recompute: bool, targets: tuple[str, ...]
) -> None:
    frozen = (0, 3, 7)
    model = tiny_llama().train(training)
    model.model.layers[0].mlp.eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i not in frozen)
    tree = {name: (type(module), module.training) for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    wanted = {name: (p.requires_grad, p.detach().clone(), p) for name, p in model.named_parameters()}
    config = ShearConfig(tokens=1, targets=targets, gradient_checkpointing=recompute)
    ids = torch.randint(264, (2, 9))
    with pytest.raises(KeyError), adapting(config, model) as wrapped:
        wrapped.train()
        causal_loss(wrapped, {"input_ids": ids, "labels": ids}, None, 0.0).backward()
        raise KeyError  # also after an error
    assert tree == {name: (type(module), module.training) for name, module in model.named_modules()}
    assert hooks == {name: len(module._forward_hooks) for name, module in model.named_modules()}
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    for name, p in model.named_parameters():
        required, value, same = wanted[name]
        assert p is same and p.requires_grad == required and p.grad is None and torch.equal(p, value)


# -- what is counted ---------------------------------------------------------------------------------------


def test_allocations_count_what_operators_make_and_what_is_gone() -> None:
    x = torch.randn(1000, requires_grad=True)
    with Allocations(CPU) as found:
        y = (x * 2).exp()  # the product is not needed for the gradient, nor kept
        view = y[10:].view(-1)
        assert found.now == 4000 and found.most == 8000
        del y
        assert found.now == 4000  # the view holds it
        del view
        gc.collect()
        assert found.now == 0
        x.exp().sum().backward()  # the exponential, its gradient
    assert found.most >= 8000


def test_peaks_begin_anew(tmp_path: Path) -> None:
    before = peak(CPU)
    assert before is not None and (left := available(CPU)) is not None and left > 0
    big = torch.ones(50_000_000)
    high = peak(CPU)
    assert high is not None and high - before > 150e6
    del big
    reset_peak(CPU)
    low = peak(CPU)
    assert low is not None and low < high - 150e6


def test_the_estimate_is_near_the_peak_that_is_measured() -> None:
    """The factor: operators are counted exactly, the process also holds what its allocator keeps for later."""
    config = ShearConfig(tokens=1, batch_size=8, sequence_length=256, rank=8, distill=0.0, dtype="float32")
    model = tiny_llama(hidden_size=192, intermediate_size=512, vocab_size=4000, max_position_embeddings=256)
    ids = torch.randint(4000, (16, 256), generator=torch.Generator().manual_seed(0))
    source = Examples("a", "pretrain", ids, ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = estimate(config, model, [source], None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.weights == found.present == weight_bytes(model)
    mixture = Mixture([source], config.batch_size, seed=0)
    with adapting(config, model) as wrapped:
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad])

        def step() -> None:
            causal_loss(wrapped.train(), mixture.next(), None, 0.0).backward()
            optimizer.step()
            optimizer.zero_grad()

        gc.collect()
        reset_peak(CPU)
        base = peak(CPU)
        step()
        step()
        most = peak(CPU)
        with Allocations(CPU) as counted:
            step()
    assert base is not None and most is not None
    assert (most - base) / 1.6 < found.step < 1.6 * (most - base)
    moments = found.adapters // 2
    assert counted.most == pytest.approx(found.step - moments - found.adapters // 4, rel=0.1)


def test_the_estimate_says_what_is_missing_and_what_to_lower(runs: Runs, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("shearfx.pipeline.estimate.available", lambda device: 1000)
    teller = Telling()
    sheared = runs(tmp_path / "run", teller=teller)
    (told,) = [text for text in teller.told if text.startswith("training takes about")]
    (short,) = [text for text in teller.told if "are missing" in text]
    found = sheared.record["memory"]["estimate"]
    assert bytes_text(found["total"]) in told and "activations" in told
    assert "batch_size (now 2; raise accumulate, so that a step keeps 2 windows)" in short
    assert "gradient_checkpointing" in short
    assert found["total"] == sum(found[name] for name in ("weights", "adapters", "activations", "logits"))
    assert set(sheared.record["memory"]["peak"]) == {"dense", "prune", "cut", "speed", "recover"}
    weights = sheared.record["memory"]["weights"]
    assert weights["recovered"] == 4 * sheared.record["recover"]["parameters"] < weights["dense"]


def test_nothing_is_missing_where_nobody_says_how_much_there_is() -> None:
    found = MemoryEstimate(100, 10, 10, 10, 2, 4, None, 100, "this machine")
    assert found.missing == 0 and found.total == 130 and found.step == 30


# -- what is let go of -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distill", "held"), [(0.0, False), (0.5, True)])
def test_the_full_model_is_gone_while_the_cut_one_learns(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distill: float, held: bool
) -> None:
    more: list[int] = []
    recover = Study.recover

    def full() -> int:
        gc.collect()
        return sum(isinstance(o, nn.Parameter) and o.shape == (72, 32) for o in gc.get_objects())

    def looked(self: Study, *args: Any, **kwargs: Any) -> nn.Module:
        more.append(full() - before)
        return recover(self, *args, **kwargs)

    before = full()
    monkeypatch.setattr(Study, "recover", looked)
    runs(tmp_path / "run", distill=distill)
    assert more == [4 if held else 0]


def test_a_model_that_is_passed_stays_as_it_is(runs: Runs, tmp_path: Path) -> None:
    mine = load_model(str(runs.model))
    before = {name: value.clone() for name, value in mine.module.state_dict().items()}
    theirs = runs(tmp_path / "mine", mine, dtype="bfloat16")
    for name, value in mine.module.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == torch.float32
    own = runs(tmp_path / "own", dtype="bfloat16")
    for name, value in own.model.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name]), name


PEAK = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from shearfx.footprint import peak
from tests.tiny_runs import options
from tests.tiny_tokenizers import byte_tokenizer
what, model, text, out = sys.argv[1:]
asked = options(Path(text), batch_size=4, sequence_length=128, tokens=4 * 128 * 3, max_tokens=20_000)
if what == "shear":
    import shearfx
    shearfx.shear(model, out=out, **asked)
else:
    from transformers import AutoModelForCausalLM
    from peft import LoraConfig, get_peft_model
    import shearfx.pipeline
    ids = torch.randint(256, (4, 128))
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad])
    for _ in range(3):
        wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
print("PEAK", peak(torch.device("cpu")))
"""


@pytest.mark.slow
def test_a_run_takes_hardly_more_than_plain_fine_tuning(tmp_path: Path) -> None:
    """Peaks of separate processes: at most 15% more than LoRA on the same model at the same batch."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 10, "vocab_size": 20_000,
             "max_position_embeddings": 160}  # fmt: skip
    model = write_model(tmp_path / "model", **sizes, initializer_range=0.02)
    text = write_text(tmp_path / "text.txt")
    found = {}
    for what in ("plain", "shear"):
        command = [sys.executable, "-c", PEAK, what, str(model), str(text), str(tmp_path / what)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        match = re.search(r"PEAK (\d+)", done.stdout)
        assert match is not None
        found[what] = int(match[1])
    records = json.loads((tmp_path / "shear" / "stages.json").read_text())["memory"]["peak"]
    assert max(found["shear"], *records.values()) <= 1.15 * found["plain"], (found, records)


# -- no memory left ----------------------------------------------------------------------------------------

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("not enough memory: you tried to allocate 8589934592 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_of_allocators_say_what_to_lower(error: Exception) -> None:
    config = ShearConfig(tokens=1, batch_size=3)
    todo = (
        r"batch_size \(now 3; raise accumulate, so that a step keeps 3 windows\), distill(.|\n)*in a new run, sequence"
    )
    wanted = rf"out of memory while recovering.*--resume(.|\n)*{todo}"
    with pytest.raises(TrainingError, match=wanted), memory_guard("recovering", config, kept=lambda: True):
        raise error
    least = replace(config, batch_size=1, distill=0.0, gradient_checkpointing=True, rank=1)
    with pytest.raises(TrainingError, match="in a new run"), memory_guard("recovering", least, kept=lambda: True):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_guard("recovering", config):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The CPU's allocator gives up at the so manyth call of a layer."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward: Any = LlamaMLP.forward
    left = {"calls": -1}

    def failing(self: Any, x: torch.Tensor) -> torch.Tensor:
        left["calls"] -= 1
        if left["calls"] == 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes.")
        found: torch.Tensor = forward(self, x)
        return found

    monkeypatch.setattr(LlamaMLP, "forward", failing)
    yield left


def test_a_run_out_of_memory_is_resumed_with_what_is_done(
    runs: Runs, tmp_path: Path, exhausted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "run", runs(tmp_path / "whole")
    # two layers are called once a batch: in a step, for judging; for two batches of scoring
    for number, (calls, stage) in enumerate(((1, "measuring"), (3, "judging"), (3, "choosing"))):
        exhausted["calls"] = calls
        with pytest.raises(TrainingError, match=f"out of memory while {stage}"):
            runs(out, resume=number > 1, checkpoint_seconds=1e-6)
    exhausted["calls"] = -1
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="out of memory while cutting"):
        patch.setattr("shearfx.pipeline.cutting.construct", Mock(side_effect=MemoryError))
        runs(out, resume=True, checkpoint_seconds=1e-6)
    assert {"dense", "prune"} <= json.loads((out / "stages.json").read_text()).keys()
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="out of memory while recovering"):
        patch.setattr("shearfx.training.recovery.causal_loss", Failing())
        runs(out, resume=True, checkpoint_seconds=1e-6)
    again = runs(out, resume=True, checkpoint_seconds=1e-6)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


@pytest.mark.parametrize("place", ["subject.trace", "subject.select", "stages.trace"])
def test_memory_that_runs_out_before_anything_is_done_is_one_error_too(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Runs(write_model(tmp_path / "model", intermediate_size=80), write_text(tmp_path / "text.txt"))
    monkeypatch.setattr(f"shearfx.pipeline.{place}", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(TrainingError, match=r"out of memory while (tracing|finding out|measuring what each node)"):
        if place.startswith("subject"):
            fresh(tmp_path / "run")
        else:
            loaded = as_loaded(tiny_llama())
            measure_knowledge(loaded, ShearConfig.of_mapping(options(fresh.text)), Silent())


class Failing:
    """The loss, until memory runs out in the fourth step."""

    left = 4

    def __call__(self, *args: Any) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return causal_loss(*args)
