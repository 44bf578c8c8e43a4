"""Whether kernels are used, what is said where they are not, how they are compiled, and where that is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from shearfx.cuda import choosing, compiling, cubins
from shearfx.cuda.sources import FOLDER, KERNELS, Module, digest
from shearfx.errors import PlanError
from tests.cuda_host.building import HostLauncher
from tests.tiny_models import fresh, optimizer

ARCHITECTURES = ["sm_90", *(pytest.param(sm, marks=pytest.mark.slow) for sm in ("sm_75", "sm_80", "sm_100"))]
KINDS = (("WEIGHT_KIND", 1), ("FACTOR_KIND", 0))
MODULES = [
    Module("statistics_any"), Module("step_any"), Module("update"), Module("statistics_dense", KINDS),
    Module("step_replace", KINDS), Module("statistics_product", (*KINDS, ("RANK_TILES_OF_16", 1))),
    Module("statistics_product", (*KINDS, ("RANK_TILES_OF_16", 4))),
]  # fmt: skip


def test_every_source_has_its_kernels_listed() -> None:
    assert {path.stem for path in FOLDER.glob("*.cu")} == set(KERNELS) == {module.name for module in MODULES}
    for module in MODULES:
        assert all(name in module.text or "##side" in module.text for name in module.kernels)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: f"{m.name}-{len(m.defines) and m.defines[-1][1]}")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_compile(module: Module, architecture: str, tmp_path: Path) -> None:
    """By NVRTC where ``shearfx[cuda]`` is installed, else by nvcc, else not at all."""
    if module.name == "statistics_product" and architecture == "sm_75":
        pytest.skip("needs bfloat16 on tensor cores; cards of 7.5 take product_plain")
    try:
        compiling.nvrtc_version()
    except (ImportError, RuntimeError):
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            pytest.skip('neither NVRTC (pip install "shearfx[cuda]") nor nvcc')
        defines = [f"-D{name}={value}" for name, value in module.defines]
        output = tmp_path / "kernels.cubin"
        command = [nvcc, "-std=c++17", f"-arch={architecture}", "-cubin", *defines, "-o", str(output)]
        done = subprocess.run(
            [*command, str(FOLDER / f"{module.name}.cu")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        code = output.read_bytes()
    else:
        capability = (int(architecture[3:-1]), int(architecture[-1]))
        code = compiling.Compiler(capability)._compile(module)
    assert code[:4] == b"\x7fELF" and all(name.encode() in code for name in module.kernels)


# -- kept machine code -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "shearfx" / "cubins"


def compiler(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] = (13, 0)) -> tuple[Any, list[Module]]:
    asked: list[Module] = []
    monkeypatch.setattr(compiling, "nvrtc_version", lambda: version)

    def compile_(self: Any, module: Module) -> bytes:
        asked.append(module)
        return repr((module, self.architecture, self.version)).encode()

    monkeypatch.setattr(compiling.Compiler, "_compile", compile_)
    return compiling.Compiler, asked


def test_nothing_is_compiled_twice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, asked = compiler(monkeypatch)
    for _ in range(2):
        for module in MODULES:
            assert b"sm_90" in make((9, 0)).cubin(module)
    assert asked == MODULES and len(list(cache.iterdir())) == len(MODULES)


def test_another_card_nvrtc_or_source_is_compiled_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, asked = compiler(monkeypatch)
    make((9, 0)).cubin(MODULES[0])
    make((8, 0)).cubin(MODULES[0])
    compiler(monkeypatch, (13, 1))[0]((9, 0)).cubin(MODULES[0])
    monkeypatch.setattr(compiling, "digest", lambda: "other")
    make((9, 0)).cubin(MODULES[0])
    assert len(list(cache.iterdir())) == 4 and len(asked) == 2


def test_damaged_code_is_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, asked = compiler(monkeypatch)
    code = make((9, 0)).cubin(MODULES[0])
    (place,) = cache.iterdir()
    (place / cubins.CODE).write_bytes(code[:-1])
    assert make((9, 0)).cubin(MODULES[0]) == code and len(asked) == 2
    assert (place / cubins.CODE).read_bytes() == code


def test_a_cache_that_cannot_be_written_costs_time_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.write_text("in the way")
    make, asked = compiler(monkeypatch)
    for _ in range(2):
        assert make((9, 0)).cubin(MODULES[0])
    assert len(asked) == 2


def test_the_digest_is_of_all_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    shutil.copytree(FOLDER, tmp_path / "kernels")
    (tmp_path / "kernels" / "numbers.cuh").open("a").write("// changed\n")
    monkeypatch.setattr("shearfx.cuda.sources.FOLDER", tmp_path / "kernels")
    assert digest.__wrapped__() != before


# -- kernels or torch --------------------------------------------------------------------------------------


def test_without_a_card_torch_does_it_and_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choosing.launcher(torch.device("cpu")) is None
        assert choosing.launcher(torch.device("cpu"), "torch") is None
    with pytest.raises(PlanError, match="the model is on cpu"):
        choosing.launcher(torch.device("cpu"), "cuda")


class Card:
    """As if torch saw a card."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), cuda: str = "13.0"
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(choosing, "_WARNED", set())
        monkeypatch.setattr(compiling, "nvrtc_version", lambda: (13, 0))
        monkeypatch.setattr(choosing, "CudaLauncher", lambda device, compiler: HostLauncher())
        choosing._launcher.cache_clear()

    def launcher(self, kernels: Any = "auto") -> Any:
        return choosing.launcher(torch.device("cuda", 0), kernels)


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    choosing._launcher.cache_clear()


def fails(error: Exception) -> Any:
    def raises(*_: object) -> Any:
        raise error

    return raises


@pytest.mark.parametrize(("what", "why"), [
    ("old", "compute capability 7.0"), ("missing", "No module named"), ("library", "no libnvrtc.*shearfx"),
    ("other", "NVRTC is of CUDA 13, torch of CUDA 12"),
    ("driver", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION.*update the driver"), ("wrong", "computed something else"),
    ("compile", "do not compile or load here .NVRTC_ERROR_COMPILATION of step_any"),
])  # fmt: skip
def test_a_card_that_cannot_is_warned_of_once_and_refused_by_name(
    what: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch, (7, 0) if what == "old" else (9, 0), "12.8" if what == "other" else "13.0")
    if what == "missing":
        monkeypatch.setattr(compiling, "nvrtc_version", fails(ImportError("No module named 'cuda'")))
    if what == "library":
        monkeypatch.setattr(compiling, "nvrtc_version", fails(RuntimeError("no libnvrtc")))
    if what == "driver":
        monkeypatch.setattr(choosing, "CudaLauncher", fails(RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")))
    if what == "wrong":
        monkeypatch.setattr(HostLauncher, "launch", lambda *_: None)
    if what == "compile":  # not what the trial runs
        monkeypatch.setattr(
            HostLauncher, "load", lambda _, module: module.name == "step_any" and fails(RuntimeError(
                "NVRTC_ERROR_COMPILATION of step_any"))()
        )  # fmt: skip
    with pytest.warns(UserWarning, match=f"torch does LHSPG's work instead.*{why}"):
        assert card.launcher() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert card.launcher() is None and card.launcher("torch") is None
    with pytest.raises(PlanError, match=why.partition(".*")[0]):
        card.launcher("cuda")


def test_a_card_that_can_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    assert isinstance(card.launcher(), HostLauncher) and card.launcher("cuda") is card.launcher()


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(PlanError, match="no kernels 'triton'"):
        optimizer("llama", fresh("llama", {}), kernels="triton")


def test_nothing_of_cuda_is_imported_without_a_card() -> None:
    code = "import sys, shearfx.optim, shearfx.saliency; sys.exit(any(m.split('.')[0] == 'cuda' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
