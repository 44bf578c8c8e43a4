"""MODEL on the command line: anything that :func:`shearfx.models.load_model` loads, or a folder that shearfx wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shearfx.cli.console import Talk
from shearfx.errors import ShearError, message

if TYPE_CHECKING:
    from shearfx.models import LoadedModel

__all__ = ["Device", "Dtype", "Model", "open_model", "read_text"]

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder, hub id, GGUF file, or package.module:factory.", show_default=False),
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, ...; that of the files by default.", show_default=False)
]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")]


def open_model(talk: Talk, spec: str, *, dtype: str | None = None, device: str = "cpu") -> LoadedModel:
    """Load what MODEL names, showing that it is being loaded.

    Raises:
        ShearError: see ``load_model``.
    """
    path = Path(spec).expanduser()
    import transformers

    from shearfx.factories import is_factory_spec
    from shearfx.models import load_model

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not path.exists() and not is_factory_spec(spec):
        from shearfx.pretrained import download

        with talk.step(f"fetching {spec}"):
            path = download(spec)
    with talk.step(f"loading {spec}"):
        return load_model(spec if is_factory_spec(spec) else str(path), dtype=dtype, device=device)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        ShearError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ShearError(
            message(f"the text cannot be read: {error.strerror}", where=str(path), todo="name a file")
        ) from error
    except UnicodeDecodeError as error:
        todo = "convert it to UTF-8"
        raise ShearError(message(f"the file is no UTF-8 text: {error.reason}", where=str(path), todo=todo)) from error
