"""LoRAShear from end to end: analyse, prune, cut, recover. Every stage is recorded and can be resumed.

Source: LoRAShear, Algorithm 1.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.budget import open_sizes, operation_budget
from shearfx.checkpoints import load, save
from shearfx.compensation import compensate_cut
from shearfx.config import ShearConfig
from shearfx.construction import construct, remember
from shearfx.data import Examples, hold_out, open_source, pack
from shearfx.errors import PlanError, TrainingError, message
from shearfx.evaluation import parameter_count
from shearfx.graph import Graph
from shearfx.knowledge import check_possible, knowledge_distribution, prunable
from shearfx.low_rank import adapters_of
from shearfx.models import LoadedModel, load_model
from shearfx.optim import LHSPG
from shearfx.optim.choosing import Chooser, Redundant
from shearfx.pruning_plan import PruningPlan, masks_of, of_cuts
from shearfx.run_directory import RunDirectory
from shearfx.saliency import find
from shearfx.selection import Selection, Tied, select
from shearfx.speed import alternating
from shearfx.training import Loop, Mixture, Recovery, Stage, losses_of, token_loss
from shearfx.training.merging import merge_into

Progress = Callable[[int, int], None]


class Teller(Protocol):
    """Who is told how it goes: the command line's ``Talk``, or nobody."""

    def step(self, what: str) -> contextlib.AbstractContextManager[Progress]:
        """A step that takes a while; yields a function of (done, total)."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """Tells nobody."""

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Progress]:
        """Nothing is shown."""
        yield lambda done, total: None

    def note(self, text: str) -> None:
        """Nothing is shown."""


@dataclass(frozen=True)
class Sheared:
    """What a run gave."""

    model: nn.Module
    """The smaller model, recovered, in its own class and dtype."""
    plan: PruningPlan
    record: dict[str, Any]
    """What every stage found: ``dense``, ``knowledge``, ``prune``, ``cut``, ``recover``."""
    path: Path
    """The run's folder; the model lies in ``model``."""


def shear(
    model: nn.Module | str | LoadedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    teller: Teller | None = None,
    config: ShearConfig | None = None,
    **options: Any,
) -> Sheared:
    """Make a language model smaller by LoRAShear, and teach it again what it lost.

    Args:
        model: a causal language model, or what :func:`shearfx.models.load_model` takes.
        tokenizer: for a model that is passed as such.
        out: the run's folder (see :class:`shearfx.run_directory.RunDirectory`).
        resume: go on with a run that was cut off.
        teller: told how it goes.
        config: all options; or by name: ``options`` are the fields of :class:`shearfx.config.ShearConfig`.

    Raises:
        ShearError: anything about model, data or options that stands against it, before training where it can be known.
    """
    chosen = ShearConfig.of_mapping(options) if config is None else config
    chosen.check()
    if isinstance(model, nn.Module):
        from shearfx.example_inputs import example_inputs, kind_of
        from shearfx.inference import device_of

        kwargs = example_inputs(model, device_of(model))
        model = LoadedModel(model, type(model).__name__, kind_of(model), kwargs=kwargs, tokenizer=tokenizer)
    elif isinstance(model, str):
        model = load_model(model)
    run = RunDirectory(Path(out).expanduser(), model.source, chosen, resume=resume)
    return Shearing(model, chosen, run, teller or Silent()).run()


class Shearing:
    """One run: the stages, and what they share."""

    def __init__(self, loaded: LoadedModel, config: ShearConfig, run: RunDirectory, teller: Teller) -> None:
        self.config, self.folder, self.teller = config, run, teller
        self.start = time.monotonic()
        self.model, self.tokenizer = loaded.module.eval(), loaded.tokenizer
        self.arguments = (loaded.args, loaded.kwargs)
        self.device = _device(config.device)
        self.dtype = _dtype(config.dtype, self.model, self.device)
        torch.manual_seed(config.seed)
        self._work: nn.Module | None = None
        self._graph: Graph | None = None
        self._tied: list[Tied] | None = None

    # -- what stages share -----------------------------------------------------------------------------

    @property
    def work(self) -> nn.Module:
        """The full model as it is trained and taught by: on the device, in the training dtype."""
        if self._work is None:
            same = self.dtype == _floating(self.model) and self.device == next(self.model.parameters()).device
            self._work = self.model if same else copy.deepcopy(self.model).to(self.device, self.dtype)
            for parameter in self._work.parameters():
                parameter.requires_grad_(False)
        return self._work

    @property
    def graph(self) -> Graph:
        """The analysis of the full model."""
        if self._graph is None:
            with self.teller.step("tracing and analysing"):
                self._graph = trace(self.model, *self.arguments[0], **self.arguments[1])
                remember(self.model, self._graph)
        return self._graph

    @property
    def tied(self) -> list[Tied]:
        """What may be cut, and what only together."""
        if self._tied is None:
            config, graph = self.config, self.graph
            with self.teller.step("finding out what the model's own class can express"):
                wanted = Selection((), (), config.exclude, config.kinds, (), "global", "module")
                self._tied, refused = select(graph, self.model, wanted)
            if not self._tied:
                reasons = "; ".join(refused) or "the graph has no groups"
                raise PlanError(message("nothing can be cut", where=reasons, todo='see graph.pins, or form="fx"'))
        return self._tied

    @property
    def amount(self) -> int:
        """Parameters to go."""
        count = parameter_count(self.model)
        return round(self.config.ratio * (count.total if self.config.of == "all" else count.without_embeddings))

    def run(self) -> Sheared:
        """All stages that are not done yet, in order."""
        self._prepare()
        self._dense()
        plan = self._prune()
        small = self._cut(plan)
        small = self._recover(small, plan)
        self._weigh(small, plan)
        return Sheared(small, plan, self.folder.records, self.folder.path)

    # -- data ------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        config = self.config
        if not config.pretrain and not config.instruct:
            todo = "pass pretrain= (--pretrain) text files, parquet, JSON lines or a hub name, or instruct="
            raise TrainingError(message("there is nothing to score, train and judge by", where="data", todo=todo))
        self.train: dict[str, list[Examples]] = {"pretrain": [], "instruct": []}
        self.validation: dict[str, list[Examples]] = {"pretrain": [], "instruct": []}
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

    def _batches(self, windows: int, seed: int) -> list[Tensor]:
        """Windows of all sources alike, those of text where there are any."""
        sources = self.train["pretrain"] or self.train["instruct"]
        mixture = Mixture(sources, 1, seed=seed)
        drawn = [mixture.next()["input_ids"] for _ in range(windows)]
        return [torch.cat(drawn[i : i + self.config.batch_size]).to(self.device)
                for i in range(0, windows, self.config.batch_size)]  # fmt: skip

    def _judge(self, model: nn.Module, what: str) -> dict[str, Any]:
        held = [*self.validation["pretrain"], *self.validation["instruct"]]
        with self.teller.step(f"judging the {what} model") as progress:
            losses = losses_of(model, held, self.config.batch_size, progress)
        count = parameter_count(model)
        shown = ", ".join(f"{name} {math.exp(min(loss, 700)):.2f}" for name, loss in losses.items())
        self.teller.note(f"{what}: {count.total:,} parameters; perplexity on held-out windows: {shown}")
        return {"losses": losses, "parameters": count.total, "without_embeddings": count.without_embeddings}

    # -- stages ----------------------------------------------------------------------------------------

    def _dense(self) -> None:
        if not self.folder.done("dense"):
            found = self._judge(self.work, "dense")
            self.folder.finish("dense", found | {"dtype": str(self.dtype)})

    def _steps(self) -> int:
        """Optimiser steps of the budget; of a wall clock, what fits into the rest of it when training begins."""
        if not self.folder.done("budget"):
            self.folder.finish("budget", {"steps": self._budget()})
        return int(self.folder.records["budget"]["steps"])

    def _budget(self) -> int:
        config = self.config
        each = config.batch_size * config.accumulate * config.sequence_length
        if config.tokens is not None:
            return config.tokens // each
        assert config.minutes is not None
        with self.teller.step("timing a training step"):
            seconds = self._step_seconds() * config.accumulate
        left = 60 * config.minutes - (time.monotonic() - self.start)
        steps = int(TRAINED * left / seconds)
        self.teller.note(f"a step takes {seconds:.1f} s: {steps} steps fit into {config.minutes:g} minutes")
        return max(steps, 1)

    def _step_seconds(self) -> float:
        wrapped = self._wrap(copy.deepcopy(self.work))
        mixture = Mixture(self.train["pretrain"] or self.train["instruct"], self.config.batch_size, seed=0)
        times = []
        for _ in range(3):
            start = time.monotonic()
            batch = mixture.next()
            self._loss(wrapped, batch, self._teacher() if self.config.distill > 0 else None).backward()
            times.append(time.monotonic() - start)
        return sorted(times)[1] * 1.05

    def _knowledge(self) -> list[Tied]:
        config = self.config
        if config.gamma is None:
            return self.tied
        ratio = self.amount / parameter_count(self.model).total
        if self.folder.done("knowledge"):
            return prunable(self.tied, self.folder.records["knowledge"]["unprunable"])
        limits = {"floor": config.floor, "round_to": config.round_to}
        check_possible(self.graph, self.tied, config.gamma, ratio, **limits)  # type: ignore[arg-type]
        with self.teller.step("measuring what each node group knows (Algorithm 3)") as progress:
            found = knowledge_distribution(
                self.graph, self.work, self._batches(config.knowledge_windows, config.seed + 1), tied=self.tied,
                saliency="fisher", ratios=config.knowledge_ratios, gamma=config.gamma, seed=config.seed,
                scores=self._scores(self.tied), cache=self.folder.path / "knowledge.jsonl",
                announce=lambda cost: self.teller.note(str(cost)), progress=progress,
            )  # fmt: skip
        names = list(found.unprunable())
        check_possible(self.graph, self.tied, names, ratio, **limits)  # type: ignore[arg-type]
        self.folder.write("knowledge.json", found.to_json())
        self.folder.finish("knowledge", {"unprunable": names})
        self.teller.note(f"unprunable: {', '.join(names) or 'nothing'}")
        return prunable(self.tied, names)

    def _scores(self, tied: list[Tied]) -> dict[str, Tensor]:
        groups = list({g.name: g for t in tied for g in t.groups}.values())
        batches = self._batches(self.config.scoring_windows, self.config.seed + 2)
        proxy = find(self.config.saliency if self.config.prune_share == 0 else "fisher")
        return proxy.score(self.graph, self.work, groups=groups, data=batches, seed=self.config.seed)

    def _prune(self) -> PruningPlan:
        if self.folder.done("prune"):
            return PruningPlan.from_json((self.folder.path / "plan.json").read_text(encoding="utf-8"))
        tied = self._knowledge()
        config = self.config
        chooser = Chooser(self.graph, tied, floor=config.floor, round_to=config.round_to)
        most = chooser.most_possible()
        if self.amount > most:
            what = f"a ratio of {config.ratio:g} asks for {self.amount:,} parameters, and at most {most:,} can go"
            raise PlanError(message(what, todo="ask for less, a smaller floor, or more kinds"))
        if config.prune_share == 0:
            with self.teller.step(f"scoring structures by {config.saliency}"):
                scores = self._scores(tied)
            redundant, _ = chooser.choose(self.amount, scores, find(config.saliency).unit)
        else:
            redundant = self._progressive(tied)
        plan = self._plan_of(redundant)
        self.folder.write("plan.json", plan.to_json())
        cuts: dict[str, list[int]] = {}
        for cut in plan.cuts:
            row = cuts.setdefault(cut.kind, [0, 0])
            row[0] += cut.size - len(cut.kept)
            row[1] += cut.size
        self.folder.finish("prune", {"asked": plan.asked, "achieved": plan.achieved, "cuts": cuts})
        shown = ", ".join(f"{gone:,} of {size:,} {kind}" for kind, (gone, size) in cuts.items())
        self.teller.note(f"cut: {shown}: {plan.achieved:.2%} of the parameters")
        return plan

    def _plan_of(self, redundant: Redundant) -> PruningPlan:
        sizes = {g.name: g.size for g in self.graph.groups}
        kept = {}
        for name, gone in redundant.items():
            out = set(gone)
            kept[name] = [i for i in range(sizes[name]) if i not in out]
        config = self.config
        options = {"saliency": config.saliency, "ratio": config.ratio, "of": config.of, "recipe": config.recipe}
        plan = of_cuts(self.graph, kept, asked=self.amount / max(self.graph.total_params, 1), options=options)
        with self.teller.step("solving for the class's attributes"):
            return settle(self.model, self.graph, plan)

    def _progressive(self, tied: list[Tied]) -> Redundant:
        """LHSPG with adapters; what they learnt stays on the working copy for the cut."""
        config = self.config
        steps = max(2, round(config.prune_share * self._steps()))
        warmup = round(config.warmup * steps)
        length = max(1, (steps - warmup) // config.periods)
        self._wrapped = self._wrap(self.work)
        optimizer = LHSPG(
            self.graph, self._wrapped, target=self.amount, warmup=warmup, periods=config.periods,
            period_length=length, saliency=config.saliency, half_space_eps=config.half_space_eps,
            penalty=config.penalty, strength=config.strength, carrier=config.carrier,
            merge="period" if config.merge == "period" else "never", lr=config.lr,
            weight_decay=config.weight_decay, tied=tied, floor=config.floor, round_to=config.round_to,
            seed=config.seed,
        )  # fmt: skip
        teacher = self._inner_teacher(optimizer) if config.distill > 0 and config.carrier == "gates" else None
        sources = [*self.train["pretrain"], *self.train["instruct"]]
        mixture = Mixture(sources, config.batch_size, seed=config.seed)
        loop = Loop(
            self._wrapped, optimizer, mixture, lambda m, b: self._loss(m, b, teacher), optimizer.schedule.steps,
            accumulate=config.accumulate, checkpoint=self.folder.path / "state" / "prune", least=1.0,
            every=config.checkpoint_seconds, on_step=lambda metrics: self.folder.log("prune", **metrics),
        )  # fmt: skip
        loop.resume()
        self._wrapped.train()
        with self.teller.step("progressive pruning (Algorithm 4)") as progress:
            for metrics in loop.run():
                progress(metrics["step"], loop.steps)
        self._wrapped.eval()
        optimizer.detach()
        for entry in optimizer.history:
            self.folder.log("period", **entry)
        return optimizer.redundant

    def _inner_teacher(self, optimizer: LHSPG) -> Callable[[Tensor], Tensor]:
        """The full model inside the one that is trained: gates open, adapters off; no second copy in memory."""
        wrapped = self._wrapped

        def ask(ids: Tensor) -> Tensor:
            with torch.no_grad(), optimizer.gates.opened(), wrapped.disable_adapter():
                logits: Tensor = wrapped(input_ids=ids, use_cache=False).logits
            return logits

        return ask

    def _cut(self, plan: PruningPlan) -> nn.Module:
        place = self.folder.path / "cut"
        if self.folder.done("cut"):
            return load(place)
        config = self.config
        wrapped = getattr(self, "_wrapped", None)
        mutated = wrapped is not None and (config.carrier == "weights" or config.merge == "period")
        with self.teller.step("cutting"):
            if wrapped is None:
                small = construct(self.model, plan)
            else:
                deltas = adapters_of(wrapped)
                self._work = wrapped.unload()
                source = self._work if mutated else self.model
                small = construct(source, plan).to(dtype=_floating(self.model))
                merge_into(small, deltas, plan)
        if wrapped is None and config.compensation:
            with self.teller.step("compensating by least squares"):
                batches = self._batches(config.scoring_windows, config.seed + 3)
                compensate_cut(self.graph, self.work, small, plan, batches, _call)
        save(small, plan, place, tokenizer=self.tokenizer, overwrite=True)
        found = self._judge(copy.deepcopy(small).to(self.device, self.dtype), "cut")
        self.folder.finish("cut", found)
        return small

    def _recover(self, small: nn.Module, plan: PruningPlan) -> nn.Module:
        place = self.folder.path / "model"
        if self.folder.done("recover"):
            return load(place)
        config, records = self.config, self.folder.records
        total = self._steps()
        steps = total - (round(config.prune_share * total) if config.prune_share else 0)
        stages = [
            Stage(kind, tuple(self.train[kind]), tuple(self.validation[kind]))
            for kind in ("pretrain", "instruct") if self.train[kind]
        ]  # fmt: skip
        wrapped = self._wrap(copy.deepcopy(small).to(self.device, self.dtype))
        wrapped.train()
        with self.teller.step("dynamic recovery (Algorithm 5)") as progress:

            def told(metrics: dict[str, Any]) -> None:
                self.folder.log("recover", **metrics)
                progress(metrics["step"], steps)

            recovery = Recovery(
                wrapped, lambda: torch.optim.AdamW(_trained(wrapped), lr=config.lr, weight_decay=config.weight_decay),
                stages, records["dense"]["losses"], steps, rounds=config.rounds, balance=config.balance,
                tolerance=config.tolerance, teacher=self._teacher() if config.distill > 0 else None,
                distill=config.distill, batch_size=config.batch_size, accumulate=config.accumulate, seed=config.seed,
                checkpoint=self.folder.path / "state" / "recover", every=config.checkpoint_seconds, on_step=told,
                on_round=lambda one: self.folder.log("round", **vars(one)),
            )  # fmt: skip
            recovery.run()
        merge_into(small, adapters_of(wrapped))
        save(small, plan, place, tokenizer=self.tokenizer, overwrite=True)
        found = self._judge(copy.deepcopy(small).to(self.device, self.dtype), "recovered")
        self.folder.finish("recover", found | {"minutes": (time.monotonic() - self.start) / 60})
        return small

    def _weigh(self, small: nn.Module, plan: PruningPlan) -> None:
        """What the cut saves besides parameters: operations of the traced call, and time."""
        if self.folder.done("speed"):
            return
        budget = operation_budget(self.graph)
        sizes = {atom: int(mask.sum()) for atom, mask in masks_of(self.graph, plan).items()}
        found: dict[str, Any] = {
            "flops": {"dense": budget.total, "recovered": budget.cost(range(len(budget.products)), sizes)},
            "flops_sizes": open_sizes(self.graph),
        }
        if hasattr(self.model, "generate"):
            cut = copy.deepcopy(small).to(self.device, self.dtype).eval()
            with self.teller.step("timing prefill and decode, by turns") as progress:
                before, after = alternating(self.work.eval(), cut, TURNS, progress)
            for what in ("prefill", "decode"):
                both = zip(("dense", "recovered"), (before, after), strict=True)
                found[what] = {name: statistics.median(getattr(s, what) for s in speeds) for name, speeds in both}
            found["timed"] = str(before[0]).partition("(")[2].rstrip(")")
        found["minutes"] = (time.monotonic() - self.start) / 60
        self.folder.finish("speed", found)

    # -- training --------------------------------------------------------------------------------------

    def _wrap(self, model: nn.Module) -> Any:
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

    def _teacher(self) -> Callable[[Tensor], Tensor]:
        full = self.work.eval()

        def ask(ids: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = full(input_ids=ids, use_cache=False).logits
            return logits

        return ask

    def _loss(self, model: nn.Module, batch: dict[str, Tensor], teacher: Callable[[Tensor], Tensor] | None) -> Tensor:
        ids, labels = batch["input_ids"].to(self.device), batch["labels"].to(self.device)
        hints = None if teacher is None else teacher(ids)
        return token_loss(model(input_ids=ids, use_cache=False).logits, labels, hints, self.config.distill)


TURNS = 5
"""Timings of each model, one after the other, so that what else the machine does meets both."""

TRAINED = 0.8
"""Share of what is left of a wall-clock budget that goes into training steps; the rest judges, cuts and saves."""


def _call(model: nn.Module, ids: Tensor) -> Any:
    return model(input_ids=ids, use_cache=False)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _floating(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(asked)


def _dtype(asked: str, model: nn.Module, device: torch.device) -> torch.dtype:
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native and device.type == "cpu" else _floating(model)
