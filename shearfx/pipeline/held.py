"""A model of a run and its form for training: what is not needed, or can be read again, does not wait in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from shearfx.config_values import Quantize
from shearfx.inference import device_of
from shearfx.pipeline.quantized import quantize


class Held:
    """A model as it is kept, in its own dtype, and as it is trained and judged.

    Both are the same module where device and dtype agree. A model that can be read again is the run's own: it is turned
    into its training form in place, so that it never lies in memory twice, and may be used up.

    Args:
        module: the model, in eval mode.
        device, dtype: of the training form.
        reopen: reads it again; None for a model that must stay as it is.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        reopen: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.home, self.kept_in = device_of(module), floating(module)
        """Where it was given, and in which dtype."""
        self.own = reopen is not None
        self._reopen = reopen
        self._original: nn.Module | None = module
        self._work: nn.Module | None = None
        self._form: Quantize = "none"

    @property
    def original(self) -> nn.Module:
        """The model in its own dtype; read again where it was turned into something else or given back."""
        if self._original is None:
            assert self._reopen is not None
            self._original = self._reopen().eval()
        return self._original

    @property
    def work(self) -> nn.Module:
        """The model on the device and in the dtype of training."""
        if self._work is None:
            original = self.original
            here = self.device == device_of(original)
            same = self.dtype == floating(original)
            if (here and same) or (self.own and (here or same)):
                self._work = convert(original, self.device, self.dtype)
                self._original = original if same else None
            else:
                self._work = convert(copy.deepcopy(original), self.device, self.dtype)
        return self._work

    @property
    def shape(self) -> nn.Module:
        """Whichever form is there: for what depends on names, shapes and code alone."""
        return self._original if self._original is not None else self.work

    @property
    def beside(self) -> int:
        """Bytes that the original takes on the device of training beside the training form."""
        original, work = self._original, self._work
        if original is None or original is work or device_of(original) != self.device:
            return 0
        return weight_bytes(original)

    def to_cut(self, work_needed: bool) -> tuple[nn.Module, bool]:
        """The original to cut from, and whether it may be used up on the way.

        Args:
            work_needed: somebody still asks for the training form afterwards; else it is given back first.
        """
        if self.own and not work_needed:
            self.drop_work()
        original = self.original
        if not self.own or (work_needed and self._work is original):
            return original, False
        self._original = None
        if self._work is original:
            self._work = None
        return original, True

    def take_work(self) -> nn.Module:
        """The training form, for the taker to change: of a model that must stay as it is, a copy."""
        work = self.work
        if not self.own:
            return copy.deepcopy(work)
        if self._original is work:
            self._original = None
        self._work, self._form = None, "none"
        return work

    def quantize(self, form: Quantize) -> None:
        """Put the training form in few bits, once; the original is read again where it was turned into that.

        Raises:
            PlanError: bitsandbytes is not installed.
        """
        if form != self._form:
            self._work = quantize(self.take_work(), form)
            self._form = form

    def drop_work(self) -> None:
        """Give back the training form, where it is another module than the original."""
        if self._work is not self._original:
            if self._work is not None:
                empty(self._work)
            self._work, self._form = None, "none"

    def release(self) -> None:
        """Give back all memory, but for a model that must stay as it is; who asks again has it read again."""
        self.drop_work()
        if self.own and self._original is not None:
            empty(self._original)
            self._original = self._work = None


def convert(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model in place, tensor by tensor, and turn what is saved of its floating numbers into a dtype.

    Buffers that a module computes for itself, such as the frequencies of rotary embeddings, keep their precision, as
    they do in ``from_pretrained(dtype=...)``: angles of far positions do not survive bfloat16.
    """
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, torch.Tensor)}
    for tensor in (*model.parameters(), *model.buffers()):
        cast = tensor.is_floating_point() and id(tensor) in saved
        tensor.data = tensor.data.to(device, dtype if cast else None)
        tensor.grad = None
    return model


def empty(model: nn.Module) -> None:
    """Free the memory of a model's tensors, whoever still holds the module; it cannot be run any more."""
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        tensor.grad = None
        tensor.data = tensor.data.new_empty(0)
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.empty_cache()


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, each tensor once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def floating(model: nn.Module) -> torch.dtype:
    """The dtype of a model's floating parameters."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
