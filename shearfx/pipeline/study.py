"""What all stages that learn or judge have in common: the data, the adapters, the loss, the clock."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shearfx.config import ShearConfig
from shearfx.data import Examples, hold_out, open_source, pack
from shearfx.errors import TrainingError, message
from shearfx.evaluation import parameter_count
from shearfx.low_rank import adapters_of
from shearfx.pipeline.tellers import Teller
from shearfx.training import Mixture, Recovery, Round, Stage, losses_of
from shearfx.training.losses import Teacher, causal_loss
from shearfx.training.merging import merge_into

TRAINED = 0.8
"""Share of what is left of a wall-clock budget that goes into training steps; the rest judges, cuts and saves."""


class Study:
    """One run's data and the ways to learn from it.

    Args:
        model: the model that the run starts from; says which device, dtype and vocabulary fit.
        tokenizer: its own.
        config: of the run.
        teller: told how it goes.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, config: ShearConfig, teller: Teller
    ) -> None:
        self.model, self.tokenizer, self.config, self.teller = model, tokenizer, config, teller
        self.start = time.monotonic()
        self.device = device_for(config.device)
        self.dtype = dtype_of(config.dtype, model, self.device)
        self.train: dict[str, list[Examples]] = {"pretrain": [], "instruct": []}
        self.validation: dict[str, list[Examples]] = {"pretrain": [], "instruct": []}
        torch.manual_seed(config.seed)

    # -- data ------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read, pack and split all sources.

        Raises:
            TrainingError: there are none, or the tokenizer is another model's.
            DataError: a source cannot be used.
        """
        config = self.config
        if not config.pretrain and not config.instruct:
            todo = "pass pretrain= (--pretrain) text files, parquet, JSON lines or a hub name, or instruct="
            raise TrainingError(message("there is nothing to score, train and judge by", where="data", todo=todo))
        with self.teller.step("reading and packing data") as progress:
            for kind, specs in (("pretrain", config.pretrain), ("instruct", config.instruct)):
                for spec in specs:
                    source = open_source(spec, kind=kind)  # type: ignore[arg-type]
                    packed = pack(
                        source, self.tokenizer, sequence_length=config.sequence_length, max_tokens=config.max_tokens,
                        min_tokens=config.min_tokens, progress=lambda done, of: progress(done, of or 0),
                    )  # fmt: skip
                    self._check_vocabulary(packed)
                    train, held = hold_out(packed, config.validation, seed=config.seed)
                    self.train[kind].append(train)
                    self.validation[kind].append(held)
        for examples in (*self.train["pretrain"], *self.train["instruct"]):
            self.teller.note(str(examples))

    def _check_vocabulary(self, examples: Examples) -> None:
        embedding = getattr(self.model, "get_input_embeddings", lambda: None)()
        size = getattr(embedding, "num_embeddings", None)
        largest = int(examples.ids.max())
        if size is not None and largest >= size:
            what = f"the tokenizer gives id {largest}, and the model has {size} embeddings"
            todo = "use the tokenizer that belongs to the model"
            raise TrainingError(message(what, where=f"source {examples.name!r}", todo=todo))

    def batches(self, windows: int, seed: int) -> list[Tensor]:
        """Windows of all sources alike, those of text where there are any."""
        sources = self.train["pretrain"] or self.train["instruct"]
        mixture = Mixture(sources, 1, seed=seed)
        drawn = [mixture.next()["input_ids"] for _ in range(windows)]
        return [torch.cat(drawn[i : i + self.config.batch_size]).to(self.device)
                for i in range(0, windows, self.config.batch_size)]  # fmt: skip

    def judge(self, model: nn.Module, what: str) -> dict[str, Any]:
        """Losses on what was held out, and sizes."""
        held = [*self.validation["pretrain"], *self.validation["instruct"]]
        with self.teller.step(f"judging the {what} model") as progress:
            losses = losses_of(model, held, self.config.batch_size, progress)
        count = parameter_count(model)
        shown = ", ".join(f"{name} {math.exp(min(loss, 700)):.2f}" for name, loss in losses.items())
        self.teller.note(f"{what}: {count.total:,} parameters; perplexity on held-out windows: {shown}")
        return {"losses": losses, "parameters": count.total, "without_embeddings": count.without_embeddings}

    def working_copy(self, model: nn.Module) -> nn.Module:
        """The model on the device and in the training dtype: itself where it is so."""
        same = self.dtype == floating(model) and self.device == next(model.parameters()).device
        return model if same else copy.deepcopy(model).to(self.device, self.dtype)

    # -- training --------------------------------------------------------------------------------------

    def wrap(self, model: nn.Module) -> Any:
        """The model with adapters; everything else is frozen."""
        from peft import LoraConfig, get_peft_model

        config = self.config
        targets = "all-linear" if config.targets == ("all-linear",) else list(config.targets)
        settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
                              target_modules=targets, task_type="CAUSAL_LM")  # fmt: skip
        torch.manual_seed(config.seed)
        wrapped = get_peft_model(model, settings)
        if config.gradient_checkpointing:
            wrapped.enable_input_require_grads()
            wrapped.gradient_checkpointing_enable()
        return wrapped

    def teacher_of(self, full: nn.Module) -> Teacher:
        """What a full model says of token ids."""
        full.eval()

        def ask(ids: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = full(input_ids=ids, use_cache=False).logits
            return logits

        return ask

    def loss(self, model: nn.Module, batch: dict[str, Tensor], teacher: Teacher | None) -> Tensor:
        """Of a microbatch."""
        return causal_loss(model, batch, teacher, self.config.distill)

    def steps(self, model: nn.Module, teacher: Teacher | None) -> int:
        """Optimiser steps of the budget; of a wall clock, what fits into the rest of it, by timing some."""
        config = self.config
        each = config.batch_size * config.accumulate * config.sequence_length
        if config.tokens is not None:
            return config.tokens // each
        assert config.minutes is not None
        with self.teller.step("timing a training step"):
            seconds = self._step_seconds(model, teacher) * config.accumulate
        left = 60 * config.minutes - (time.monotonic() - self.start)
        count = max(1, int(TRAINED * left / seconds))
        self.teller.note(f"a step takes {seconds:.1f} s: {count} steps fit into {config.minutes:g} minutes")
        return count

    def _step_seconds(self, model: nn.Module, teacher: Teacher | None) -> float:
        wrapped = self.wrap(copy.deepcopy(model))
        mixture = Mixture(self.train["pretrain"] or self.train["instruct"], self.config.batch_size, seed=0)
        times = []
        for _ in range(3):
            start = time.monotonic()
            self.loss(wrapped, mixture.next(), teacher).backward()
            times.append(time.monotonic() - start)
        return sorted(times)[1] * 1.05

    def recover(
        self,
        small: nn.Module,
        reference: Mapping[str, float],
        steps: int,
        teacher: Teacher | None,
        state: Path | None = None,
        log: Callable[..., None] | None = None,
    ) -> list[Round]:
        """Algorithm 5 on a cut model, which is changed in place: what adapters learn is merged in its own dtype.

        Args:
            small: the cut model.
            reference: the full model's losses on what is held out, by source.
            steps: optimiser steps.
            teacher: the full model's word, where ``distill`` asks for it.
            state: folder of checkpoints.
            log: told of every step and round.
        """
        stages = [
            Stage(kind, tuple(self.train[kind]), tuple(self.validation[kind]))
            for kind in ("pretrain", "instruct") if self.train[kind]
        ]  # fmt: skip
        work = self.working_copy(small)
        with adapting(self, work) as wrapped:
            rounds = self._recover(wrapped.train(), stages, reference, steps, teacher, state, log)
            learnt = adapters_of(wrapped)
        merge_into(small, learnt)  # in its own dtype, which may be finer than that of training
        return rounds

    def _recover(
        self,
        wrapped: Any,
        stages: list[Stage],
        reference: Mapping[str, float],
        steps: int,
        teacher: Teacher | None,
        state: Path | None,
        log: Callable[..., None] | None,
    ) -> list[Round]:
        config = self.config
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        with self.teller.step("dynamic recovery (Algorithm 5)") as progress:
            done = 0

            def told(metrics: dict[str, Any]) -> None:
                nonlocal done
                done += 1
                if log is not None:
                    log("recover", **metrics)
                progress(done, steps)

            return Recovery(
                wrapped, lambda: torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay), stages,
                reference, steps, rounds=config.rounds, balance=config.balance, tolerance=config.tolerance,
                teacher=teacher, distill=config.distill, batch_size=config.batch_size, accumulate=config.accumulate,
                seed=config.seed, checkpoint=state, every=config.checkpoint_seconds, on_step=told,
                on_round=lambda one: log("round", **vars(one)) if log is not None else None,
            ).run()  # fmt: skip


@contextlib.contextmanager
def adapting(study: Study, model: nn.Module) -> Iterator[Any]:
    """The model with adapters for the while; afterwards it is what it was, but for what was merged into it."""
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    wrapped = study.wrap(model)
    try:
        yield wrapped
    finally:
        wrapped.unload()
        model.train(training)
        for name, parameter in model.named_parameters():  # PEFT froze them
            parameter.requires_grad_(wanted[name])


def floating(model: nn.Module) -> torch.dtype:
    """The dtype of a model's floating parameters."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def device_for(asked: str) -> torch.device:
    """One GPU where there is one and none is asked for, else the CPU."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(asked)


def dtype_of(asked: str, model: nn.Module, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes in it and nothing else is asked for."""
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native and device.type == "cpu" else floating(model)
