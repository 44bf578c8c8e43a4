"""``shearfx verify``: does a folder hold what its plan makes of the original, and does that compute the same?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shearfx.cli.console import AsJson, Debug, talking
from shearfx.cli.opening import Dtype, open_model, original_option
from shearfx.errors import SoundnessError, message

if TYPE_CHECKING:
    from torch import nn

    from shearfx.pruning_plan import PruningPlan

__all__ = ["verify"]


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What shearfx prune wrote.", show_default=False)],
    original: Annotated[list[str], original_option],
    dtype: Dtype = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check that DIR holds exactly what its plan makes of MODEL, and that this computes what MODEL does when masked.

    Masked: MODEL at full size with the removed structures zeroed. Compared in float64 on the example inputs.
    """
    with talking(as_json, debug) as talk:
        from shearfx.checkpoints import read_plan

        plan = read_plan(folder)
        loaded = open_model(talk, original[0], originals=original[1:], dtype=dtype)
        import shearfx
        from shearfx.models import load_result

        with talk.step("comparing the files with the plan"):
            small = load_result(folder, loaded)
            compared = same_tensors(loaded.module, plan, small)
        del small
        with talk.step("comparing cut and masked in float64"):
            report = shearfx.verify(loaded.module, plan, *loaded.args, **loaded.kwargs)
        data = {"folder": str(folder), "original": original[0], "sound": True, "tensors": compared, **asdict(report)}

        def show(out: Console) -> None:
            out.print(
                f"files: all {compared} tensors are what the plan makes of {original[0]}", markup=False, soft_wrap=True
            )
            if report.layers_error is not None:
                passed = "the graph in which the stream passes them by"
                out.print(f"without the layers that go: differs from {passed} by {report.layers_error:.1e}")
            for form, error in (("original class", report.module_error), ("fx graph", report.fx_error)):
                if error is not None:
                    out.print(f"{form}: differs from the masked original by {error:.1e} of its largest output")
            out.print(f"cutting moved the output by {report.moved:.1e} of its largest number")
            out.print(f"[bold green]sound[/bold green] (tolerance {report.tolerance:.0e}, float64)")

        talk.result(data, show)


def same_tensors(model: nn.Module, plan: PruningPlan, small: nn.Module) -> int:
    """Compare a loaded model with what the plan makes of ``model``, bit by bit; returns how many tensors.

    Raises:
        SoundnessError: a tensor is missing, too many, or different.
    """
    import shearfx

    form = str(plan.options.get("form", "module"))
    expected = shearfx.construct(model, plan, form="fx" if form == "fx" else "module").state_dict()
    found = small.state_dict()
    todo = "make the folder again, with the original that is named here"
    for name in (*expected, *found):
        if (name in expected) != (name in found):
            what = "is missing from the folder" if name in expected else "should not be in the folder"
            raise SoundnessError(message(f"{name} {what}", where="the folder's tensors", todo=todo))
        a, b = expected[name], found[name]
        if a.dtype != b.dtype:
            raise SoundnessError(
                message(
                    f"{name} is {b.dtype} in the folder, {a.dtype} in the original",
                    where="the folder's tensors",
                    todo=f"pass --dtype {str(b.dtype).removeprefix('torch.')}",
                )
            )
        if a.shape != b.shape or not bool((a == b).all()):
            raise SoundnessError(
                message(f"{name} is not what the plan makes of the original", where="the folder's tensors", todo=todo)
            )
    return len(expected)
