"""The package's CUDA sources built with the host's compiler, behind the interface that launches them on a card."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from shearfx.cuda.launching import Argument, plain
from shearfx.cuda.sources import FOLDER, Module, digest, layout

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function",
         # reads at misaligned addresses, indices outside of arrays and signed overflow end the process
         "-fsanitize=undefined", "-fno-sanitize-recover=all")  # fmt: skip


class HostLauncher:
    """Runs kernels on the CPU, every CUDA thread a fibre. Threads and blocks come in an order drawn from ``seed``."""

    device = torch.device("cpu")

    def __init__(self, *, tensor_cores: bool = True, seed: int = 0) -> None:
        self.tensor_cores, self.seed = tensor_cores, seed
        self.launches: list[str] = []

    def load(self, module: Module) -> None:
        """See :class:`shearfx.cuda.launching.Launcher`."""
        library(module)

    def launch(self, module: Module, kernel: str, blocks: int, arguments: Sequence[Argument]) -> None:
        """See :class:`shearfx.cuda.launching.Launcher`."""
        if not blocks:
            return
        self.launches.append(kernel)
        start(library(module), kernel, blocks, layout()["THREADS"], self.seed, arguments)


def start(of: ctypes.CDLL, kernel: str, blocks: int, threads: int, seed: int, arguments: Sequence[Argument]) -> None:
    """One launch."""
    values = [plain(a) for a in arguments]
    numbers = [ctypes.c_double(v) if isinstance(v, float) else ctypes.c_longlong(v) for v in values]
    pointers = (ctypes.c_void_p * len(numbers))(*(ctypes.addressof(n) for n in numbers))
    getattr(of, f"emulate_{kernel}")(blocks, threads, seed, pointers)


_LOADED: dict[Module, ctypes.CDLL] = {}


def library(module: Module) -> ctypes.CDLL:
    """A module as a shared library; built once for each state of the sources, whoever asks first."""
    if module not in _LOADED:
        defines = [f"-D{name}={value}" for name, value in module.defines]
        _LOADED[module] = ctypes.CDLL(str(built(module.name, module.kernels, defines)))
    return _LOADED[module]


def built(name: str, kernels: Sequence[str], defines: Sequence[str] = ()) -> Path:
    """The kernels of one file, of the package or of this folder, as a shared library."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: the CUDA sources cannot be run on the host")
    text = "\n".join(['#include "emulator.h"', f'#include "{name}.cu"', *(f"EXPORT({k})" for k in kernels)]) + "\n"
    own = "".join(path.read_text() for path in sorted(HERE.glob("*.[hc]*")))
    key = "\0".join([digest(), own, *FLAGS, *defines, text])
    folder = Path(tempfile.gettempdir()) / f"shearfx-host-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not found.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            source, output = Path(temporary) / "kernels.cpp", Path(temporary) / "kernels.so"
            source.write_text(text)
            command = [compiler, *FLAGS, *defines, f"-I{HERE}", f"-I{FOLDER}", "-o", str(output), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            output.replace(found)  # other test processes may do the same
    return found
