"""After construction, shapes re-propagate: every node of the smaller graph has the shape that its dims say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from shearfx.dims import Atom, Dim
from shearfx.errors import PlanError, SoundnessError, message
from shearfx.graph import Graph, new_size, source_of


def check_shapes(
    module: fx.GraphModule, graph: Graph, copies: Mapping[fx.Node, Any], sizes: Mapping[Atom, int]
) -> None:
    """Run the smaller graph on the meta device and compare shapes node by node.

    Args:
        module: the smaller graph.
        graph: the analysed one that it was made from.
        copies: node of the analysed graph to node of the smaller one.
        sizes: new size of every atom that was cut.

    Raises:
        SoundnessError: a node has another shape than its dims, or the graph does not run.
        PlanError: the same where a group lost all of its structures: not every operator takes what is empty.
    """
    origin = {new.name: old for old, new in copies.items() if isinstance(new, fx.Node)}
    hints = _hints(graph)
    expected = {}
    for name, old in origin.items():
        dims = graph.records[old].dims
        if isinstance(dims, tuple):
            expected[name] = tuple(_number(new_size(graph.solver.resolve(d), sizes), hints) for d in dims)
    inputs = [_meta(node.meta["val"], hints) for node in graph.traced.inputs.values()]
    dtypes = {alias: tensor.dtype for tensor in graph.traced.tensors.values() for alias in tensor.aliases}
    emptied = [atom for atom, size in sizes.items() if size == 0]
    try:
        _Propagation(module, expected, origin, dtypes).run(*inputs)
    except (SoundnessError, RuntimeError, ValueError, IndexError) as error:
        if not emptied:
            raise
        names = ", ".join(group.name for group in graph.groups if group.atom in emptied)
        what = f"an operator does not take what is left where all of {names} is gone: {str(error).splitlines()[0]}"
        raise PlanError(message(what, where="construction", todo="keep at least one structure of each")) from error


class _Propagation(fx.Interpreter):
    def __init__(
        self, module: fx.GraphModule, expected: Mapping[str, tuple[int, ...]], where: Mapping[str, fx.Node],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:  # fmt: skip
        super().__init__(module)
        self.expected, self.where, self.dtypes = expected, where, dtypes
        self.unknown = False

    def run_node(self, n: fx.Node) -> Any:
        if self.unknown and n.op not in ("placeholder", "get_attr"):
            return None
        try:
            result = super().run_node(n)
        except NotImplementedError:  # depends on numbers, which meta tensors do not have: nothing beyond is checked
            self.unknown = True
            return None
        expected = self.expected.get(n.name)
        if expected is not None and isinstance(result, torch.Tensor) and tuple(result.shape) != expected:
            raise SoundnessError(
                message(
                    f"after the cut {n.name} ({n.target}) has shape {tuple(result.shape)}; its dims say {expected}",
                    where=source_of(self.where[n.name]),
                    todo="this is a bug in shearfx or in a rule of yours; please report it with the model and the plan",
                )
            )
        return result

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if not isinstance(value, torch.Tensor):
            return value
        return value.to("meta", self.dtypes.get(target, value.dtype))  # the traced dtype: casts are written for it

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        args = pytree.tree_map(lambda a: torch.device("meta") if isinstance(a, torch.device) else a, args)
        tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        if all(a.numel() for a in tensors):
            return super().call_function(target, args, kwargs)
        # Of what is empty, kernels take less than the meta device does, and it costs nothing to ask them.
        args, kwargs = _moved((args, kwargs), "cpu")
        return _moved(super().call_function(target, args, kwargs), "meta")

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        assert isinstance(module, nn.Module)
        return module(*args, **kwargs)


def _moved(values: Any, device: str) -> Any:
    """Tensors and names of devices, here or on the meta device; all numbers are zero."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device(device)
        return torch.zeros_like(value, device=device) if isinstance(value, torch.Tensor) else value

    return pytree.tree_map(move, values)


def _hints(graph: Graph) -> dict[Any, int]:
    """A number for each symbol of the traced call: that of the example."""
    hints: dict[Any, int] = {}
    for node in graph.traced.inputs.values():
        for size in node.meta["val"].shape:
            if not isinstance(size, int) and size.node.expr.is_Symbol:
                hints[size.node.expr] = int(size.node.hint)
    return hints


def _number(size: Dim | Any, hints: Mapping[Any, int]) -> int:
    return size if isinstance(size, int) else int(sympy.sympify(size).subs(hints))


def _meta(value: torch.Tensor, hints: Mapping[Any, int]) -> torch.Tensor:
    shape = [s if isinstance(s, int) else int(s.node.expr.subs(hints)) for s in value.shape]
    return torch.empty(shape, dtype=value.dtype, device="meta")
