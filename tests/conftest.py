"""Fixtures and settings for all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Tests never ask the hub; set before anything imports huggingface_hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Beside each other, as under pytest-xdist, many threads a process only get in each other's way.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(4, os.cpu_count() or 1))

_SLOW_START = [HealthCheck.too_slow, HealthCheck.data_too_large]  # building and exporting models takes its time
settings.register_profile("dev", deadline=None, suppress_health_check=_SLOW_START)
# the same examples in every run, so that a red run can be run again
settings.register_profile("ci", deadline=None, suppress_health_check=_SLOW_START, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data, from $SHEARFX_SHARED or beside the repository; else skip."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SHEARFX_SHARED", default))
    if not (folder / "models").is_dir():
        pytest.skip(f"no real models and data in {folder}: set SHEARFX_SHARED to the folder that has them")
    return folder


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A trained Llama of 0.26 M parameters as a Hugging Face folder."""
    folder = shared / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder
