"""Two stages of LoRAShear by themselves: what a model knows where, and recovery of a model that was cut before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shearfx.analysis import trace
from shearfx.architectures import shapes
from shearfx.atomic import PLAN_FILE
from shearfx.checkpoints import save
from shearfx.config import ShearConfig
from shearfx.config_idle import KNOWLEDGE, RECOVERY, beside
from shearfx.errors import CheckpointError, PlanError, TrainingError, message
from shearfx.fewer_layers import is_full
from shearfx.knowledge import KnowledgeDistribution, knowledge_distribution
from shearfx.models import LoadedModel, load_model
from shearfx.pipeline.given import check_plain
from shearfx.pipeline.kinds import asked, kinds_in
from shearfx.pipeline.out_of_memory import memory_guard
from shearfx.pipeline.study import Study
from shearfx.pipeline.tellers import Teller
from shearfx.plain_config import config_before
from shearfx.pruning_plan import PruningPlan
from shearfx.run_directory import PLAN, RunDirectory
from shearfx.saliency import find
from shearfx.selection import Selection, seen, select


def measure_knowledge(
    loaded: LoadedModel, config: ShearConfig, teller: Teller, cache: Path | None = None
) -> KnowledgeDistribution:
    """Algorithm 3 on its own: every node group of the kinds asked for, in any form.

    Args:
        loaded: the model.
        config: data, ratios, windows and kinds; the rest is not looked at.
        teller: told how it goes.
        cache: a file that every measurement is appended to; an analysis that was stopped goes on from it.

    Raises:
        ShearError: anything about model, data or options that stands against it.
    """
    check_plain(loaded.module, loaded.source)
    _tell_idle(config, KNOWLEDGE, "the knowledge analysis", teller)
    study = Study(loaded.module.eval(), loaded.tokenizer, config, teller)
    study.read()
    with memory_guard("measuring what each node group knows", config):
        return _knowledge(loaded, study, config, teller, cache)


def _knowledge(
    loaded: LoadedModel, study: Study, config: ShearConfig, teller: Teller, cache: Path | None
) -> KnowledgeDistribution:
    with teller.step("tracing and analysing"):
        graph = trace(loaded.module, *loaded.args, **loaded.kwargs)
    kinds = kinds_in(graph, config, teller)
    tied, refused = select(graph, None, Selection((), (), config.exclude, kinds, (), config.scope, "fx"))
    tied = seen(tied, refused, find("fisher"), graph, loaded.module, asked(config))
    work = study.hold(loaded.module).work
    with teller.step("measuring what each node group knows (Algorithm 3)") as progress:
        return knowledge_distribution(
            graph, work, study.batches(config.knowledge_windows, config.seed + 1), tied=tied, saliency="fisher",
            ratios=config.knowledge_ratios, gamma=config.gamma, seed=config.seed, cache=cache,
            announce=lambda cost: teller.note(str(cost)), progress=progress,
        )  # fmt: skip


def recover_model(
    small: str, original: str, out: Path, config: ShearConfig, teller: Teller, *, resume: bool = False
) -> dict[str, Any]:
    """Algorithm 5 on its own: read a model that shearfx cut, teach it, write it beside its plan.

    Args:
        small: folder that shearfx wrote.
        original: the full model, as :func:`shearfx.models.load_model` takes it.
        out: the run's folder (see :class:`shearfx.run_directory.RunDirectory`); the model lies in ``model`` in it.
        config: data, budget and options of recovery; the rest is not looked at.
        teller: told how it goes.
        resume: go on with a run that was cut off.

    Returns:
        What ``dense``, ``cut`` and ``recover`` are in a run's record.

    Raises:
        ShearError: anything that stands against it.
    """
    plan_file = Path(small).expanduser() / PLAN_FILE
    if not plan_file.is_file():
        what, todo = f"there is no {PLAN_FILE} in it: shearfx did not cut this model", "name the folder that it wrote"
        raise CheckpointError(message(what, where=small, todo=todo))
    if config.merge == "never":
        todo = "set merge: end; a run of `shearfx shear` keeps its adapter"
        raise PlanError(message("recovery by itself merges what it learnt", where="merge: never", todo=todo))
    plan = PruningPlan.from_json(plan_file.read_text(encoding="utf-8"))
    run = RunDirectory(out.expanduser(), f"{small}, cut from {original}", config, resume=resume)
    run.tell_changes(teller.note)
    _tell_idle(config, RECOVERY, "recovery", teller)
    if not run.done("recover"):
        run.write(PLAN, plan.to_json())
        _recover(_Pair(small, original, plan, teller), plan, run, config, teller)
    return run.records


def _tell_idle(config: ShearConfig, used: tuple[str, ...], stage: str, teller: Teller) -> None:
    strange = beside(config, used)
    if strange:
        teller.note(f"caution: {stage} does not look at {', '.join(strange)}")


class _Pair:
    """A cut model and the full one."""

    def __init__(self, small: str, original: str, plan: PruningPlan, teller: Teller) -> None:
        with teller.step("loading both models"):
            self.full, self.cut = load_model(original), load_model(small)
        self.read_full = lambda: load_model(original).module
        self.read_cut = lambda: load_model(small).module
        full = self.full.module
        try:
            if not is_full(full, plan):
                plan.check_fits(shapes(full), original)
        except PlanError as error:
            what = (
                f"{type(full).__name__} from {original} is not what {small} was cut from: {str(error).splitlines()[0]}"
            )
            raise TrainingError(message(what, todo="name the model that was pruned")) from error


def _recover(both: _Pair, plan: PruningPlan, run: RunDirectory, config: ShearConfig, teller: Teller) -> None:
    full, cut = both.full.module.eval(), both.cut.module
    original = config_before(cut, full, plan)
    study = Study(full, both.cut.tokenizer or both.full.tokenizer, config, teller, run.spent)
    study.read()
    held, compact = study.hold(full, both.read_full), study.hold(cut, both.read_cut)
    with memory_guard("judging and recovering", config, lambda: bool(run.records)):
        for name, one in (("dense", held), ("cut", compact)):
            if not run.done(name):
                run.finish(name, study.judge(one.work, name))
        teacher = study.teacher_of(held.work) if config.distill > 0 else None
        if teacher is None:
            held.release()
        if not run.done("budget"):
            run.finish("budget", {"steps": study.steps(lambda: study.base(compact), teacher)})
        model = study.recover(
            compact, run.records["dense"]["losses"], run.records["budget"]["steps"], teacher,
            state=run.path / "state" / "recover", log=run.log,
        )  # fmt: skip
        save(model, plan, run.path / "model", tokenizer=study.tokenizer, original_config=original, overwrite=True)
        found = study.judge(study.hold(model).work, "recovered")
    run.finish("recover", found | {"minutes": study.seconds / 60})
