"""hypothesis, which only those who test need: imported here, with a clear error where it is missing."""

from __future__ import annotations

from shearfx.errors import ShearError, message

try:
    from hypothesis import strategies as st
except ImportError:  # pragma: no cover
    raise ShearError(
        message(
            "shearfx.testing generates random architectures and plans with hypothesis, which is not installed",
            where="shearfx.testing",
            todo='install it with: pip install "shearfx[dev]", or hypothesis alone',
        )
    ) from None

__all__ = ["st"]
