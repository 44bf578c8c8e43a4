"""Capture one call at fixed sizes: the operators of ``torch.export``, without its search for open dims.

An export with open sizes costs seconds; a capture costs a tenth. It runs the model's code on fake tensors, so no
number is computed and no weight is read, and notes the module around each operator and, where the code fails, the
module in which it did.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.modules import module as hooks
from torch.utils import _pytree as pytree

from shearfx.routed_products import PlainProducts
from shearfx.tracing import Tensor, Traced, _quiet, evaluation, tensor_names
from shearfx.tracing import _adapters as adapters_of
from shearfx.untouched import untouched


class CaptureError(Exception):
    """The model's code failed on these sizes; ``paths`` are the modules around the place, outermost first."""

    def __init__(self, error: BaseException, paths: tuple[str, ...], partial: Traced | None) -> None:
        frames = [f for f in traceback.extract_tb(error.__traceback__)
                  if "/torch/" not in f.filename and "/shearfx/" not in f.filename]  # fmt: skip
        self.where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        super().__init__(first)
        self.paths = paths
        self.partial = partial
        """What had run until then; it has no output."""


def capture(
    model: nn.Module, call: Mapping[str, Any], forward: Callable[..., Any] | None = None, *, lines: bool = True
) -> Traced:
    """The graph of one call at the sizes of its arguments, in evaluation mode.

    Args:
        model: on any device; its tensors may be empty, only shapes count.
        call: arguments by name.
        forward: what to run instead of the model itself, for instance several calls one after the other.
        lines: note which line of code each operator comes from, a third of the time.

    Raises:
        CaptureError: the model's code cannot run on these sizes.
    """
    forward = forward or model
    aliases = tensor_names(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    leaves, spec = pytree.tree_flatten(dict(call))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    structure: list[Any] = []
    stack = _Stack(model)

    def run(tensors: dict[str, torch.Tensor], inputs: list[torch.Tensor]) -> list[Any]:
        filled = list(leaves)
        for i, value in zip(where, inputs, strict=True):
            filled[i] = value
        with _swapped(model, tensors), stack:
            result = forward(**pytree.tree_unflatten(filled, spec))
        flat, out = pytree.tree_flatten(result)
        structure.append(out)
        return flat

    paths = ["".join(str(key) for key in path).strip("[]'") for path, _ in pytree.tree_flatten_with_path(dict(call))[0]]

    def describe(graph: fx.Graph, out: Any) -> Traced:
        return _describe(model, graph, list(tensors), aliases, [paths[i] for i in where], out)

    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    inputs = [leaves[i].to(device) for i in where]
    with untouched(model), evaluation(model), _quiet(), torch.no_grad(), _exporting(), _silent(), PlainProducts():
        try:
            made = make_fx(run, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True,
                           record_stack_traces=lines)(tensors, inputs)  # fmt: skip
        except Exception as error:  # whatever the model's own code raises
            partial = None if stack.graph is None else describe(stack.graph, None)
            raise CaptureError(error, tuple(stack.open), partial) from None
    return describe(made.graph, structure[0])


def _describe(
    model: nn.Module, graph: fx.Graph, names: list[str], aliases: Mapping[str, tuple[str, ...]], arguments: list[str],
    spec: Any,
) -> Traced:  # fmt: skip
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors: dict[fx.Node, Tensor] = {}
    for name, node in zip(names, placeholders, strict=False):
        value = node.meta["val"]
        kind = "parameter" if name in parameters else "buffer"
        tensors[node] = Tensor(aliases[name][0], aliases[name], kind, tuple(value.shape), value.dtype)
    inputs = dict(zip(arguments, placeholders[len(names) :], strict=True))
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and "_set_grad_enabled" in str(node.target) and not node.users:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.detach_.default:  # says nothing without gradients
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    adapters, ranks = adapters_of(model, dict(aliases))
    return Traced(graph, tensors, [], inputs, {}, spec, {}, type(model).__name__, [], adapters, ranks)


class _Stack:
    """Follows which modules run, and notes them on the operators."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): path for path, module in model.named_modules()}
        self.open: list[str] = []
        self.handles: list[Any] = []
        self.graph: fx.Graph | None = None

    def __enter__(self) -> None:
        self.handles = [hooks.register_module_forward_pre_hook(self._enter),
                        hooks.register_module_forward_hook(self._leave)]  # fmt: skip

    def __exit__(self, *_: Any) -> None:
        self._note()
        for handle in self.handles:
            handle.remove()

    def _note(self) -> None:
        """Note the modules that are running on the operators since the last note."""
        mode = get_proxy_mode()
        if mode is None:
            return
        tracer: Any = mode.tracer
        stack = {str(i): (path, None) for i, path in enumerate(self.open)}
        for node in reversed(tracer.graph.nodes):
            if "nn_module_stack" in node.meta:
                break
            node.meta["nn_module_stack"] = stack
        self.graph = tracer.graph

    def _enter(self, module: nn.Module, _: Any) -> None:
        if id(module) in self.names:
            self._note()
            self.open.append(self.names[id(module)])

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if id(module) in self.names:
            self._note()
            self.open.pop()


@contextlib.contextmanager
def _swapped(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Other tensors in place of the model's own, under all their names."""
    by_identity = {}
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        by_identity[id(own[name])] = tensor
    saved: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, value in list(store.items()):
                    if value is not None and id(value) in by_identity:
                        saved.append((store, name, value))
                        store[name] = by_identity[id(value)]  # type: ignore[assignment]
        yield
    finally:
        for store, name, value in saved:
            store[name] = value


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Tell the model's code that it is being exported, as torch.export does: some code takes another path then."""
    compiler: Any = torch.compiler
    before = compiler._is_compiling_flag, compiler._is_exporting_flag
    try:
        compiler._is_compiling_flag = compiler._is_exporting_flag = True
        yield
    finally:
        compiler._is_compiling_flag, compiler._is_exporting_flag = before


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No log of operators that do not run on these sizes: the caller reports what matters."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    try:
        logger.disabled = True
        yield
    finally:
        logger.disabled = before
