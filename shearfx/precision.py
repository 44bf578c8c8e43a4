"""Comparing in float64: models that cast to float32 inside are run in float64 throughout."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from shearfx.routed_products import PlainProducts

LOW = (torch.float32, torch.float16, torch.bfloat16)


class _Doubling(TorchFunctionMode):
    """Every cast to a lower floating precision becomes a cast to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        # A dtype that is only asked about (finfo, get_default_dtype) goes through no torch function.
        args = tuple(_double(a) for a in args)
        kwargs = {k: _double(v) for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _double(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in LOW else value


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Run in float64: casts to lower precisions and the default dtype become float64 for the while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubling(), PlainProducts():
            yield
    finally:
        torch.set_default_dtype(before)


def doubled(module: nn.Module) -> nn.Module:
    """A float64 copy of a module; of a graph module, with its casts rewritten too."""
    module = copy.deepcopy(module)
    for norm in module.modules():  # an epsilon left open is that of the dtype as shipped, which plans write out
        if isinstance(norm, nn.RMSNorm) and norm.eps is None:
            dtype = torch.get_default_dtype() if norm.weight is None else norm.weight.dtype
            norm.eps = torch.finfo(dtype).eps
    module = module.double()
    if isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            if node.op == "call_function":
                _write_out_epsilon(node)
                node.args = pytree.tree_map(_double, node.args)
                node.kwargs = pytree.tree_map(_double, node.kwargs)
        module.recompile()
    return module


def _write_out_epsilon(node: fx.Node) -> None:
    """The epsilon that an RMS norm takes by default, which is that of the dtype it was traced in."""
    value = node.meta.get("val")
    if node.target is torch.ops.aten.rms_norm.default and isinstance(value, torch.Tensor):
        names = ("input", "normalized_shape", "weight", "eps")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if given.get("eps") is None:
            given["eps"] = torch.finfo(value.dtype).eps
            node.args, node.kwargs = tuple(given.get(name) for name in names), {}


def doubled_inputs(inputs: Any) -> Any:
    """Floating tensors of any structure as float64."""
    return pytree.tree_map(lambda t: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t, inputs)
