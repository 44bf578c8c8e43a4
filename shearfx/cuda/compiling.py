"""Compiling for one card with NVRTC, at run time: nothing is compiled when the package is installed."""

from __future__ import annotations

from typing import Any

from shearfx.cuda import cubins
from shearfx.cuda.sources import FOLDER, Module, digest

STANDARD = "c++17"


class Compiler:
    """Compiles the package's sources for one compute capability; what was compiled before is read from a cache.

    Args:
        capability: major and minor, ``(9, 0)`` for an H100.

    Raises:
        ImportError: ``cuda.core`` or NVRTC is not installed.
        RuntimeError: NVRTC cannot be loaded.
    """

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability
        self.version = nvrtc_version()

    @property
    def architecture(self) -> str:
        """As NVRTC names it."""
        return "sm_{}{}".format(*self.capability)

    def cubin(self, module: Module) -> bytes:
        """Machine code of a module."""
        key = (digest(), module.name, str(module.defines), self.architecture, str(self.version), STANDARD)
        code = cubins.read(key)
        if code is None:
            code = self._compile(module)
            cubins.write(key, code)
        return code

    def _compile(self, module: Module) -> bytes:
        from cuda.core import Program, ProgramOptions

        options = ProgramOptions(
            name=f"{module.name}.cu",
            arch=self.architecture,
            std=STANDARD,
            include_path=str(FOLDER),
            define_macro=[(name, str(value)) for name, value in module.defines] or None,
            lineinfo=True,  # compute-sanitizer and profilers name the source's line
        )
        code: Any = Program(module.text, "c++", options).compile("cubin").code
        return bytes(code)


def nvrtc_version() -> tuple[int, int]:
    """Of the NVRTC that is loaded.

    Raises:
        ImportError: ``cuda.bindings`` is not installed.
        RuntimeError: the library is missing, or does not work.
    """
    from cuda.bindings import nvrtc

    error, major, minor = nvrtc.nvrtcVersion()
    if int(error):
        raise RuntimeError(f"NVRTC answers {error}")
    return int(major), int(minor)
