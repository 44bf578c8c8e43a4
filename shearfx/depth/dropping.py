"""A model without some of its layers, in its own class; for a Hugging Face model an ordinary one with fewer layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from transformers import PreTrainedConfig, PreTrainedModel

from shearfx.architectures import assign, config_of, empty_model, named_tensors, plain_copy
from shearfx.construction import construct_graph, example_call
from shearfx.depth.layers import Layer, find_layers
from shearfx.errors import PlanError, SoundnessError, message
from shearfx.graph import Graph
from shearfx.masking import shapes
from shearfx.overlay import is_integer
from shearfx.precision import doubled, doubled_inputs
from shearfx.pruning_plan import of_cuts
from shearfx.verification import TOLERANCE, compare, outputs_of

MOST_BUILDS = 100
"""How often a class is built (on meta) to find the configuration with fewer layers."""


def drop_layers(
    model: nn.Module, graph: Graph, paths: Sequence[str], *, call: Mapping[str, Any] | None = None
) -> nn.Module:
    """The model without some layers, checked in float64 against the graph in which the stream passes them by.

    A Hugging Face model comes back as its class builds it from a configuration with fewer layers, so that a cache, and
    whatever else goes by numbers of layers, is right; others as a copy with shorter lists, in which attributes that
    number the layers are numbered anew. Tensors are shared with the full model, not copied.

    Args:
        model: the full model; left as it was.
        graph: its analysis.
        paths: of the layers, as in :func:`shearfx.depth.find_layers`.
        call: arguments by name to check it with; by default of the sizes that were traced, drawn from a fixed seed.

    Raises:
        PlanError: a layer cannot go, or no configuration states what stays.
        SoundnessError: the smaller model computes something else than the graph without the layers.
    """
    layers = find_layers(graph).only(paths)
    if not isinstance(model, PreTrainedModel) and any(isinstance(m, PreTrainedModel) for m in model.modules()):
        what, todo = f"a {type(model).__name__} wraps a Hugging Face model", "merge adapters and pass the model itself"
        raise PlanError(message(what, where="drop_layers", todo=todo))
    names = renamed(model, layers)
    small = _built(model, names, layers) if isinstance(model, PreTrainedModel) else _shortened(model, layers)
    _check(model, graph, layers, small, dict(call) if call is not None else _drawn(model, graph))
    return small


def renamed(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Names of the parameters and buffers that stay, before and after layers go.

    Args:
        model: the full model.
        layers: those that go.
    """
    numbers: dict[str, dict[int, int]] = {}
    for path in {layer.list_path for layer in layers}:
        gone = {layer.index for layer in layers if layer.list_path == path}
        size = len(model.get_submodule(path))  # type: ignore[arg-type]
        stay = [i for i in range(size) if i not in gone]
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


def _built(model: PreTrainedModel, names: Mapping[str, str], layers: Sequence[Layer]) -> nn.Module:
    """What the class builds from a configuration with fewer layers, with the tensors of the full model."""
    before = config_of(model)
    assert before is not None
    tensors = named_tensors(model)
    saved = set(model.state_dict(keep_vars=True))  # other buffers are the class's own business
    wanted = {new: tuple(tensors[old].shape) for old, new in names.items() if old in saved}
    if shapes(empty_model(type(model), before)) != shapes(model):
        what, todo = "its configuration does not state its shapes", "drop layers first, then cut widths"
        raise PlanError(message(what, where=type(model).__name__, todo=todo))
    for config in itertools.islice(_configs(model, before, layers), MOST_BUILDS):
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


def _configs(model: nn.Module, before: PreTrainedConfig, layers: Sequence[Layer]) -> Iterator[PreTrainedConfig]:
    """Configurations in which a number of layers is smaller and what lists say of each layer goes with it."""
    options: list[list[list[tuple[tuple[str, ...], Any]]]] = []
    data = before.to_dict()
    for path in dict.fromkeys(layer.list_path for layer in layers):
        gone = {layer.index for layer in layers if layer.list_path == path}
        size = len(model.get_submodule(path))  # type: ignore[arg-type]
        fields = list(_fields(data, size))
        numbers = [field for field, value in fields if not isinstance(value, list)]
        lists = [(field, [v for i, v in enumerate(value) if i not in gone]) for field, value in fields
                 if isinstance(value, list)]  # fmt: skip
        some = [of for count in (1, 2) for of in itertools.combinations(numbers, count)]
        options.append([[(field, size - len(gone)) for field in of] + lists for of in some])
    for chosen in itertools.product(*options):
        changed = copy.deepcopy(data)
        for field, value in itertools.chain.from_iterable(chosen):
            holder = changed
            for key in field[:-1]:
                holder = holder[key]
            holder[field[-1]] = value
        try:
            yield type(before).from_dict(changed)
        except Exception:  # the same
            continue


def _fields(data: Mapping[str, Any], size: int, inside: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Fields that are a number of layers, or a list with an item for each."""
    for name, value in data.items():
        if str(name).endswith("_token_id"):  # may be a list, of any length
            continue
        if isinstance(value, Mapping):
            yield from _fields(value, size, (*inside, name))
        elif (is_integer(value) and value == size) or (isinstance(value, list) and len(value) == size):
            yield (*inside, name), value


# -- other models -------------------------------------------------------------------------------------------


def _shortened(model: nn.Module, layers: Sequence[Layer]) -> nn.Module:
    """A copy with shorter lists."""
    small = plain_copy(model)
    for path in {layer.list_path for layer in layers}:
        gone = {layer.index for layer in layers if layer.list_path == path}
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


# -- proof --------------------------------------------------------------------------------------------------


def _check(model: nn.Module, graph: Graph, layers: Sequence[Layer], small: nn.Module, call: Mapping[str, Any]) -> None:
    """Raise SoundnessError unless the smaller model is the graph in which the stream passes the layers by."""
    if any(tensor.is_meta for tensor in named_tensors(model).values()):
        return  # there is nothing to compute with
    full, cut, inputs = doubled(model), doubled(small), doubled_inputs(call)
    past = doubled(construct_graph(full, of_cuts(graph, {}), graph))
    assert isinstance(past, fx.GraphModule)
    by_name = {node.name: node for node in past.graph.nodes}
    order = {name: i for i, name in enumerate(by_name)}
    # The last first: what enters a layer may be what leaves one before it that goes too.
    for layer in sorted(layers, key=lambda one: -order[one.leaves.name]):
        by_name[layer.leaves.name].replace_all_uses_with(by_name[layer.enters.name])
    past.graph.eliminate_dead_code()
    past.recompile()
    expected = outputs_of(past, {name: inputs[name] for name in graph.traced.inputs}, True)
    error = compare(expected, outputs_of(cut, inputs, True), "shorter")
    if error > TOLERANCE:
        what = f"without the layers the class computes something else, off by {error:.2e} of its largest output"
        listed = ", ".join(layer.path for layer in layers[:3])
        raise SoundnessError(message(what, where=f"{type(model).__name__}, {listed}", todo="leave these layers in"))


def _drawn(model: nn.Module, graph: Graph) -> dict[str, Any]:
    """Arguments like the traced ones: floating numbers normal, token ids zero or one."""
    generator = torch.Generator().manual_seed(0)
    call = example_call(model, of_cuts(graph, {}))
    for name, value in call.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            call[name] = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        elif isinstance(value, Tensor) and name.endswith("input_ids"):
            call[name] = torch.randint(2, value.shape, generator=generator).to(value.device, value.dtype)
    return call
