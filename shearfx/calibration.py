"""Text that is there anyway, and token batches from a text for saliencies that look at data."""

from __future__ import annotations

import inspect
import pydoc_data.topics
import sys

import torch
from transformers import PreTrainedTokenizerBase

from shearfx.errors import ShearError, message

__all__ = ["MANUAL", "library_text", "manual_text", "token_batches"]

MANUAL = "the manual that comes with Python"
"""What errors call it."""


def token_batches(
    tokenizer: PreTrainedTokenizerBase | None,
    text: str,
    *,
    sequence_length: int = 128,
    batches: int = 16,
    batch_size: int = 1,
    source: str = "token_batches",
) -> list[torch.Tensor]:
    """Cut ``batches`` batches of int64 token ids ``[batch_size, sequence_length]`` from a text, spread evenly over it.

    Windows do not overlap; no special tokens are added. ``source`` is what errors call the text.

    Raises:
        ShearError: there is no tokenizer, nothing is asked for, or the text is too short.
    """
    if tokenizer is None:
        todo = "put the tokenizer's files beside the weights, or choose a saliency that needs no data"
        raise ShearError(message("there is no tokenizer to read the text with", where=source, todo=todo))
    wanted = batches * batch_size
    if wanted < 1 or sequence_length < 1:
        what = f"{wanted} windows of {sequence_length} tokens were asked for, which are none"
        raise ShearError(message(what, where=source, todo="ask for at least one window, of one token"))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=torch.int64)
    available = len(ids) // sequence_length
    if available < wanted:
        needed = f"{wanted} windows of {sequence_length} tokens ({wanted * sequence_length} tokens in all)"
        what = f"{needed} were asked for, and the text has {len(ids)} tokens"
        todo = "give a longer text, or ask for fewer windows, or shorter ones"
        raise ShearError(message(what, where=source, todo=todo))
    windows = ids[: available * sequence_length].view(available, sequence_length)
    chosen = windows[[i * available // wanted for i in range(wanted)]]
    return list(chosen.split(batch_size))


def manual_text() -> str:
    """Return the language reference that ships with Python: hundreds of thousands of characters, prose and code.

    >>> len(manual_text()) > 100_000
    True
    """
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def library_text(libraries: tuple[str, ...] = ("torch", "transformers"), limit: int = 600_000) -> str:
    """Return docstrings of what was imported of some libraries, each once, at most ``limit`` characters.

    >>> "tensor" in library_text(limit=50_000)
    True
    """
    found: dict[str, None] = {}
    size = 0
    modules = [name for name in sorted(sys.modules) if name.partition(".")[0] in libraries]
    for name in modules:
        for holder in (sys.modules[name], *vars(sys.modules[name]).values()):
            if not (inspect.ismodule(holder) or inspect.isclass(holder) or inspect.isfunction(holder)):
                continue
            if getattr(holder, "__module__", name) != name:
                continue
            said = holder.__doc__
            text = inspect.cleandoc(said) if isinstance(said, str) else ""
            if len(text) > 200 and text not in found:  # shorter ones say little
                found[text] = None
                size += len(text) + 2
                if size >= limit:
                    return "\n\n".join(found)[:limit]
    return "\n\n".join(found)
