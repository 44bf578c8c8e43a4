"""What all stages that learn or judge have in common: the data, the adapters, the loss, the clock."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shearfx.config import ShearConfig
from shearfx.config_values import LearningRate
from shearfx.data import IGNORED, Examples, Kind, distinct, hold_out, open_source, pack
from shearfx.errors import TrainingError, message
from shearfx.evaluation import ParameterCount, parameter_count
from shearfx.inference import computes_bfloat16, positions
from shearfx.live_adapters import adapters_of
from shearfx.models import device_named
from shearfx.pipeline.adapting import Factors, adapting
from shearfx.pipeline.held import Held, floating
from shearfx.pipeline.tellers import Teller
from shearfx.training import Mixture, Recovery, Stage, losses_of
from shearfx.training.losses import Teacher, causal_loss
from shearfx.training.merging import merge_into

TRAINED = 0.8
"""Share of what is left of a wall-clock budget that goes into training steps; the rest judges, cuts and saves."""
IN_ALL = 0.9
"""Share of what is left when training begins after which it ends in any case."""
LONG = 1024
"""Tokens of the windows that show what reaches far back."""


class Study:
    """One run's data and the ways to learn from it.

    Args:
        model: the model that the run starts from; says which device, dtype and vocabulary fit.
        tokenizer: its own.
        config: of the run.
        teller: told how it goes.
        spent: seconds that the run has taken already, in processes before this one.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        config: ShearConfig,
        teller: Teller,
        spent: float = 0.0,
    ) -> None:
        self.tokenizer, self.config, self.teller = tokenizer, config, teller
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
        self.vocabulary: int | None = getattr(embedding, "num_embeddings", None)
        self.longest = positions(model)
        """Positions that the model has, where they are limited."""
        if self.longest is not None and config.sequence_length > self.longest:
            what = f"windows of {config.sequence_length} tokens, and the model has {self.longest} positions"
            raise TrainingError(message(what, where="sequence_length", todo=f"set it to {self.longest} at most"))
        self._start = time.monotonic() - spent
        self.lr = rate_for(config.lr, getattr(embedding, "embedding_dim", None))
        """Peak learning rate."""
        self.device = device_for(config.device)
        self.dtype = dtype_of(config.dtype, model, self.device)
        self.train: dict[str, list[Examples]] = {"pretrain": [], "instruct": []}
        self.validation: dict[str, list[Examples]] = {"pretrain": [], "instruct": []}
        torch.manual_seed(config.seed)

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between its processes."""
        return time.monotonic() - self._start

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
        asked: list[tuple[Kind, str]] = [("pretrain", spec) for spec in config.pretrain]
        asked += [("instruct", spec) for spec in config.instruct]
        with self.teller.step("reading and packing data") as progress:
            sources = [open_source(spec, kind=kind) for kind, spec in asked]
            names = distinct([source.name for source in sources], [spec for _, spec in asked])
            for (kind, spec), source, name in zip(asked, sources, names, strict=True):
                packed = pack(
                    source, self.tokenizer, sequence_length=config.sequence_length, max_tokens=config.max_tokens,
                    min_tokens=config.min_tokens, progress=lambda done, of: progress(done, of or 0),
                )  # fmt: skip
                self._check_vocabulary(packed)
                packed = dataclasses.replace(packed, name=name)
                train, held = hold_out(packed, config.validation, seed=config.seed, where=spec)
                self.train[kind].append(train)
                self.validation[kind].append(held)
        for examples in (*self.train["pretrain"], *self.train["instruct"]):
            self.teller.note(str(examples))

    def _check_vocabulary(self, examples: Examples) -> None:
        largest = int(examples.ids.max())
        if self.vocabulary is not None and largest >= self.vocabulary:
            what = f"the tokenizer gives id {largest}, and the model has {self.vocabulary} embeddings"
            todo = "use the tokenizer that belongs to the model"
            raise TrainingError(message(what, where=f"source {examples.name!r}", todo=todo))

    def doubt(self, losses: Mapping[str, float]) -> None:
        """Look where the full model predicts text worse than how often its tokens come does: often not its tokenizer.

        Args:
            losses: the full model's, by source, nats a token.

        Raises:
            TrainingError: there is such a text, and ``check_tokenizer`` is set.
        """
        for examples in (*self.train["pretrain"], *self.train["instruct"]):
            loss, blind = losses[examples.name], entropy_of(examples.ids[examples.labels != IGNORED])
            if loss > blind:
                what = f"on {examples.name} the full model's loss is {loss:.2f} nats a token, and {blind:.2f} would do "
                what += "without looking at any context: does the tokenizer belong to the model, and an adapter to its "
                what += "base?"
                if self.config.check_tokenizer:
                    todo = "use the tokenizer that it was trained with; or set check_tokenizer: false if that is so"
                    raise TrainingError(message(what, where="judging the full model", todo=todo))
                self.teller.note(f"caution: {what}")

    @property
    def sources(self) -> list[Examples]:
        """What there is to learn from: of text where there is any, else of instructions."""
        return self.train["pretrain"] or self.train["instruct"]

    def batches(self, windows: int, seed: int) -> list[Tensor]:
        """Windows of all sources alike, those of text where there are any; of dialogues without their padding."""
        mixture = Mixture(self.sources, 1, seed=seed)
        length, stream = self.config.sequence_length, torch.empty(0, dtype=torch.int64)
        drawn: list[Tensor] = []
        while len(drawn) < windows:
            (ids,), (labels,) = (mixture.next()[name] for name in ("input_ids", "labels"))
            stream = torch.cat([stream, ids[: max(1, last_learnt(labels) + 1)]])
            while len(stream) >= length:
                drawn.append(stream[:length])
                stream = stream[length:]
        found = torch.stack(drawn[:windows]).to(self.device)
        return list(found.split(self.config.batch_size))

    def long_windows(self, count: int, seed: int) -> list[Tensor]:
        """Neighbours put together to windows of LONG tokens, or as many as the model has positions: what copies from
        far back shows in these, and hardly in windows as short as recovery is content with.

        Args:
            count: of windows; fewer where there is no more text.
            seed: of which.

        Returns:
            int64 ``[1, tokens]`` each, of all sources of text in turn; of instructions where there is none.
        """
        length = self.config.sequence_length
        joined = max(1, min(LONG, self.longest or LONG) // length)
        if not self.train["pretrain"]:
            return list(torch.cat(self.batches(count * joined, seed)).view(count, joined * length).split(1))
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for examples in self.train["pretrain"]:
            side = min(joined, len(examples))
            runs = examples.ids[: len(examples) // side * side].view(-1, side * length)
            drawn.append(runs[torch.randperm(len(runs), generator=generator)[:count]].to(self.device).split(1))
        turns = itertools.chain.from_iterable(itertools.zip_longest(*drawn))
        return [ids for ids in turns if ids is not None][:count]

    def judge(self, model: nn.Module, what: str, bare: ParameterCount | None = None) -> dict[str, Any]:
        """Losses on what was held out, and sizes: ``bare``, of a model that has adapters on it."""
        held = [*self.validation["pretrain"], *self.validation["instruct"]]
        with self.teller.step(f"judging the {what} model") as progress:
            losses = losses_of(model, held, self.config.batch_size, progress)
        broken = next((name for name, loss in losses.items() if not math.isfinite(loss)), None)
        if broken is not None:
            where, todo = f"judging the {what} model", "look for weights that are not finite, or train at a lower rate"
            raise TrainingError(message(f"its loss on {broken} is {losses[broken]}", where=where, todo=todo))
        count = bare or parameter_count(model)
        shown = ", ".join(f"{name} {math.exp(min(loss, 700)):.2f}" for name, loss in losses.items())
        self.teller.note(f"{what}: {count.total:,} parameters; perplexity on held-out windows: {shown}")
        return {"losses": losses, "parameters": count.total, "without_embeddings": count.without_embeddings}

    def hold(self, model: nn.Module, reopen: Callable[[], nn.Module] | None = None) -> Held:
        """The model beside its form for training; see :class:`Held`."""
        return Held(model, self.device, self.dtype, reopen)

    # -- training --------------------------------------------------------------------------------------

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

    def steps(self, model: Callable[[], nn.Module], teacher: Teacher | None) -> int:
        """Optimiser steps of the budget; of a wall clock, what fits into the rest of it, by timing some.

        Args:
            model: gives what is trained, where that has to be timed.
            teacher: the full model's word.
        """
        config = self.config
        if config.steps is not None:
            return config.steps
        if config.tokens is not None:
            return config.tokens // (config.batch_size * config.accumulate * config.sequence_length)
        assert config.minutes is not None
        with self.teller.step("timing a training step"):
            seconds = self._step_seconds(model(), teacher) * config.accumulate
        left = 60 * config.minutes - self.seconds
        count = max(1, int(TRAINED * left / seconds))
        self.teller.note(f"a step takes {seconds:.1f} s: {count} steps fit into {config.minutes:g} minutes")
        return count

    def _deadline(self) -> float | None:
        """When training has to end, should steps turn out slower than they were when timed."""
        if self.config.minutes is None:
            return None
        left = 60 * self.config.minutes - self.seconds
        if left <= 0:
            self.teller.note(f"caution: the {self.config.minutes:g} minutes are over: recovery takes one step")
        return time.monotonic() + IN_ALL * max(0.0, left)

    def _step_seconds(self, model: nn.Module, teacher: Teacher | None) -> float:
        mixture = Mixture(self.sources, self.config.batch_size, seed=0)
        times = []
        with adapting(self.config, model) as wrapped:
            wrapped.train()
            for _ in range(3):
                start = time.monotonic()
                self.loss(wrapped, mixture.next(), teacher).backward()
                times.append(time.monotonic() - start)
        return sorted(times)[1] * 1.05

    def base(self, small: Held) -> nn.Module:
        """A cut model as recovery trains adapters on it."""
        small.quantize(self.config.quantize)
        return small.work

    def recover(
        self,
        small: Held,
        reference: Mapping[str, float],
        steps: int,
        teacher: Teacher | None,
        *,
        state: Path | None = None,
        log: Callable[..., None] | None = None,
        start: Factors | None = None,
        keep: Callable[[Any], None] | None = None,
    ) -> nn.Module:
        """Algorithm 5 on a cut model.

        Args:
            small: the cut model; what it holds is used up.
            reference: the full model's losses on what is held out, by source.
            steps: optimiser steps.
            teacher: the full model's word, where ``distill`` asks for it.
            state: folder of checkpoints.
            log: told of every step and round.
            start: what the adapters begin from.
            keep: given the model with its adapters at the end, which are then not merged.

        Returns:
            The cut model in its own dtype, which may be finer than that of training, with what adapters learnt in it.
        """
        stages = [
            Stage(kind, tuple(self.train[kind]), tuple(self.validation[kind]))
            for kind in ("pretrain", "instruct") if self.train[kind]
        ]  # fmt: skip
        with adapting(self.config, self.base(small), start) as wrapped:
            self._recover(wrapped.train(), stages, reference, steps, teacher, state, log)
            learnt = adapters_of(wrapped)
            if keep is not None:
                keep(wrapped)
        small.drop_work()
        model = small.original
        if keep is None:
            merge_into(model, learnt)
        return model

    def _recover(
        self,
        wrapped: Any,
        stages: list[Stage],
        reference: Mapping[str, float],
        steps: int,
        teacher: Teacher | None,
        state: Path | None,
        log: Callable[..., None] | None,
    ) -> None:
        config = self.config
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        with self.teller.step("dynamic recovery (Algorithm 5)") as progress:
            said = ""

            def told(metrics: dict[str, Any]) -> None:
                nonlocal said
                said = f"{metrics['stage']}, loss {metrics['loss']:.3f}"
                if log is not None:
                    log("recover", **metrics)

            Recovery(
                wrapped, lambda: torch.optim.AdamW(trained, lr=self.lr, weight_decay=config.weight_decay), stages,
                reference, steps, rounds=config.rounds, balance=config.balance, tolerance=config.tolerance,
                teacher=teacher, distill=config.distill, batch_size=config.batch_size, accumulate=config.accumulate,
                seed=config.seed, checkpoint=state, every=config.checkpoint_seconds, deadline=self._deadline(),
                on_step=told,
                progress=lambda done, total: progress(done, total, said),
                on_round=lambda one: log("round", **vars(one)) if log is not None else None,
            ).run()  # fmt: skip


def last_learnt(labels: Tensor) -> int:
    """Where the last label is that counts; what comes after it is padding. -1 where there is none.

    >>> last_learnt(torch.tensor([IGNORED, 5, 6, IGNORED]))
    2
    """
    learnt = (labels != IGNORED).nonzero()
    return int(learnt[-1]) if len(learnt) else -1


def entropy_of(ids: Tensor) -> float:
    """Of the frequencies of tokens, in nats: the loss of a model that knows these and looks at nothing.

    >>> round(entropy_of(torch.tensor([[1, 1, 2, 2]])), 3)
    0.693
    """
    shares = ids.flatten().bincount().double() / ids.numel()
    return float(torch.special.entr(shares).sum())


def rate_for(asked: LearningRate, width: int | None) -> float:
    """The peak learning rate of LoRA: what is asked for, or what suits the width of the embedding (0.001 without one).

    Wider models want smaller steps, as rates go by one over the width in Yang et al. 2022 (arXiv 2203.03466). The
    constants are those of trials: of 0.001 to 0.012, 0.004 to 0.008 are best at a width of 64 (stories260k), of 0.001
    to 0.004 the upper half at a width of 576 (SmolLM2): ``benchmarks/results/trials.md``.

    >>> rate_for("auto", 64), round(rate_for("auto", 4096), 6), rate_for(1e-4, 64)
    (0.006, 0.000293, 0.0001)
    """
    if asked != "auto":
        return asked
    return 1e-3 if width is None else min(6e-3, 1.2 / width)


def device_for(asked: str) -> torch.device:
    """One GPU where there is one and none is asked for, else the CPU.

    Raises:
        ShearError: there is no such device.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device_named(asked)


def dtype_of(asked: str, model: nn.Module, device: torch.device) -> torch.dtype:
    """What is asked for; else bfloat16 where the hardware computes in it, and float32, or the model's own float64."""
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if computes_bfloat16(device):
        return torch.bfloat16
    return torch.promote_types(floating(model), torch.float32)
