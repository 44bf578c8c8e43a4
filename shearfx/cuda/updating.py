"""AdamW and SGD over all parameters of an optimiser in two launches, whatever the number of tensors.

State and formulas are those of ``torch.optim``; a state that torch wrote is gone on with, and the other way round.
Step counters and learning rates lie on the device: once a step was taken, and where gradients stay in their places,
further ones can be captured into a CUDA graph. A learning rate that is a tensor is read whenever the graph runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from shearfx.cuda.launching import Launcher
from shearfx.cuda.sources import Module, layout
from shearfx.cuda.tables import KINDS, first_blocks, packed

UPDATE = Module("update")


@dataclass(frozen=True)
class Row:
    """``struct Update`` of ``kernels/update.cu``."""

    parameter: int
    kind: int
    gradient: int
    gradient_kind: int
    average: int
    square: int
    step: int
    rate: int
    count: int
    beta: float
    beta_square: float
    epsilon: float
    decay: float


class Updating:
    """Steps of one variant.

    Args:
        launcher: where kernels run.
        variant: ``"adamw"`` or ``"sgd"``.
    """

    def __init__(self, launcher: Launcher, variant: Literal["adamw", "sgd"]) -> None:
        self.launcher, self.variant = launcher, variant
        self._rates: list[Tensor] = []
        self._known: list[float | None] = []
        self._rows: list[Row] = []
        self._table: tuple[Tensor, Tensor, int, int] | None = None
        self._captured: list[object] = []
        """Tables that a graph goes on reading."""

    def unfit(self, groups: Sequence[Mapping[str, Any]]) -> str | None:
        """Why these groups of parameters cannot be updated here at present; None where they can."""
        for group in groups:
            for option in ("amsgrad", "maximize", "nesterov", "dampening", "differentiable"):
                if group.get(option):
                    return f"the optimiser has {option}={group[option]!r}"
            for p in group["params"]:
                for name, tensor in (("parameter", p), ("gradient", p.grad)):
                    if tensor is None:
                        continue
                    if tensor.layout != torch.strided or not tensor.is_contiguous():
                        return f"a trained {name}'s numbers do not lie beside each other"
                    if tensor.dtype not in KINDS:
                        return f"a trained {name} is kept as {tensor.dtype}"
                    if tensor.device != self.launcher.device:
                        return f"a trained {name} is on {tensor.device}"
        return None

    @torch.no_grad()
    def step(self, groups: Sequence[dict[str, Any]], state: Any) -> None:
        """One step of every parameter that has a gradient.

        Args:
            groups, state: ``param_groups`` and ``state`` of the optimiser; state is made where there is none.
        """
        self._set_rates(groups)
        rows = list(self._make_rows(groups, state))
        if rows != self._rows or self._table is None:
            device, chunk = self.launcher.device, layout()["UPDATE_CHUNK"]
            blocks = [-(-row.count // chunk) for row in rows]
            self._table = packed(rows, device), first_blocks(blocks, device), len(rows), sum(blocks)
            self._rows = rows
        table, first, count, blocks_in_all = self._table
        if self.launcher.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self._captured.append(self._table)
        if self.variant == "adamw":
            self.launcher.launch(UPDATE, "count_steps", -(-count // layout()["THREADS"]), [table, count])
        self.launcher.launch(UPDATE, self.variant, blocks_in_all, [table, first, count])

    def _set_rates(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Each group's learning rate on the device."""
        device = self.launcher.device
        if len(self._rates) != len(groups):
            self._rates = [torch.zeros((), device=device) for _ in groups]
            self._known = [None] * len(groups)
        for i, group in enumerate(groups):
            rate = group["lr"]
            if isinstance(rate, Tensor):
                self._rates[i].copy_(rate)  # within a graph too: it reads the tensor whenever it runs
                self._known[i] = None
            elif self._known[i] != float(rate):
                self._rates[i].fill_(float(rate))
                self._known[i] = float(rate)

    def _make_rows(self, groups: Sequence[Mapping[str, Any]], state: Any) -> Iterator[Row]:
        for group, rate in zip(groups, self._rates, strict=True):
            adam = self.variant == "adamw"
            beta, beta_square = group["betas"] if adam else (group["momentum"], 0.0)
            for p in group["params"]:
                if p.grad is None or not p.numel():
                    continue
                average, square, step = self._state(p, state, adam, float(beta))
                yield Row(
                    p.data_ptr(), KINDS[p.dtype], p.grad.data_ptr(), KINDS[p.grad.dtype], average, square, step,
                    rate.data_ptr(), p.numel(), float(beta), float(beta_square), float(group.get("eps", 0.0)),
                    float(group["weight_decay"]),
                )  # fmt: skip

    def _state(self, p: Tensor, state: Any, adam: bool, momentum: float) -> tuple[int, int, int]:
        """Addresses of the running averages and the step counter, as torch's own optimisers name them."""
        if not adam and not momentum:
            return 0, 0, 0
        own = state[p]
        for name in ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",):
            kept = own.get(name)
            if kept is None:
                own[name] = torch.zeros_like(p)
            elif kept.dtype != p.dtype or kept.device != p.device or not kept.is_contiguous():
                # a state that was loaded, or a model that was moved since: kernels read it as they read the parameter
                own[name] = kept.to(p.device, p.dtype).contiguous()
        if not adam:
            return own["momentum_buffer"].data_ptr(), 0, 0
        step = own.get("step", 0.0)
        if not isinstance(step, Tensor) or step.device != p.device or step.dtype != torch.float32:
            own["step"] = torch.tensor(float(step), dtype=torch.float32, device=p.device)
        return own["exp_avg"].data_ptr(), own["exp_avg_sq"].data_ptr(), own["step"].data_ptr()
