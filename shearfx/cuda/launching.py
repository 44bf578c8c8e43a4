"""Launching kernels by name: on a card through ``cuda.core``, in the tests on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from shearfx.cuda.compiling import Compiler
from shearfx.cuda.sources import Module, layout

Argument: TypeAlias = Tensor | int | float | None
"""A tensor goes as its address, a number in eight bytes, None as a null pointer."""


class Launcher(Protocol):
    """Where kernels run."""

    device: torch.device
    tensor_cores: bool
    """Whether bfloat16 can be multiplied on matrix units (compute capability 8.0)."""

    def __hash__(self) -> int:
        """By identity: what was planned is kept by where it runs."""

    def load(self, module: Module) -> None:
        """Have the kernels of a module ready; raises whatever the compiler or the driver has against it."""

    def launch(self, module: Module, kernel: str, blocks: int, arguments: Sequence[Argument]) -> None:
        """Queue a kernel of ``blocks`` blocks of ``THREADS`` threads; none for no blocks."""


class CudaLauncher:
    """Launches on torch's current stream of one card.

    Launches may be captured into a CUDA graph if their modules were loaded before (the first launch of each does), as
    torch's own kernels may.
    """

    tensor_cores: bool

    def __init__(self, device: torch.device, compiler: Compiler) -> None:
        from cuda.core import Device

        self.device, self._compiler = device, compiler
        self.tensor_cores = compiler.capability >= (8, 0)
        self._own = Device(device.index)
        self._kernels: dict[tuple[Module, str], Any] = {}
        self._streams: dict[int, Any] = {}

    def load(self, module: Module) -> None:
        """See :class:`Launcher`."""
        from cuda.core import ObjectCode

        if (module, module.kernels[0]) not in self._kernels:
            with torch.cuda.device(self.device):
                self._own.set_current()
                code = ObjectCode.from_cubin(self._compiler.cubin(module))
                self._kernels |= {(module, name): code.get_kernel(name) for name in module.kernels}

    def launch(self, module: Module, kernel: str, blocks: int, arguments: Sequence[Argument]) -> None:
        """See :class:`Launcher`."""
        from cuda.core import LaunchConfig, launch

        if not blocks:
            return
        self.load(module)
        stream = torch.cuda.current_stream(self.device)
        handle = stream.cuda_stream
        with torch.cuda.device(self.device):
            self._own.set_current()
            if handle not in self._streams:
                self._streams[handle] = self._own.create_stream(stream)  # torch's own, by __cuda_stream__
            config = LaunchConfig(grid=blocks, block=layout()["THREADS"])
            launch(self._streams[handle], config, self._kernels[module, kernel], *map(plain, arguments))


def plain(argument: Argument) -> int | float:
    """An argument as the eight bytes that a kernel gets."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return argument or 0
