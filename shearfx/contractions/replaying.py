"""A model's calls gone through once more on its graph, with its own weights, for what no module's hook sees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shearfx.adapters import unwrapped
from shearfx.architectures import named_tensors
from shearfx.contractions.picks import picks
from shearfx.contractions.products import Product, products
from shearfx.errors import PlanError, TraceError, message
from shearfx.gating.contracted import origin
from shearfx.graph import Graph
from shearfx.passes import ANALYSIS, run
from shearfx.rules.registry import shape_of
from shearfx.tracing import by_name, trace_call

aten = torch.ops.aten

Read: TypeAlias = Callable[[Product, int, Tensor], None]
"""Called with a product, the number of an instance and the rows ``[rows, features]`` that it reads."""

Arrange: TypeAlias = Callable[[Product, Tensor], Tensor]
"""From a product and one of its operands to ``[instances, rows, features]``."""

Call: TypeAlias = dict[str, Any]
"""Arguments by name."""


@contextlib.contextmanager
def calls_of(model: nn.Module) -> Iterator[list[Call]]:
    """For the while, keep the arguments of each call of a model (of the one under adapters)."""
    found: list[Call] = []
    inner = unwrapped(model)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(by_name(module, args, kwargs))

    handle = inner.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


class Replay:
    """Goes through calls of a model on its graph. A call that the graph was not traced for is traced first, and so is
    a model with hooks on its modules, such as gates: what they do is part of what it computes. As they are when it is
    traced: make another one after gates were set.

    Args:
        graph: the analysis of the model, or of its base without adapters; of either without hooks.
        model: the live model, left as it was.
        wanted: the products to look at.
        rows: how activations are laid out (default: as the products say).
        weights: how weights are.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        wanted: Sequence[Product],
        rows: Arrange = lambda product, activation: product.rows(activation),
        weights: Arrange = lambda product, weight: product.weights(weight),
    ) -> None:
        self.model, self.rows, self.weights = unwrapped(model), rows, weights
        self.keys = [product.key for product in wanted]
        self.traces: list[tuple[Graph, list[Product], list[Any]]] = [(graph, list(wanted), [])]
        self.of: dict[str, tuple[Graph, Product]] = {}
        """By key: the product in the graph that was gone through first, and the graph."""

    def __call__(self, call: Call, read: Read, keys: Collection[str] | None = None) -> None:
        """Go through one call.

        Args:
            call: arguments by name.
            read: called for all that the products read.
            keys: of the products to look at now (default: all).

        Raises:
            PlanError: the model cannot be traced on it, or does not compute the products on it.
        """
        tensors = live_tensors(self.model)
        graph, found, arguments = self._fitting(call, tensors)
        for product in found:
            self.of.setdefault(product.key, (graph, product))
        values = dict(arguments)
        values |= {node: _live(graph, tensors, node) for node in graph.traced.tensors}
        now = [product for product in found if keys is None or product.key in keys]
        _Watched(graph, now, self.rows, read).run(initial_env=values, enable_io_processing=False)

    def _fitting(self, call: Call, tensors: Mapping[str, Tensor]) -> tuple[Graph, list[Product], Mapping[fx.Node, Any]]:
        hooks = hooks_of(self.model)
        for graph, found, hooked in self.traces:
            arguments = assigned(graph, call) if hooked == hooks and _is_of(graph, tensors) else None
            if arguments is not None:
                return graph, found, arguments
        graph = self._traced(call)
        found = products(graph, lambda _, key: key in self.keys)
        arguments = assigned(graph, call)
        missing = set(self.keys) - {product.key for product in found}
        if missing or arguments is None:
            what = f"the call that the data makes does not compute {', '.join(sorted(missing)[:3]) or 'what it states'}"
            raise PlanError(message(what, todo=f"trace the model by such a call: {', '.join(call)}"))
        self.traces.append((graph, found, hooks))
        return graph, found, arguments

    def _traced(self, call: Call) -> Graph:
        try:
            graph = Graph(trace_call(self.model, (), call))
        except TraceError as error:
            hooked = ", with hooks on its modules" if hooks_of(self.model) else ""
            what = f"the data calls the model by {', '.join(call)}{hooked}, as it was not traced"
            raise PlanError(message(f"{what}: {error}", todo="trace it by such a call, or pass such data")) from error
        run(graph, ANALYSIS)
        return graph

    def weight(self, product: Product) -> Tensor:
        """The weight of a product that was gone through, ``[instances, outputs, features]``, all instances of it."""
        graph, own = self.of[product.key]
        with torch.no_grad():
            return self.weights(own, _Made(graph, live_tensors(self.model), own.weight).value(own.weight))

    def parameter(self, product: Product, weights: Tensor) -> Tensor:
        """What the parameter that a product's weight is moved from would be, were its weight another.

        Args:
            product: gone through, and its weight a parameter whose numbers are moved about, see :meth:`is_moved`.
            weights: shaped as of :meth:`weight`.
        """
        parameter, laid = self._laid(product)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(laid, parameter, weights.to(laid))  # the transpose is the inverse
        return found

    def is_moved(self, product: Product) -> bool:
        """Whether a product's weight has each number of a parameter once, and no other."""
        parameter, laid = self._laid(product)
        same = parameter.numel() == laid.numel()
        return same and torch.equal(self.parameter(product, laid.detach()), parameter.detach())

    def _laid(self, product: Product) -> tuple[Tensor, Tensor]:
        graph, own = self.of[product.key]
        tensors, name = live_tensors(self.model), graph.traced.tensors[origin(own.weight)].name
        with torch.inference_mode(False), torch.enable_grad():
            parameter = tensors[name].detach().requires_grad_()
            made = _Made(graph, tensors | {name: parameter}, own.weight)
            return parameter, self.weights(own, made.value(own.weight))


def hooks_of(model: nn.Module) -> list[Any]:
    """What is called before and after modules of a model, and may change what goes in or comes out."""
    return [hook for module in model.modules() for hook in (*module._forward_pre_hooks.values(),
                                                            *module._forward_hooks.values())]  # fmt: skip


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model by all names."""
    return {name: tensor.detach() for name, tensor in named_tensors(model).items()}


def _live(graph: Graph, tensors: Mapping[str, Tensor], node: fx.Node) -> Tensor:
    tensor = graph.traced.tensors[node]
    return graph.traced.constants[tensor.name] if tensor.kind == "constant" else tensors[tensor.name]


def _is_of(graph: Graph, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a graph was traced for a model as it is: with its adapters, in its dtype, on its device."""
    known = {alias for tensor in graph.tensors.values() if tensor.kind != "constant" for alias in tensor.aliases}
    return known == tensors.keys() and all(
        (live.shape, live.dtype, live.device) == (tuple(traced.shape), traced.dtype, traced.device)
        for node in graph.traced.tensors
        for live, traced in [(_live(graph, tensors, node), node.meta["val"])]
    )


def assigned(graph: Graph, call: Call) -> dict[fx.Node, Any] | None:
    """What each argument of a graph is in a call; None where the graph was traced for another kind of call."""
    arguments = [node for node in graph.traced.graph.nodes if node.op == "placeholder"]
    arguments = [node for node in arguments if node not in graph.traced.tensors]
    found: dict[fx.Node, Any] = {}
    for name, value in call.items():
        leaves = pytree.tree_leaves(value)
        nested = not (len(leaves) == 1 and leaves[0] is value)
        nodes = [node for node in arguments if (node.name.startswith(f"{name}_") if nested else node.name == name)]
        if len(nodes) != len(leaves):
            return None
        found |= dict(zip(nodes, leaves, strict=True))
    symbols: dict[str, int] = {}
    fits = len(found) == len(arguments) and all(_same(node, value, symbols) for node, value in found.items())
    return found if fits else None


def _same(node: fx.Node, value: Any, symbols: dict[str, int]) -> bool:
    """Whether a value is one that an argument stands for; sizes that are open are those of ``symbols``."""
    traced = node.meta.get("val")
    if not isinstance(traced, Tensor) or not isinstance(value, Tensor):
        return type(traced) is type(value) and bool(traced == value)
    if (traced.dtype, traced.device, traced.dim()) != (value.dtype, value.device, value.dim()):
        return False
    return all(
        size == now if isinstance(size, int) else symbols.setdefault(str(size), now) == now
        for size, now in zip(shape_of(traced), value.shape, strict=True)
    )


class _Watched(fx.Interpreter):
    """Runs a graph and hands over what some products read, as it is read."""

    def __init__(self, graph: Graph, found: Sequence[Product], rows: Arrange, read: Read) -> None:
        super().__init__(nn.Module(), graph=graph.traced.graph)
        self.owner, self.rows, self.read = graph.traced.graph.owning_module, rows, read
        self.at: dict[fx.Node, list[Product]] = {}
        for product in found:
            self.at.setdefault(product.node, []).append(product)
        self.chosen: dict[fx.Node, Any] = {p.chosen: None for p in found if p.chosen is not None}

    def run_node(self, n: fx.Node) -> Any:
        for product in self.at.get(n, ()):
            chosen = None if product.chosen is None else self.chosen[product.chosen]
            for instance, rows in product.instances(self.rows(product, self.env[product.activation]), chosen):
                self.read(product, instance, rows)
        result = super().run_node(n)
        if n in self.chosen:
            self.chosen[n] = result
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(_loose(target), args, kwargs)

    def fetch_attr(self, target: str) -> Any:
        return getattr(self.owner, target)


def _loose(target: Any) -> Any:
    return aten.reshape.default if target is aten.view.default else target  # the traced strides may have been others


class _Made:
    """What a weight is made of, made from the parameters alone; where data picks slices of them, all are picked."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], weight: fx.Node) -> None:
        self.graph, self.tensors = graph, tensors
        self.made: dict[fx.Node, Any] = {}
        for pick in picks(graph, weight):
            self.made[pick.index] = torch.arange(pick.size, device=next(iter(tensors.values())).device)

    def value(self, node: fx.Node) -> Any:
        """The value of a node."""
        if node not in self.made:
            self.made[node] = self._value(node)
        return self.made[node]

    def _value(self, node: fx.Node) -> Any:
        traced = node.meta.get("val")
        if node in self.graph.traced.tensors:
            return _live(self.graph, self.tensors, node)
        if isinstance(traced, torch.SymInt):
            return int(traced.node.hint)
        if node.op == "get_attr":
            return getattr(self.graph.traced.graph.owning_module, str(node.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
        return _loose(node.target)(*args, **kwargs)
