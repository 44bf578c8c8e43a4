"""What a run starts from: a causal language model with plain weights; everything else is refused before any work."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.adapters import configs_of
from shearfx.errors import CheckpointError, TrainingError, message
from shearfx.example_inputs import example_inputs, kind_of
from shearfx.inference import device_of
from shearfx.models import LoadedModel, load_model
from shearfx.pipeline.tellers import Teller

Reading = Callable[[], LoadedModel]
"""Reads a model, as often as it is asked for: what it gives is the run's own, and may be used up."""


def given(
    model: nn.Module | str | LoadedModel | Reading, tokenizer: PreTrainedTokenizerBase | None, teller: Teller
) -> tuple[LoadedModel, Callable[[], nn.Module] | None]:
    """The model of a run, and how to read it again; None of one that a caller holds, which must stay as it is.

    Adapters on it are merged: a run has its own, and cuts what both compute together.

    Raises:
        TrainingError: it is no causal language model, or its weights are quantised.
        CheckpointError: it cannot be read, or has adapters that cannot be merged.
    """
    if isinstance(model, str):
        model = functools.partial(load_model, model)
    if isinstance(model, nn.Module):
        check_plain(model, type(model).__name__)
        kwargs = example_inputs(model, device_of(model))
        model = LoadedModel(model, type(model).__name__, kind_of(model), kwargs=kwargs, tokenizer=tokenizer)
    reading = None if isinstance(model, LoadedModel) else model
    loaded = model if isinstance(model, LoadedModel) else model()
    check_plain(loaded.module, loaded.source)
    if loaded.kind != "causal-lm":
        what = f"{type(loaded.module).__name__} is no causal language model, and shear trains by the next token"
        todo = "use shearfx.plan and shearfx.optim.LHSPG in a training loop of your own"
        raise TrainingError(message(what, where=loaded.source, todo=todo))
    adapters = configs_of(loaded.module)
    if not adapters:
        check_bare(loaded.module, loaded.source)
        return loaded, None if reading is None else lambda: reading().module
    teller.note(f"merged into the base first: adapter {', '.join(adapters)}")
    wrapped = loaded.module
    for stranger in _strangers(wrapped, adapters):
        teller.note(f"caution: {stranger}; of one shape, but are they of one model?")

    def merged_again() -> nn.Module:
        return _merged(reading().module if reading is not None else copy.deepcopy(wrapped))

    base = _merged(wrapped if reading is not None else copy.deepcopy(wrapped))
    return dataclasses.replace(loaded, module=base), merged_again


def _strangers(wrapped: nn.Module, adapters: Mapping[str, Any]) -> Iterator[str]:
    """Adapters that name another base than the one that they are on; folders are compared by their last part."""
    base = str(getattr(getattr(wrapped, "config", None), "_name_or_path", "") or "")
    for name, settings in adapters.items():
        trained = str(getattr(settings, "base_model_name_or_path", "") or "")
        if trained and base and Path(trained).name != Path(base).name:
            yield f"adapter {name} was trained on {trained}, and is on {base}"


def _merged(wrapped: nn.Module) -> nn.Module:
    try:
        merged: nn.Module = cast(Any, wrapped).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        what = f"its adapter cannot be merged into its base: {' '.join(str(error).split())}"
        todo = "put the adapter on the base that it was trained on, and merge it: model.merge_and_unload()"
        raise CheckpointError(message(what, where=type(wrapped).__name__, todo=todo)) from error
    for parameter in merged.parameters():
        parameter.requires_grad_(True)  # PEFT had frozen them
    return merged.eval()


def check_bare(model: nn.Module, source: str) -> None:
    """Raise TrainingError where layers carry adapters, but no PeftModel around them says how to merge them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    place = next((path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)), None)
    if place is not None:
        what = f"layers of the model carry adapters, {place} first"
        todo = "load the base alone and merge them: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
        raise TrainingError(message(what, where=source, todo=todo))


def check_plain(model: nn.Module, source: str) -> None:
    """Raise TrainingError where weights are quantised: nothing can be sliced out of packed numbers, nor merged in."""
    packed = next(((n, p) for n, p in model.named_parameters() if p.numel() and not p.is_floating_point()), None)
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    if packed is None and not settings:
        return
    if packed is not None:
        how = f"{packed[0]} holds {str(packed[1].dtype).removeprefix('torch.')}"
    else:
        how = str(getattr(settings, "quant_method", None) or "quantization_config")
    what = f"the weights are quantised ({how}), and what is packed cannot be cut"
    todo = "dequantise it first, model.dequantize(), or load the checkpoint that it was quantised from; with quantize: "
    todo += "4bit recovery trains on packed weights"
    raise TrainingError(message(what, where=source, todo=todo))
