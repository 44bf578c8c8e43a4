"""Subnetwork construction: the smaller fx graph. Every shape constant is re-derived from its dim.

Source: LoRAShear, section 3.4. The paper prunes primary dims in a first pass and secondary ones by what flows in in
a second; here both follow from the terms at once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from shearfx.dims import Atom, Dim
from shearfx.errors import PlanError, message
from shearfx.graph import Graph, kept_mask, mentions, new_size
from shearfx.input_sizes import SizeCheck
from shearfx.passes.propagate import check_shapes
from shearfx.pruning_plan import norm_sizes
from shearfx.rules.registry import Record, parameters_of
from shearfx.tracing import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class ConstructSubnetwork:
    """Rewrite a graph so that only the kept indices of some atoms are left.

    Not an analysis pass: it leaves the graph as it is and returns a new ``torch.fx.GraphModule``.
    """

    masks: Mapping[Atom, torch.Tensor]

    def build(
        self, graph: Graph, tensors: Mapping[str, torch.Tensor], origins: dict[fx.Node, fx.Node] | None = None
    ) -> fx.GraphModule:
        """The rewritten graph as a module.

        Args:
            graph: the analysed model.
            tensors: the *already sliced* parameters and buffers by every name they go by.
            origins: filled with the node of ``graph`` that each new node stands for.

        Returns:
            A module that is called with the traced tensor arguments by name and returns what the model returns.
        """
        root = holder(graph, tensors)
        new = fx.Graph()
        copies: dict[fx.Node, Any] = {}
        rewriter = _Rewriter(graph, self.masks, root, new)
        for node in graph.traced.graph.nodes:
            if node.op == "placeholder":
                copies[node] = rewriter.placeholder(node)
            elif node.op == "output":
                flat = fx.node.map_arg(node.args[0], lambda n: copies[n])
                root.register_module("_structure", _Structure(graph.traced.output_spec))
                new.output(new.call_module("_structure", tuple(flat)))
                _check_sizes(root, new, graph)
            else:
                copies[node] = rewriter.copy(node, copies)
        if origins is not None:
            origins.update({new_node: node for node, new_node in copies.items() if isinstance(new_node, fx.Node)})
        new.eliminate_dead_code(lambda node: node.op in ("placeholder", "call_module", "output"))
        new.lint()
        module = fx.GraphModule(root, new, class_name="Subnetwork")
        _hold_aliases(module, graph)
        module.eval()
        check_shapes(module, graph, copies, rewriter.sizes)
        return module


class _Structure(nn.Module):
    """Gives flat outputs the structure that the model's own output has."""

    def __init__(self, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.spec = spec

    def __deepcopy__(self, memo: dict[int, Any]) -> _Structure:
        return _Structure(self.spec)  # immutable, and copying it makes torch warn

    def forward(self, *flat: Any) -> Any:
        return pytree.tree_unflatten(flat, self.spec)


def _check_sizes(root: nn.Module, new: fx.Graph, graph: Graph) -> None:
    """Before anything else, the graph looks whether it was traced for these inputs."""
    inputs = new.find_nodes(op="placeholder")
    if inputs:
        root.register_module("_sizes", SizeCheck(graph.traced.input_sizes()))
        with new.inserting_after(inputs[-1]):
            new.call_module("_sizes", tuple(inputs))


def holder(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Empty modules that hold the tensors under the names the model has them under."""
    root = nn.Module()
    for tensor in graph.traced.tensors.values():
        if tensor.kind != "constant":
            for name in tensor.aliases:
                _hold(root, name, tensors[name], tensor)
    return root


def _hold(root: nn.Module, name: str, value: torch.Tensor, like: Tensor) -> None:
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if like.kind == "parameter":
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, value.requires_grad)
        module.register_parameter(leaf, parameter)
    else:
        module.register_buffer(leaf, value, persistent=like.persistent)


def _hold_aliases(module: fx.GraphModule, graph: Graph) -> None:
    """A tied tensor goes by all its names, as in the model, where torch has taken over only the one it is read by."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for tensor in graph.traced.tensors.values():
        if tensor.kind != "constant" and tensor.name in used:
            *path, leaf = tensor.name.split(".")
            value = getattr(module.get_submodule(".".join(path)), leaf)
            for name in tensor.aliases[1:]:
                _hold(module, name, value, tensor)


class _Rewriter:
    def __init__(self, graph: Graph, masks: Mapping[Atom, torch.Tensor], root: nn.Module, new: fx.Graph) -> None:
        self.graph, self.masks, self.root, self.new = graph, masks, root, new
        self.sizes = {atom: int(mask.sum()) for atom, mask in masks.items()}
        self.norms = {c.mean: c for c in graph.composed if c.kind == "rms_norm"}
        self.epsilons = {c.epsilon: c for c in graph.composed if c.kind == "rms_norm"}

    def placeholder(self, node: fx.Node) -> Any:
        tensor = self.graph.traced.tensors.get(node)
        if tensor is None:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                return self.new.placeholder(node.name)
            return value
        if tensor.kind == "constant":
            value = self.graph.traced.constants[tensor.name]
            for axis, dim in enumerate(self.graph.tensor_dims[tensor.name]):
                if self.touched(dim):
                    value = value.index_select(axis, kept_mask(dim, self.masks).nonzero().flatten())
            name = f"_constant_{tensor.name.replace('.', '_')}"
            self.root.register_buffer(name, value, persistent=False)
            return self.new.get_attr(name)
        return self.new.get_attr(tensor.name)

    def touched(self, dim: Dim) -> bool:
        return bool(mentions((self.graph.solver.resolve(dim),)) & self.masks.keys())

    def size(self, dim: Dim) -> Any:
        return new_size(self.graph.solver.resolve(dim), self.sizes)

    def copy(self, node: fx.Node, copies: Mapping[fx.Node, Any]) -> fx.Node:
        copied = self.new.node_copy(node, lambda n: copies[n])
        if node.op == "get_attr":
            setattr(self.root, str(node.target), getattr(self.graph.traced.graph.owning_module, str(node.target)))
        record = self.graph.records[node]
        self._constants(copied, record)
        if copied.target is aten.view.default:
            copied.target = aten.reshape.default  # a cut tensor may have other strides than the traced one
        if copied.target is aten.view_as_complex.default:
            with self.new.inserting_before(copied):
                copied.update_arg(0, self.new.call_function(aten.contiguous.default, (copied.args[0],)))
        if record.replace is not None:
            self._replace(copied, record)
        else:
            for argument, term in record.sizes:
                self._resize(copied, "shape" if copied.target is aten.reshape.default else argument, term)
        if node in self.epsilons:
            before, after = norm_sizes(self.graph, self.norm_node(node), self.sizes)
            if before != after:
                self._epsilon(copied, self.epsilons[node].value * before / after)
            return copied
        if record.created:
            return self._slice_table(copied, record)
        if record.rescale is not None and node not in self.norms:
            return self._rescale(copied, node)
        if node.target is aten.rms_norm.default:
            return self._plain_norm(copied, node)
        return copied

    def norm_node(self, node: fx.Node) -> fx.Node:
        mean = self.epsilons[node].mean
        assert mean is not None
        return mean

    def _constants(self, copied: fx.Node, record: Record) -> None:
        for argument, value in record.constants:
            set_argument(copied, argument, value)

    def _replace(self, copied: fx.Node, record: Record) -> None:
        """Parts that are no longer alike need an operator that lists their sizes."""
        assert record.replace is not None
        arguments = record.replace.arguments
        dims = [d for a in arguments for d in (a if isinstance(a, tuple) else (a,)) if isinstance(d, Dim)]
        if not dims or any(self.touched(dim) for dim in dims):
            sized = tuple(self._sized(argument) for argument in arguments)
            copied.target, copied.args, copied.kwargs = record.replace.target, (copied.args[0], *sized), {}

    def _sized(self, argument: Any) -> Any:
        if isinstance(argument, tuple):
            return [self._sized(a) for a in argument]
        return self.size(argument) if isinstance(argument, Dim) else argument

    def _resize(self, copied: fx.Node, argument: str, term: Dim | tuple[Dim, ...]) -> None:
        if isinstance(term, Dim):
            if self.touched(term):
                set_argument(copied, argument, self.size(term))
            return
        old = get_argument(copied, argument)
        if not isinstance(old, (list, tuple)) or not any(self.touched(d) for d in term):
            return
        sizes = [
            self._new_argument(copied, value, dim) if self.touched(dim) else value
            for value, dim in zip(old, term, strict=True)
        ]
        set_argument(copied, argument, sizes)

    def _new_argument(self, copied: fx.Node, value: Any, dim: Dim) -> Any:
        """The new size of a dim; where it follows the input's size, computed from the old one."""
        new = self.size(dim)
        if isinstance(dim.size, int):
            return new
        if not isinstance(value, fx.Node):
            return value  # -1: what is left
        ratio, difference = sympy.cancel(new / dim.size), sympy.expand(new - dim.size)
        with self.new.inserting_before(copied):
            if ratio.is_Rational:
                value = self.new.call_function(operator.mul, (value, int(ratio.p)))
                return self.new.call_function(operator.floordiv, (value, int(ratio.q)))
            if difference.is_Integer:
                return self.new.call_function(operator.add, (value, int(difference)))
        raise PlanError(
            message(
                f"the size {dim.size} cannot be re-derived as {new}",
                where=str(copied),
                todo="leave out the groups that this dim mentions; please report the model",
            )
        )

    def _slice_table(self, copied: fx.Node, record: Record) -> fx.Node:
        assert isinstance(record.dims, tuple)
        for axis, dim in enumerate(record.dims):
            term = self.graph.solver.resolve(dim)
            if self.touched(term):
                name = f"_kept_{copied.name}_{axis}"
                self.root.register_buffer(name, kept_mask(term, self.masks).nonzero().flatten(), persistent=False)
                copied = self.new.call_function(aten.index_select.default, (copied, axis, self.new.get_attr(name)))
        return copied

    def _rescale(self, copied: fx.Node, node: fx.Node) -> fx.Node:
        before, after = norm_sizes(self.graph, node, self.sizes)
        if before == after:
            return copied
        return self.new.call_function(aten.mul.Tensor, (copied, after / before))

    def _plain_norm(self, copied: fx.Node, node: fx.Node) -> fx.Node:
        """A norm whose weight cannot carry the compensation: the result does."""
        before, after = norm_sizes(self.graph, node, self.sizes)
        if before == after:
            return copied
        epsilon = get_argument(copied, "eps")
        value = epsilon if isinstance(epsilon, float) else torch.finfo(node.meta["val"].dtype).eps
        set_argument(copied, "eps", value * before / after)
        return self.new.call_function(aten.mul.Tensor, (copied, math.sqrt(before / after)))

    def _epsilon(self, copied: fx.Node, value: float) -> None:
        set_argument(copied, "eps" if copied.target is aten.rms_norm.default else "other", value)


def get_argument(node: fx.Node, name: str) -> Any:
    """An argument of a call by its schema name, or its default."""
    for i, (parameter, default, keyword, _) in enumerate(parameters_of(node.target)):
        if parameter == name:
            return node.args[i] if not keyword and i < len(node.args) else node.kwargs.get(name, default)
    raise KeyError(name)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set an argument of a call by its schema name."""
    for i, (parameter, _, keyword, _) in enumerate(parameters_of(node.target)):
        if parameter == name:
            if not keyword and i < len(node.args):
                node.update_arg(i, value)
            else:
                node.update_kwarg(name, value)
            return
    raise KeyError(name)
