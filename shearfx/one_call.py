"""The one call: LoRAShear from a model to a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.config import ShearConfig
from shearfx.errors import PlanError, message
from shearfx.models import LoadedModel
from shearfx.pipeline.given import Reading, given
from shearfx.pipeline.handed_data import named, write_records
from shearfx.pipeline.shearing import Sheared, Shearing
from shearfx.pipeline.tellers import Silent, Teller
from shearfx.run_directory import RunDirectory, asked
from shearfx.viz.report.beside import report_beside


def shear(
    model: nn.Module | str | LoadedModel | Reading,
    data: Any = None,
    *,
    out: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    teller: Teller | None = None,
    config: ShearConfig | None = None,
    **options: Any,
) -> Sheared:
    """Make a language model smaller by LoRAShear, and teach it again what it lost.

    A model that the run reads itself (by name, or by a function) is let go of as soon as it is not needed any more;
    without distillation the run then takes hardly more memory than LoRA fine-tuning. A model that is passed stays as it
    is. Adapters on it are merged first. The run's folder gets a page on what happened, ``report.html``.

    Args:
        model: a causal language model, what :func:`shearfx.models.load_model` takes, or a function that reads it.
        data: what to learn from: names of files, folders or hub data sets; records in memory, such as a
            ``datasets.Dataset`` gives; or either under ``{"pretrain": ..., "instruct": ...}``. Or by the options
            ``pretrain`` and ``instruct``.
        out: the run's folder (see :class:`shearfx.run_directory.RunDirectory`); records in memory are written into it.
        tokenizer: for a model that is passed as such.
        resume: go on with a run that was cut off, with its options; those that only matter to what is still to come
            may be given other values (see :data:`shearfx.config_changes.LATER`).
        teller: told how it goes.
        config: all options; or by name: ``options`` are the fields of :class:`shearfx.config.ShearConfig`.

    Raises:
        ShearError: anything about model, data or options that stands against it, before training where it can be known.
    """
    if config is not None and options:
        what = f"config= states all options, and {', '.join(options)} beside it"
        todo = "pass one of them, or dataclasses.replace(config, ...)"
        raise PlanError(message(what, where="shear(...)", todo=todo))
    path = Path(out).expanduser()
    names, records = named(data, path)
    twice = [name for name in names if name in options or config is not None]
    if twice:
        what = f"data= names what {'config=' if config is not None else twice[0] + '='} does"
        raise PlanError(message(what, where="shear(...)", todo="pass it once"))
    chosen = asked(path, options | names, resume) if config is None else config
    chosen.check()
    told = teller or Silent()
    loaded, reopen = given(model, tokenizer, told)
    run = RunDirectory(path, loaded.source, chosen, resume=resume)
    write_records(run, records)
    sheared = Shearing(loaded, chosen, run, told, reopen=reopen).run()
    report_beside(sheared.path, told.note)
    return sheared
