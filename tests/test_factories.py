"""Models from the user's own functions: every form that is taken, and what is said of the others."""

import sys
from pathlib import Path

import pytest
import torch

from shearfx.errors import TraceError
from shearfx.models import load_model

FACTORIES = """
import torch
from torch import nn

def one(): return nn.Linear(3, 2), torch.ones(4, 3)
def args(): return nn.Linear(3, 2), (torch.ones(4, 3),)
def kwargs(): return nn.Linear(3, 2), {"input": torch.ones(4, 3)}
def both(): return nn.Bilinear(3, 3, 2), (torch.ones(4, 3),), {"input2": torch.ones(4, 3)}
class Zoo:
    @staticmethod
    def small(): return one()

def bare(): return nn.Linear(3, 2)
def swapped(): return torch.ones(4, 3), nn.Linear(3, 2)
def raises(): raise RuntimeError("no data here")
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of factories in the current directory, under a name of its own."""
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"broken_{name}.py").write_text("import no_such_library_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the loader adds the current directory
    return name


@pytest.mark.parametrize("factory", ["one", "args", "kwargs", "both", "Zoo.small"])
def test_every_form_of_factory_gives_a_call_that_runs(here: str, factory: str) -> None:
    loaded = load_model(f"{here}:{factory}", dtype="float64")
    assert loaded.module(*loaded.args, **loaded.kwargs).shape == (4, 2)
    assert loaded.module(*loaded.args, **loaded.kwargs).dtype == torch.float64
    assert not loaded.module.training


def test_a_factory_can_be_built_on_meta(here: str) -> None:
    loaded = load_model(f"{here}:both", device="meta")
    assert loaded.module(*loaded.args, **loaded.kwargs).device.type == "meta"


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("bare", "returned Linear"),
        ("swapped", r"returned \(Tensor, Linear\)"),
        ("raises", r"(?s)RuntimeError: no data here.*\.py:15"),
        ("number", "is a int, not a function"),
        ("nothing", r"has no 'nothing'"),
    ],
)
def test_a_bad_factory_is_refused(here: str, factory: str, says: str) -> None:
    with pytest.raises(TraceError, match=says) as caught:
        load_model(f"{here}:{factory}")
    assert f"{here}:{factory}" in str(caught.value)


def test_a_module_that_is_not_there_differs_from_one_that_does_not_import(here: str) -> None:
    with pytest.raises(TraceError, match="there is no module 'no_such_module'"):
        load_model("no_such_module:build")
    with pytest.raises(TraceError, match=r"importing .* raised ModuleNotFoundError: .*no_such_library"):
        load_model(f"broken_{here}:build")
