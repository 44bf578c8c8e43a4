"""Texts that something is measured on: read before anything takes long, cut into windows once there is a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shearfx.cli.opening import read_text
from shearfx.errors import DataError, message

if TYPE_CHECKING:
    import torch

    from shearfx.models import LoadedModel


def read_words(path: Path) -> str:
    """Read a text that something is to be measured on.

    Raises:
        ShearError: it cannot be read, is no text, or has nothing in it but blanks.
    """
    text = read_text(path)
    if not text.strip():
        size = "empty" if not text else "nothing but blanks"
        raise DataError(message(f"the text is {size}", where=str(path), todo="name a file with text in it"))
    return text


def windows(loaded: LoadedModel, file: Path | None, text: str | None, samples: int, length: int) -> list[torch.Tensor]:
    """Token ids ``[1, length]`` of a file's text, or of Python's own manual where there is none.

    Raises:
        ShearError: there is no tokenizer, or the text is too short; the message names the file.
    """
    from shearfx.calibration import MANUAL, manual_text, token_batches

    text, source = (manual_text(), MANUAL) if text is None else (text, str(file))
    return token_batches(loaded.tokenizer, text, sequence_length=length, batches=samples, source=source)
