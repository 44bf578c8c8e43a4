"""Other calls under which a cut model has to be right: a mask, other attention kernels, decoding with caches."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shearfx.acceptance import Failure, UnsupportedError, difference, of_plan, of_traced
from shearfx.canonical import REARRANGING
from shearfx.capture import CaptureError, capture
from shearfx.errors import PlanError
from shearfx.graph import Graph
from shearfx.passes import ANALYSIS, run
from shearfx.pruning_plan import PruningPlan, masks_of
from shearfx.reads import recording
from shearfx.tracing import Traced


@dataclass(frozen=True)
class Probe:
    """A call, and what is known of it for the uncut model."""

    name: str
    call: dict[str, Any]
    attention: str | None
    forward: Callable[[nn.Module], Callable[..., Any]]
    traced: Traced
    graph: Graph | None
    """Its analysis; None where the call cannot be analysed (a cache written in place), only run."""


def probes_of(full: nn.Module, call: dict[str, Any], log: dict[tuple[str, str], int]) -> list[Probe]:
    """The probes that the uncut model passes; what its code reads in them is added to the log."""
    found = []
    for name, arguments, attention, forward in _calls(full, call):
        try:
            with _attention(full, attention), recording(full) as reads:
                traced = capture(full, arguments, forward(full), lines=False)
        except CaptureError:
            continue  # the uncut model cannot do that, so neither need the cut one
        for key, value in reads.items():
            log.setdefault(key, value)
        found.append(Probe(name, arguments, attention, forward, traced, _analysed(traced)))
    return found


def _analysed(traced: Traced) -> Graph | None:
    nodes = [node for node in traced.graph.nodes if hasattr(node.target, "_schema")]
    if any(node.target._schema.is_mutable for node in nodes):
        return None
    graph = Graph(traced)
    try:
        run(graph, ANALYSIS)
    except Exception:  # an invariant that a static graph does not keep: the call is run, not analysed
        return None
    return graph


def _calls(model: nn.Module, call: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str | None, Any]]:
    parameters = inspect.signature(model.forward).parameters
    whole = _identity
    padded = dict(call)
    for tokens, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        ids = call.get(tokens)
        if isinstance(ids, torch.Tensor) and ids.dim() == 2 and mask in parameters:
            padded[mask] = torch.ones(ids.shape, dtype=torch.long, device=ids.device)
    if padded.keys() != call.keys():
        yield "with a padding mask", padded, None, whole
    current = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if current is not None and hasattr(model, "set_attn_implementation"):
        for attention in ("eager", "sdpa"):
            if attention != current:
                yield f"{attention} attention", padded, attention, whole
    if getattr(model, "can_generate", lambda: False)():
        yield "decoding with a cache", padded, None, _decode
        yield "decoding with a static cache", padded, None, _decode_static


def _identity(model: nn.Module) -> Callable[..., Any]:
    return model


def _decode(model: nn.Module, cache: Callable[[], dict[str, Any]] = dict) -> Callable[..., Any]:
    """Two steps: the prompt, then one token more with what the first step left in the cache."""

    def forward(**call: Any) -> Any:
        step = "decoder_input_ids" if "decoder_input_ids" in call else "input_ids"
        first = model(**{**call, **cache(), "use_cache": True})
        kept = "past_key_values" if hasattr(first, "past_key_values") else "cache_params"
        ids = call[step]
        mask = step.replace("input_ids", "attention_mask")
        second = {**call, step: ids[:, :1], kept: getattr(first, kept), "use_cache": True}
        if mask in call:
            ones = torch.ones((ids.shape[0], ids.shape[1] + 1), dtype=call[mask].dtype, device=ids.device)
            second[mask] = ones
        return first[0], model(**second)[0]

    return forward


def _decode_static(model: Any) -> Callable[..., Any]:
    def cache() -> dict[str, Any]:
        from transformers import EncoderDecoderCache, StaticCache

        first = StaticCache(config=model.config, max_cache_len=32)
        if not getattr(model.config, "is_encoder_decoder", False):
            return {"past_key_values": first}
        return {"past_key_values": EncoderDecoderCache(first, StaticCache(config=model.config, max_cache_len=32))}

    return _decode(model, cache)


def _configs(model: nn.Module) -> list[Any]:
    """Of a model and its parts, those inside others too."""
    found: dict[int, Any] = {}
    left: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    while left:
        config = left.pop()
        if hasattr(config, "sub_configs") and id(config) not in found:
            found[id(config)] = config
            left.extend(getattr(config, name, None) for name in config.sub_configs)
    return list(found.values())


@contextlib.contextmanager
def _attention(model: Any, name: str | None) -> Iterator[None]:
    if name is None:
        yield
        return
    # Parts of a model may have their own: setting the outermost one back would set all alike.
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        try:
            model.set_attn_implementation(name)
        except Exception as error:  # not offered by this class
            raise CaptureError(error, (), None) from None
        yield
    finally:
        for config, own in before:
            config._attn_implementation = {"": own}


def check_probe(probe: Probe, small: nn.Module, plan: PruningPlan, lines: bool = True) -> Failure | None:
    """Whether the cut model does in this call what it should; ``lines``: and if not, in which line of code."""
    try:
        with _attention(small, probe.attention):
            actual = capture(small, probe.call, probe.forward(small), lines=lines)
    except CaptureError as error:
        return Failure(str(error), error.where, error.paths)
    norms = {c.weight for c in probe.graph.composed} if probe.graph is not None else set()
    # A norm that runs twice in one call is not composed, so its compensation is not foreseen there.
    if probe.graph is not None and all(how.weight in norms for how in plan.compensations):
        with contextlib.suppress(PlanError, UnsupportedError):
            masks = masks_of(probe.graph, plan)
            table: dict[Any, int] = {}
            expected, module = of_plan(probe.graph, masks, plan.shapes_after(), {}, table)
            return difference(expected, module, of_traced(actual, table), actual)
    return _alike(probe.traced, actual)


def _alike(full: Traced, small: Traced) -> Failure | None:
    """Weaker than equality: outputs of the same shape by the same operators (but for rearranging ones) in order."""
    names = [
        [str(n.target) for n in t.graph.nodes
         if n.op == "call_function" and getattr(n.target, "overloadpacket", None) not in REARRANGING]
        for t in (full, small)
    ]  # fmt: skip
    if _shapes(full) != _shapes(small):
        return Failure(f"outputs have shapes {_shapes(small)} where they had {_shapes(full)}")
    if names[0] != names[1]:
        return Failure("the code takes another path than it did before the cut")
    return None


def _shapes(traced: Traced) -> list[Any]:
    output = next(node for node in traced.graph.nodes if node.op == "output")
    return [tuple(v.meta["val"].shape) for v in output.args[0] if hasattr(v, "meta") and "val" in v.meta]
