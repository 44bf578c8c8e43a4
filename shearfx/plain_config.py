"""Can a configuration state the cut? Then the small model is an ordinary Hugging Face model.

Fields are searched for, not looked up: numbers of the config that equal a size which changes, the smallest set with
which the class builds tensors of exactly the cut shapes. Equal shapes are not acceptance (a count that equals another
by chance passes): the class so built, given the cut weights, must also have the same graph as the small model, the
same buffers, and the same outputs bit by bit, under several calls and implementations of attention.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedConfig, PreTrainedModel

from shearfx.acceptance import UnsupportedError, of_traced
from shearfx.adapters import base_name, configs_of, unwrapped, wrap
from shearfx.architectures import assign, config_of, empty_model, named_tensors, plain_copy, shapes, with_storage
from shearfx.bias_compensation import added_biases
from shearfx.capture import CaptureError, capture
from shearfx.construction import example_call
from shearfx.dims import Atom, Dim, Prod, Sum, leaves, prod
from shearfx.errors import PlanError, ShearError, message
from shearfx.graph import new_size
from shearfx.plan_text import parse_term
from shearfx.pruning_plan import PruningPlan
from shearfx.shallow import any_layer
from shearfx.tracing import evaluation

__all__ = ["PlainConfig", "config_before", "original_config_of", "plain_config"]

MOST_BUILDS = 300
"""How often the class is built (on meta) before the search gives up."""

Shapes = dict[str, tuple[int, ...]]
Path = tuple[str | int, ...]
Change = tuple[Path, int | float]


@dataclass(frozen=True)
class PlainConfig:
    """The outcome: a config that states the cut and the fields in which it differs, or None and the reason."""

    config: PreTrainedConfig | None
    fields: dict[str, int | float] = field(default_factory=dict)
    reason: str = ""


def plain_config(small: nn.Module, plan: PruningPlan, original: PreTrainedConfig | None = None) -> PlainConfig:
    """A configuration with which the class itself builds the small model, if there is one.

    Args:
        small: what ``construct(model, plan)`` gave; weights on the meta device are enough. Left as it was.
        plan: the plan it was made with.
        original: the configuration of the full-size model; by default the small model's own.
    """
    base = unwrapped(small)
    if not isinstance(base, PreTrainedModel):
        return PlainConfig(None, reason=f"{type(base).__name__} is no Hugging Face class")
    if added := added_biases(small, plan):
        return PlainConfig(None, reason=f"{len(added)} layers got a bias at the cut, {added[0]} first")
    try:
        original = original_config_of(small, plan, original)
    except PlanError as error:
        return PlainConfig(None, reason=str(error).splitlines()[0])
    target = base_shapes(shapes(small))
    search = _Search(type(base), original, base_shapes(plan.shapes), target)
    reason = "no fields of the configuration give tensors of these shapes: layers differ, or it has no such field"
    for changes in search.candidates(plan):
        config = search.config(changes)
        try:
            refusal = _refusal(small, config, plan)
        except (ShearError, CaptureError, UnsupportedError) as error:
            refusal = str(error).splitlines()[0]
        if not refusal:
            return PlainConfig(config, {".".join(map(str, path)): value for path, value in changes})
        reason = f"with {_shown(changes)} in the configuration, {refusal}"
    return PlainConfig(None, reason=reason)


def original_config_of(
    small: nn.Module, plan: PruningPlan, original: PreTrainedConfig | None = None
) -> PreTrainedConfig:
    """The configuration of the model that the plan was made for: the given one, or the small model's own.

    Raises:
        PlanError: there is none, or the class builds other tensors from it than the plan was made for.
    """
    base = unwrapped(small)
    config = original or config_of(base)
    if config is None:
        todo = "pass original_config=model.config of the full-size model"
        raise PlanError(message("the small model does not know the full-size model's configuration", todo=todo))
    if original is None or isinstance(base, PreTrainedModel):
        built = shapes(empty_model(type(base), config))
        wanted = base_shapes(plan.shapes)
        if built != wanted:
            name = next(n for n in {**built, **wanted} if built.get(n) != wanted.get(n))
            raise PlanError(
                message(
                    f"the configuration is not that of the model the plan was made for: {name} would have shape "
                    f"{built.get(name)}, not {wanted.get(name)}",
                    todo="pass original_config=model.config of the full-size model",
                )
            )
    return config


def config_before(small: nn.Module, full: nn.Module, plan: PruningPlan) -> PreTrainedConfig | None:
    """The configuration of the model that a plan was made for: the small model's, with the cut's fields put back.

    That of the full model may state more layers than there were when the plan was made.

    Args:
        small: cut by the plan.
        full: with all its layers; the fields' values are taken from its configuration.
        plan: says which fields state the cut.

    Raises:
        PlanError: the class builds other tensors from it than the plan was made for.
    """
    config, before = config_of(unwrapped(small)), config_of(full)
    if config is None or before is None:
        return before
    data, source = config.to_dict(), before.to_dict()
    for name in plan.config:
        (*outer, last), to, of = name.split("."), data, source
        for key in outer:
            to, of = _item(to, key), _item(of, key)
        to[int(last) if isinstance(to, list) else last] = _item(of, last)
    return original_config_of(small, plan, type(config).from_dict(data))


def _item(holder: Any, key: str) -> Any:
    return holder[int(key) if isinstance(holder, list) else key]


def base_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Shapes by the names that tensors have without adapters."""
    return {base: tuple(shape) for name, shape in shapes.items() if (base := base_name(name)) is not None}


class _Search:
    """Sets of changed fields with which a class builds tensors of given shapes, smallest first."""

    def __init__(self, cls: Any, original: PreTrainedConfig, before: Shapes, after: Shapes) -> None:
        self.cls, self.original, self.before, self.after = cls, original, before, after
        self.data = original.to_dict()
        self.builds = 0

    def config(self, changes: tuple[Change, ...]) -> PreTrainedConfig:
        data = copy.deepcopy(self.data)
        for path, value in changes:
            holder: Any = data
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
        return type(self.original).from_dict(data)

    def shapes(self, changes: tuple[Change, ...]) -> Shapes | None:
        """None where the class does not like the config."""
        self.builds += 1
        try:
            return shapes(empty_model(self.cls, self.config(changes)))
        except Exception:  # classes check their configs with errors of all kinds
            return None

    def candidates(self, plan: PruningPlan) -> Iterator[tuple[Change, ...]]:
        numbers = dict(_numbers(self.data))
        epsilons = list(self._epsilons(plan, numbers))
        if plan.compensations and not epsilons:
            return
        useful = self._useful(numbers, size_changes(plan))
        for count in range(len(useful) + 1):
            for paths in itertools.combinations(useful, count):
                for values in itertools.product(*(useful[path] for path in paths)):
                    changes = tuple(zip(paths, values, strict=True))
                    if self.builds > MOST_BUILDS:
                        return
                    if self.shapes(changes) == self.after:
                        yield from (changes + epsilon for epsilon in epsilons or [()])

    def _useful(self, numbers: Mapping[Path, int | float], sizes: Mapping[int, set[int]]) -> dict[Path, list[int]]:
        """Fields that may have to change, with the values that they may get.

        A field that shrinks what the cut leaves alone cannot be meant, one that shrinks nothing need not be.
        """
        found: dict[Path, list[int]] = {}
        for path, value in numbers.items():
            if not isinstance(value, int) or value not in sizes or self.builds > MOST_BUILDS:
                continue
            values = sorted(sizes[value])
            first = self.shapes(((path, values[0]),))
            if first is not None and len(values) > 1:
                values = [v for v in values if v in self._demanded(first, value, values[0])] or values
                if self._differ(first):
                    continue
            values = [v for v in values if (built := self.shapes(((path, v),))) is None or self._towards(built)]
            if values:
                found[path] = values
        return found

    def _changed(self, built: Shapes) -> Iterator[tuple[str, int, int]]:
        """The dims that a change alters: name, dim, and the size that the cut gives it."""
        for name, shape in built.items():
            before, after = self.before.get(name, ()), self.after.get(name, ())
            if len(before) == len(shape) == len(after):
                yield from ((name, i, after[i]) for i, size in enumerate(shape) if size != before[i])

    def _demanded(self, built: Shapes, old: int, new: int) -> set[int]:
        """What the dims that are the changed field itself are cut to."""
        changes = self._changed(built)
        return {after for name, i, after in changes if (self.before[name][i], built[name][i]) == (old, new)}

    def _differ(self, built: Shapes) -> bool:
        """Whether the cut gives the same dim of the same tensor in two layers, which one field sets, two sizes."""
        sizes: dict[tuple[str, int, int], set[int]] = {}
        for name, i, after in self._changed(built):
            sizes.setdefault((any_layer(name), i, self.before[name][i]), set()).add(after)
        return any(len(found) > 1 for found in sizes.values())

    def _towards(self, built: Shapes) -> bool:
        """Whether a change alters some dims, and only dims that the cut alters too."""
        if built.keys() != self.before.keys() or built == self.before:
            return False
        return all(
            len(shape) == len(self.before[name])
            and all(s == b or b != a for s, b, a in zip(shape, self.before[name], self.after[name], strict=True))
            for name, shape in built.items()
        )

    def _epsilons(self, plan: PruningPlan, numbers: Mapping[Path, int | float]) -> Iterator[tuple[Change, ...]]:
        """Norms whose divisor changes need another epsilon: one for all, or no config states it."""
        wanted = {(how.epsilon, how.epsilon * how.before / how.after) for how in plan.compensations}
        if len({old for old, _ in wanted}) < len(wanted):
            return
        floats = [(path, value) for path, value in numbers.items() if isinstance(value, float)]
        fields = [(path, new) for old, new in sorted(wanted) for path, value in floats if value == old]
        for count in range(1, len(fields) + 1):
            yield from itertools.combinations(fields, count)


def _numbers(data: Any, path: Path = ()) -> Iterator[tuple[Path, int | float]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, key), value
        else:
            yield from _numbers(value, (*path, key))


def size_changes(plan: PruningPlan) -> dict[int, set[int]]:
    """Every size that changes, with what it becomes: of atoms, of whole dims, and of products and sums within them."""
    atoms = [Atom(cut.size) for cut in plan.cuts]
    sizes = {atom: len(cut.kept) for atom, cut in zip(atoms, plan.cuts, strict=True)}
    changes: dict[int, set[int]] = {}
    for text in {term for terms in plan.terms.values() for term in terms if term is not None}:
        for part in _parts(parse_term(text, atoms)):
            before, after = int(part.size), int(new_size(part, sizes))
            if before != after:
                changes.setdefault(before, set()).add(after)
    return changes


def _parts(dim: Dim) -> Iterator[Dim]:
    yield dim
    if isinstance(dim, Prod):
        for count in range(1, len(dim.factors)):
            yield from (prod(factors) for factors in itertools.combinations(dim.factors, count))
        for factor in dim.factors:
            yield from _parts(factor)
    elif isinstance(dim, Sum):
        for part in dict.fromkeys(dim.parts):
            if any(True for _ in leaves(part)):
                yield from _parts(part)


# -- acceptance ----------------------------------------------------------------------------------------


def _refusal(small: nn.Module, config: PreTrainedConfig, plan: PruningPlan) -> str:
    """Why the class built from a config is not the small model; empty if it is.

    Raises:
        CaptureError, UnsupportedError, TraceError: one of them cannot be captured.
    """
    plain = empty_model(type(unwrapped(small)), config, like=unwrapped(small))
    if adapters := configs_of(small):
        plain = wrap(plain, copy.deepcopy(adapters)).eval()
    theirs = dict(plain.named_buffers(remove_duplicate=False))
    persistent = set(small.state_dict(keep_vars=True))
    for name, buffer in small.named_buffers(remove_duplicate=False):
        if name in persistent or buffer.is_meta:
            continue
        if (own := theirs.get(name)) is None or not torch.equal(own, buffer.to(own.device)):
            return f"the buffer {name} would have other values"
    for name, tensor in named_tensors(small).items():
        assign(plain, name, tensor)
    whole = not any(tensor.is_meta for tensor in named_tensors(small).values())
    cut, plain = with_storage(small), with_storage(plain)
    call = example_call(cut, plan)
    for implementation, arguments in _probes(cut, call):
        if implementation is not None:
            cut, plain = plain_copy(cut), plain_copy(plain)
            try:
                for model in (cut, plain):
                    unwrapped(model).set_attn_implementation(implementation)  # type: ignore[operator]
            except ValueError:  # some part of the model does not offer it
                continue
        table: dict[Any, int] = {}
        graphs = [of_traced(capture(model, arguments), table).outputs for model in (cut, plain)]
        if graphs[0] != graphs[1]:
            return "the class computes something else"
        if whole and not _same_outputs(cut, plain, arguments):
            return "the outputs differ"
    return ""


def _probes(model: nn.Module, call: dict[str, Any]) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Implementations of attention (None: as it is) and calls under which both models have to agree."""
    yield None, call
    base = unwrapped(model)
    tokens = call.get("input_ids")
    takes_mask = "attention_mask" in inspect.signature(base.forward).parameters
    if takes_mask and isinstance(tokens, torch.Tensor) and "attention_mask" not in call:
        mask = torch.ones_like(tokens)
        mask[0, 0] = 0
        call = {**call, "attention_mask": mask}
    present = getattr(config_of(base), "_attn_implementation", None)
    others = [name for name in ("eager", "sdpa") if name != present and _supports(base, name)]
    if takes_mask:
        yield None, call
    for name in others:
        yield name, call


def _supports(model: nn.Module, implementation: str) -> bool:
    if implementation == "eager":
        return True
    return bool(getattr(model, "_supports_sdpa", False))


def _same_outputs(first: nn.Module, second: nn.Module, call: Mapping[str, Any]) -> bool:
    """Whether two models of one class with the same tensors give the same numbers, bit by bit."""
    generator = torch.Generator().manual_seed(0)

    text = getattr(config_of(unwrapped(first)), "get_text_config", lambda: None)()
    tokens = getattr(text, "vocab_size", None)

    def filled(name: str, value: Any) -> Any:
        # The plan's record of a call has no values; whole numbers that are no tokens may index anything.
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        if isinstance(value, torch.Tensor) and name.endswith("input_ids") and isinstance(tokens, int):
            return torch.randint(tokens, value.shape, generator=generator).to(value.device, value.dtype)
        return value

    arguments = {name: filled(name, value) for name, value in call.items()}
    with evaluation(first), evaluation(second), torch.no_grad():
        pairs = zip(pytree.tree_leaves(first(**arguments)), pytree.tree_leaves(second(**arguments)), strict=True)
        return all(torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor))


def _shown(changes: tuple[Change, ...]) -> str:
    return ", ".join(f"{'.'.join(map(str, path))} = {value}" for path, value in changes)
