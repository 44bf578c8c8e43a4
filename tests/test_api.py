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


def test_every_saliency_is_exported_and_says_what_it_is() -> None:
    from shearfx import saliency

    exported = [getattr(saliency, name) for name in saliency.__all__]
    for name, kind in saliency.REGISTRY.items():
        assert kind in exported and kind.name == name
        assert kind.__doc__ and kind.unit in ("loss", "relative", "standardised")
    for name in ("llm_pruner_element1", "llm_pruner_element2", "llm_pruner_vector1", "llm_pruner_vector2", "loraprune",
                 "wanda_sp", "flap", "sparsegpt"):  # fmt: skip
        assert "Source: " in (saliency.REGISTRY[name].__doc__ or "")


def test_errors_are_one_family() -> None:
    for error in (
        shearfx.TraceError,
        shearfx.PlanError,
        shearfx.SoundnessError,
        shearfx.CheckpointError,
        shearfx.DataError,
    ):
        assert issubclass(error, shearfx.ShearError)
