"""The errors that shearfx raises on purpose: one small hierarchy, so that one ``except ShearError`` is enough.

Every message answers three questions, in this order: what went wrong, where (module path, node, source line
or file), and what to do next.  :func:`message` puts them together in one form.
"""

__all__ = ["CheckpointError", "DataError", "PlanError", "ShearError", "SoundnessError", "TraceError", "message"]


class ShearError(Exception):
    """Base class of every error that shearfx raises on purpose.

    Raised itself only where none of the kinds below fits, for example when a model or a text that was
    asked for by name is of no use.
    """


class TraceError(ShearError):
    """The model could not be captured or analysed: it does not export, or its example inputs do not fit it."""


class PlanError(ShearError):
    """No plan meets the request, or a plan does not fit the model that it is applied to."""


class SoundnessError(ShearError):
    """A cut model does not compute what its masked original computes, or an invariant of a pass is broken."""


class CheckpointError(ShearError):
    """A file or a folder cannot be read or written: missing, damaged, unsafe, of another model, or in the way."""


class DataError(ShearError):
    """A source of text or instructions cannot be used: missing, empty, malformed, too short, or in another encoding."""


def message(what: str, *, where: str = "", todo: str = "") -> str:
    """Return one error text from its three parts: what happened, where, and what to do next.

    >>> print(message("the ratio 1.5 is not between 0 and 1", where="plan(ratio=...)", todo="pass 0.2 for 20%"))
    the ratio 1.5 is not between 0 and 1
      where: plan(ratio=...)
      do:    pass 0.2 for 20%
    """
    lines = [what]
    if where:
        lines.append(f"  where: {where}")
    if todo:
        lines.append(f"  do:    {todo}")
    return "\n".join(lines)


class TrainingError(ShearError):
    """Training cannot start, cannot go on, or has diverged."""
