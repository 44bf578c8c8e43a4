"""The names that users rely on: there, and free until they are used."""

import subprocess
import sys

import pytest

import shearfx


@pytest.mark.parametrize("name", shearfx.__all__)
def test_every_public_name_resolves_to_what_its_name_says(name: str) -> None:
    value = getattr(shearfx, name)
    assert callable(value)
    assert value.__name__ == name
    assert name in dir(shearfx)


def test_importing_shearfx_imports_no_torch() -> None:
    code = "import sys, shearfx; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="prune_everything"):
        _ = shearfx.prune_everything


def test_errors_are_one_family() -> None:
    for error in (
        shearfx.TraceError,
        shearfx.PlanError,
        shearfx.SoundnessError,
        shearfx.CheckpointError,
        shearfx.DataError,
    ):
        assert issubclass(error, shearfx.ShearError)
