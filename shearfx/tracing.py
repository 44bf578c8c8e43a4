"""The front end: any ``nn.Module`` to one flat torch.fx graph of aten operators, free of the examples' sizes.

``torch.export`` captures the live module (non-strict, not decomposed), in evaluation mode, without a KV cache,
without weights if they are on the meta device. What it leaves in the graph that is not computation (assertions,
gradient switches, mutation) is removed here.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from shearfx.cleaning import clean, inline, mutates
from shearfx.errors import TraceError, message
from shearfx.input_sizes import InputSizes, conditions_of, shapes_of
from shearfx.routed_products import PlainProducts
from shearfx.rules.registry import shape_of
from shearfx.untouched import untouched


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter, buffer or constant that the graph reads.

    ``name`` is the first of ``aliases``, all the names under which the module holds this very tensor.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    """``parameter``, ``buffer`` or ``constant``."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    persistent: bool = True


@dataclass
class Traced:
    """A traced model: the graph, what its placeholders stand for, and how it was called."""

    graph: fx.Graph
    tensors: dict[fx.Node, Tensor]
    """Placeholder to the tensor it stands for."""
    unused: list[Tensor]
    """Tensors of the module that the trace never reaches."""
    inputs: dict[str, fx.Node]
    """Tensor arguments of the call by name."""
    constants: dict[str, torch.Tensor]
    """Tensors that the model's code makes from numbers (``torch.tensor(...)``), by name."""
    output_spec: pytree.TreeSpec
    call: dict[str, Any]
    """The traced call as data: for each argument its dtype and shape (open dims by symbol), or its value."""
    model_class: str
    specialised: list[str] = field(default_factory=list)
    """Dims of the call that the model's own code fixes to the example's size."""
    adapters: tuple[str, ...] = ()
    """Paths of the low-rank adapter layers (a frozen base, A and B)."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Parameters of such adapters, each with the dim that is the rank."""
    conditions: tuple[Any, ...] = ()
    """What the model's own code asked of the open sizes on its way, and found true of the example's."""
    changed: tuple[str, ...] = ()
    """Buffers that the call writes into."""
    seconds: float = 0.0

    def input_sizes(self) -> InputSizes:
        """For which sizes of the inputs the graph holds."""
        return InputSizes(shapes_of(self.inputs), self.conditions)


def trace_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
    """Trace one call of the model.

    Args:
        model: in any mode, on any device (meta included); left as it was.
        args, kwargs: an example call; dim 0 of its tensors, and dim 1 of integer ones, are left open.

    Raises:
        TraceError: the model does not export; the message shows the line where it stopped.
    """
    kwargs = by_name(model, args, kwargs)
    start = time.perf_counter()
    with untouched(model), evaluation(model), _quiet(), _spelt_out(model, kwargs), torch.no_grad(), PlainProducts():
        program = _export(model, kwargs)
        graph_module = program.graph_module
        conditions = conditions_of(_fed(program))
        if mutates(graph_module):
            program = program.run_decompositions({})
            graph_module = program.graph_module
    inline(graph_module)
    traced = _describe(model, program, conditions)
    clean(traced.graph)
    for node in [n for n in traced.tensors if not n.users]:
        if not any(other.users and traced.tensors[other].name == traced.tensors[node].name for other in traced.tensors):
            traced.unused.append(traced.tensors[node])
    traced.seconds = time.perf_counter() - start
    return traced


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while; every submodule's own mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _spelt_out(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """A signature that names every argument: torch.export refuses open dims where some go to ``**kwargs`` (2.13)."""
    if set(names) <= set(inspect.signature(model.forward).parameters):
        yield
        return
    original, own = model.forward, model.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # torch.export logs and warns about every dim that it specialises; shearfx reports those itself.
    # Its fake tensors log every operator that they cannot run, with a traceback; the error says it once.
    names = ("torch.export", "torch._export", "torch.fx", "torch._subclasses.fake_tensor")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL if "fake" in logger.name else logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name, ``use_cache=False`` added where the signature has it."""
    if not isinstance(model, nn.Module):
        what = f"expected a torch.nn.Module, not {type(model).__name__}"
        raise TraceError(message(what, todo="pass the model itself, or wrap the function in a module"))
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            message(
                f"the example inputs do not fit the model: {error}",
                where=f"{type(model).__name__}.forward{signature}",
                todo="pass the arguments that forward takes",
            )
        ) from None
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise TraceError(
                message(
                    f"argument {name!r} can only be passed by position",
                    where=f"{type(model).__name__}.forward{signature}",
                    todo="wrap the model in a module whose forward takes named tensors",
                )
            )
        else:
            named[name] = value
    if "use_cache" in signature.parameters and not named.get("use_cache"):
        named["use_cache"] = False
    return {name: value for name, value in named.items() if value is not None}


def _export(model: nn.Module, kwargs: dict[str, Any]) -> ExportedProgram:
    """Export with as many open dims as the model's code allows."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))

    def fresh(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone().to(device) if device.type == "meta" else value.detach().clone()

    errors: list[Exception] = []
    for widen, openness in itertools.product((True, False), ("shared", "apart", "batch", "fixed")):
        example = pytree.tree_map(fresh, kwargs)
        if widen and (openness == "fixed" or not (example := _two_of_each(example))):
            continue
        try:
            shapes = _open_dims(model, example, openness)
            with contextlib.redirect_stderr(io.StringIO()):  # where torch prints the whole graph before it fails
                return torch.export.export(model, (), example, strict=False, dynamic_shapes=shapes)
        except Exception as error:  # export raises every kind there is; the last attempt's is the user's
            errors.append(error)
    raise TraceError(
        message(
            f"{type(model).__name__} cannot be exported: {_first_line(errors[-1])}",
            where=_where(errors[-1]),
            todo="make that line free of decisions on tensor values, or trace a submodule; "
            "check with torch.export.export(model, args, strict=False)",
        )
    ) from errors[-1]


def _open_dims(model: nn.Module, example: dict[str, Any], openness: str) -> Any:
    """Which dims of the call follow the input, in the form that torch.export wants.

    ``shared``: one batch for all tensors, each integer tensor's dim 1 by itself; ``apart``: every dim by itself,
    fixed to the example's size where the model's code needs it; ``batch``: dim 0 only; ``fixed``: none.
    """
    tensors = [t for t in pytree.tree_leaves(example) if isinstance(t, torch.Tensor) and t.dim()]
    batches = {t.shape[0] for t in tensors}
    if openness == "fixed" or not tensors:
        return None
    if openness == "shared" and (len(batches) > 1 or 1 in batches):
        openness = "apart"
    batch = Dim("batch") if openness == "shared" else Dim.AUTO
    shapes = ShapesCollection()
    for tensor in tensors:
        dims = {0: batch}
        if openness != "batch" and not tensor.is_floating_point() and tensor.dim() > 1:
            dims[1] = Dim.AUTO
        shapes[tensor] = dims
    return shapes.dynamic_shapes(model, (), example)


def _two_of_each(example: dict[str, Any]) -> dict[str, Any] | None:
    """A batch of two where every tensor has a batch of one (which export would fix to one); else None."""
    tensors = [t for t in pytree.tree_leaves(example) if isinstance(t, torch.Tensor)]
    if not tensors or any(t.dim() == 0 or t.shape[0] != 1 for t in tensors):
        return None
    return {k: pytree.tree_map(lambda t: torch.cat([t, t]) if isinstance(t, torch.Tensor) else t, v)
            for k, v in example.items()}  # fmt: skip


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _where(error: BaseException) -> str:
    """The innermost line of the user's or a library's model code on the way to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "/torch/" not in f.filename and "/shearfx/" not in f.filename]
    if not outside:
        return ""
    frame = outside[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}"


# -- reading the export --------------------------------------------------------------------------------


def _fed(program: ExportedProgram) -> list[torch.Tensor]:
    """The tensors of the call, not those of the model."""
    fed = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in fed]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _describe(model: nn.Module, program: ExportedProgram, conditions: tuple[Any, ...]) -> Traced:
    graph = program.graph_module.graph
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    aliases = tensor_names(model)
    persistent = set(model.state_dict(keep_vars=True))
    tensors: dict[fx.Node, Tensor] = {}
    inputs: dict[str, fx.Node] = {}
    constants: dict[str, torch.Tensor] = {}
    reached: set[str] = set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert spec.target is not None
            group = aliases.get(spec.target, (spec.target,))
            reached.update(group)
            tensors[node] = _tensor(group, group[0] in parameters, node.meta["val"], persistent)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            assert spec.target is not None
            value = program.constants[spec.target]
            constants[spec.target] = value
            shape = tuple(value.shape)
            tensors[node] = Tensor(spec.target, (spec.target,), "constant", shape, value.dtype, persistent=False)
        elif isinstance(node.meta.get("val"), torch.Tensor):
            inputs[node.name] = node
    output = graph.output_node()
    written = program.graph_signature.buffers_to_mutate.values()
    changed = tuple(dict.fromkeys(aliases.get(name, (name,))[0] for name in written))
    returned = [
        value
        for value, spec in zip(output.args[0], program.graph_signature.output_specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    output.args = (tuple(returned),)
    unused = []
    for group in dict.fromkeys(aliases.values()):
        if not reached & set(group):
            value = parameters.get(group[0])
            value = dict(model.named_buffers(remove_duplicate=False))[group[0]] if value is None else value
            unused.append(_tensor(group, group[0] in parameters, value, persistent))
    spec = program.call_spec.out_spec
    assert spec is not None
    call = {node.name: _as_data(node) for node in nodes.values() if node not in tensors}
    fixed = [
        f"{name}: dim {axis} is fixed to {size}"
        for name, node in inputs.items()
        for axis, size in enumerate(shape_of(node.meta["val"])[: 1 if node.meta["val"].is_floating_point() else 2])
        if isinstance(size, int)
    ]
    sizes = InputSizes(shapes_of(inputs), conditions)
    fixed += [f"only where {sizes.told(condition)}" for condition in conditions]
    if conditions:
        for name, node in inputs.items():  # who makes the call again has to come the same way
            call[name]["example"] = [s if isinstance(s, int) else int(s.node.hint) for s in node.meta["val"].shape]
    kind = type(model)
    adapters, ranks = _adapters(model, aliases)
    return Traced(graph, tensors, unused, inputs, constants, spec, call, f"{kind.__module__}.{kind.__qualname__}",
                  fixed, adapters, ranks, conditions, changed)  # fmt: skip


_FACTORS = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
"""Children of an adapter layer (PEFT's names) and the dim of their weights that is the rank."""


def _adapters(model: nn.Module, aliases: dict[str, tuple[str, ...]]) -> tuple[tuple[str, ...], dict[str, int]]:
    paths = tuple(
        path for path, module in model.named_modules() if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    )
    ranks: dict[str, int] = {}
    for path in paths:
        for name in aliases:
            factor = name.removeprefix(f"{path}.").split(".")[0] if name.startswith(f"{path}.") else ""
            if factor in _FACTORS and not name.endswith("bias"):
                ranks[aliases[name][0]] = _FACTORS[factor]
    return paths, ranks


def tensor_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every name of a parameter or buffer to all names of the same tensor (tied weights, shared modules), those of
    parameters first."""
    by_identity: dict[int, list[str]] = {}
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        by_identity.setdefault(id(tensor), []).append(name)
    return {name: tuple(group) for group in by_identity.values() for name in group}


def _tensor(group: tuple[str, ...], parameter: bool, value: torch.Tensor, persistent: set[str]) -> Tensor:
    kind = "parameter" if parameter else "buffer"
    shape = tuple(int(s) for s in value.shape)
    return Tensor(group[0], group, kind, shape, value.dtype, any(name in persistent for name in group))


def _as_data(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": [
            s if isinstance(s, int) else str(s) for s in shape_of(value)]}  # fmt: skip
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)
