"""MODEL on the command line: anything that :func:`shearfx.models.load_model` loads, or a folder that shearfx wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shearfx.cli.console import Talk
from shearfx.errors import CheckpointError, ShearError, message

if TYPE_CHECKING:
    from shearfx.models import LoadedModel
    from shearfx.pruning_plan import PruningPlan

__all__ = [
    "Device",
    "Dtype",
    "Model",
    "Original",
    "open_model",
    "original_of",
    "original_option",
    "read_plan",
    "read_text",
]

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder, hub id, GGUF file, or package.module:factory.", show_default=False),
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, ...; that of the files by default.", show_default=False)
]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")]
original_option = typer.Option(
    "--original",
    metavar="MODEL",
    help="The model that a folder of shearfx was made from; again for what that was made from.",
    show_default=False,
)
Original = Annotated[list[str] | None, original_option]


def original_of(originals: Sequence[str]) -> str:
    """What was asked for, as options to copy."""
    return "".join(f" --original {one}" for one in originals)


def open_model(
    talk: Talk, spec: str, *, originals: Sequence[str] | None = None, dtype: str | None = None, device: str = "cpu"
) -> LoadedModel:
    """Load what MODEL names, showing that it is being loaded.

    Args:
        talk: where to show it.
        spec: MODEL.
        originals: what it was made from, what that was made from, and so on.
        dtype, device: see ``load_model``.

    Raises:
        ShearError: see ``load_model``.
    """
    path = Path(spec).expanduser()
    import transformers

    from shearfx.architectures import OriginalNeededError
    from shearfx.factories import is_factory_spec
    from shearfx.models import check_has_original, load_model

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not path.exists() and not is_factory_spec(spec):
        from shearfx.pretrained import download

        with talk.step(f"fetching {spec}"):
            path = download(spec)
    original = None
    if originals:
        check_has_original(path)  # before the original is fetched and loaded
        original = open_model(talk, originals[0], originals=originals[1:])
    named = spec if is_factory_spec(spec) and not path.exists() else str(path)
    try:
        with talk.step(f"loading {spec}"):
            return load_model(named, dtype=dtype, device=device, original=original)
    except OriginalNeededError as error:
        todo = "say what it was made from: --original MODEL, package.module:factory for a class of your own"
        raise CheckpointError(message(str(error).splitlines()[0], where=spec, todo=todo)) from error


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


def read_plan(path: Path) -> PruningPlan:
    """Read a plan's JSON.

    Raises:
        ShearError: the file cannot be read, or is no plan.
    """
    from shearfx.pruning_plan import PruningPlan

    return PruningPlan.from_json(read_text(path))
