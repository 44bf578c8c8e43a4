"""A model without some of its layers, as its class builds it; nothing here proves that this computes the same."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from shearfx.architectures import assign, config_of, empty_model, named_tensors, plain_copy, shapes
from shearfx.errors import PlanError, message
from shearfx.overlay import is_integer
from shearfx.pruning_plan import PruningPlan, fingerprint

Key = tuple[str | int, ...]
"""Where a value of a configuration is: names, and places in lists."""

MOST_BUILDS = 100
"""How often a class is built (on meta) to find the configuration with fewer layers."""


def without(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """The model without some layers: a Hugging Face one as its class builds it from a configuration with fewer; others
    as a copy with shorter lists, in which attributes that number the layers are numbered anew.

    Tensors are shared with the full model, not copied. :func:`shearfx.depth.drop_layers` proves what this computes.

    Args:
        model: the full model; left as it was.
        paths: of the layers.

    Raises:
        PlanError: there are no such layers, or no configuration states what stays.
    """
    for path, gone in _by_list(paths).items():
        if not 0 <= max(gone) < _size(model, path):
            raise PlanError(message(f"there is no such layer in {path or 'the model'}", where=str(sorted(gone))))
    if not isinstance(model, PreTrainedModel) and any(isinstance(m, PreTrainedModel) for m in model.modules()):
        what, todo = f"a {type(model).__name__} wraps a Hugging Face model", "merge adapters and pass the model itself"
        raise PlanError(message(what, where="layers", todo=todo))
    if isinstance(model, PreTrainedModel):
        return _built(model, renamed(model, paths), paths)
    return _shortened(model, paths)


def before_cuts(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """The model that a plan's cuts are about: without the layers that go first where it is the full one, or as given.

    Raises:
        PlanError: as of :func:`without`.
    """
    return without(model, plan.layers) if is_full(model, plan) else model


def is_full(model: nn.Module, plan: PruningPlan) -> bool:
    """Whether a model has the layers yet that a plan lets go."""
    return bool(plan.layers) and fingerprint(shapes(model)) == plan.full


def renamed(model: nn.Module, paths: Sequence[str]) -> dict[str, str]:
    """Names of the parameters and buffers that stay, before and after layers go.

    Args:
        model: the full model.
        paths: of the layers that go.
    """
    numbers: dict[str, dict[int, int]] = {}
    for path, gone in _by_list(paths).items():
        stay = [i for i in range(_size(model, path)) if i not in gone]
        numbers[path] = {old: new for new, old in enumerate(stay)}
    found: dict[str, str] = {}
    for name in named_tensors(model):
        new: str | None = name
        for path, number in numbers.items():
            if name.startswith(f"{path}."):
                index, _, rest = name.removeprefix(f"{path}.").partition(".")
                new = f"{path}.{number[int(index)]}.{rest}" if int(index) in number else None
        if new is not None:
            found[name] = new
    return found


# -- Hugging Face models ------------------------------------------------------------------------------------


def _built(model: PreTrainedModel, names: Mapping[str, str], paths: Sequence[str]) -> nn.Module:
    """What the class builds from a configuration with fewer layers, with the tensors of the full model."""
    before = config_of(model)
    assert before is not None
    tensors = named_tensors(model)
    saved = set(model.state_dict(keep_vars=True))  # other buffers are the class's own business
    wanted = {new: tuple(tensors[old].shape) for old, new in names.items() if old in saved}
    if shapes(empty_model(type(model), before)) != shapes(model):
        what, todo = "its configuration does not state its shapes", "drop layers first, then cut widths"
        raise PlanError(message(what, where=type(model).__name__, todo=todo))
    for config in itertools.islice(_configs(model, before, paths), MOST_BUILDS):
        try:
            small = empty_model(type(model), config, like=model)
        except Exception:  # classes check their configs with errors of all kinds
            continue
        if {name: tuple(t.shape) for name, t in small.state_dict(keep_vars=True).items()} == wanted:
            for old, new in names.items():
                if old in saved:
                    assign(small, new, tensors[old])
            _take_over(small, names, tensors, saved)
            small.tie_weights()  # type: ignore[operator]
            return small.train(model.training)
    todo = "leave the layers in; a model of a class of your own can be shortened"
    raise PlanError(
        message("no configuration states the model without these layers", where=type(model).__name__, todo=todo)
    )


def _take_over(small: nn.Module, names: Mapping[str, str], tensors: Mapping[str, Tensor], saved: set[str]) -> None:
    """What the class works out for itself (rotary frequencies) as the full model has it: maybe in another dtype."""
    own = named_tensors(small)
    for old, new in names.items():
        if old not in saved and new in own and own[new].shape == tensors[old].shape:
            assign(small, new, tensors[old])


def _configs(model: nn.Module, before: PreTrainedConfig, paths: Sequence[str]) -> Iterator[PreTrainedConfig]:
    """Configurations in which a number of layers is smaller and what lists say of each layer goes with it."""
    options: list[list[list[tuple[Key, Any]]]] = []
    data = before.to_dict()
    for path, gone in _by_list(paths).items():
        size = _size(model, path)
        fields = list(_fields(data, size))
        numbers = [field for field, value in fields if not isinstance(value, list)]
        lists = [(field, [v for i, v in enumerate(value) if i not in gone]) for field, value in fields
                 if isinstance(value, list)]  # fmt: skip
        some = [of for count in (1, 2) for of in itertools.combinations(numbers, count)]
        shorter: list[list[tuple[Key, Any]]] = [[(field, size - len(gone)) for field in of] for of in some]
        # a list may happen to be as long: of blocks, say, where there are as many stages
        options.append([one + lists for one in shorter] + (shorter if lists else []))
    for chosen in itertools.product(*options):
        changed = copy.deepcopy(data)
        for field, value in itertools.chain.from_iterable(chosen):
            holder: Any = changed
            for key in field[:-1]:
                holder = holder[key]
            holder[field[-1]] = value
        try:
            yield type(before).from_dict(changed)
        except Exception:  # the same
            continue


def _fields(data: Mapping[str, Any], size: int, inside: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Fields that are a number of layers, one number of several, or a list with an item for each layer."""
    for name, value in data.items():
        if str(name).endswith("_token_id"):  # may be a list, of any length
            continue
        if isinstance(value, Mapping):
            yield from _fields(value, size, (*inside, name))
        elif (is_integer(value) and value == size) or (isinstance(value, list) and len(value) == size):
            yield (*inside, name), value
        if isinstance(value, list):  # the sizes of several lists
            yield from (((*inside, name, i), one) for i, one in enumerate(value) if is_integer(one) and one == size)


# -- other models -------------------------------------------------------------------------------------------


def _shortened(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """A copy with shorter lists."""
    small = plain_copy(model)
    for path, gone in _by_list(paths).items():
        items = small.get_submodule(path)
        assert isinstance(items, (nn.ModuleList, nn.Sequential))
        numbering = _numbering(items)
        for index in sorted(gone, reverse=True):
            del items[index]
        for index, item in enumerate(items):
            for inner, attribute in numbering:
                setattr(item.get_submodule(inner), attribute, index)
    return small


def _numbering(items: nn.ModuleList | nn.Sequential) -> list[tuple[str, str]]:
    """Attributes, by module inside an item, that are each item's own number."""
    found: list[tuple[str, str]] = []
    for inner, module in items[0].named_modules():
        for attribute, value in vars(module).items():
            if is_integer(value) and value == 0:
                values = []
                for item in items:
                    try:
                        values.append(getattr(item.get_submodule(inner), attribute, None))
                    except AttributeError:
                        break
                if values == list(range(len(items))) and len(items) > 1:
                    found.append((inner, attribute))
    return found


def _by_list(paths: Sequence[str]) -> dict[str, set[int]]:
    """Indices of the layers by the list that they are in."""
    found: dict[str, set[int]] = {}
    for path in paths:
        inside, _, index = path.rpartition(".")
        if not index.isdecimal():
            raise PlanError(message("that is no item of a list of layers", where=path, todo="name layers by path"))
        found.setdefault(inside, set()).add(int(index))
    return found


def _size(model: nn.Module, path: str) -> int:
    """How many layers a list has; none where there is no such list."""
    try:
        items = model.get_submodule(path)
    except AttributeError:
        return 0
    return len(items) if isinstance(items, (nn.ModuleList, nn.Sequential)) else 0
