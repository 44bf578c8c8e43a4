"""Runs that SIGKILL ends, wherever they are: what is resumed ends in the same model, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import shearfx
from tests.tiny_runs import Runs, options, write_model, write_text

OFTEN: dict[str, Any] = {"checkpoint_seconds": 1e-6}
"""A checkpoint after every step, so that the next one is always being written when the run ends."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("killed")
    return Runs(write_model(folder / "model"), write_text(folder / "text.txt"))


class Command:
    """``python -m shearfx shear`` in a process of its own.

    Args:
        runs: its model and text.
        out: the run's folder.
        more: options of the run.
    """

    def __init__(self, runs: Runs, out: Path, **more: Any) -> None:
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in options(runs.text, **more).items()}
        config = out.parent / f"{out.name}.yaml"
        config.write_text(yaml.safe_dump(values))
        self.out = out
        self.arguments = [sys.executable, "-m", "shearfx", "shear", str(runs.model), "-o", str(out),
                          "--config", str(config)]  # fmt: skip

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The process, on as many threads as this one has."""
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.Popen([*self.arguments, *more], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=environment)  # fmt: skip

    def finish(self, *more: str) -> None:
        """Run to the end."""
        process = self.start(*more)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    def kill(self, file: str, event: str, lines: int, after: float, *more: str) -> None:
        """Start it, and kill it so many seconds after a file of the run has so many more lines of an event."""

        def count() -> int:
            path = self.out / file
            return path.read_text().count(event) if path.is_file() else 0

        before, process = count(), self.start(*more)
        deadline = time.monotonic() + 300
        while count() < before + lines:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before"


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the model in a folder."""
    return {name: value.detach() for name, value in shearfx.load(folder).state_dict().items()}


def same(one: Path, other: Path) -> None:
    """Two runs ended alike: model, plan and losses, and no step of either was lost or taken twice in the end."""
    mine, theirs = weights(one / "model"), weights(other / "model")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    records = [json.loads((run / "stages.json").read_text()) for run in (one, other)]
    for stage in ("dense", "prune", "cut", "recover"):
        assert records[0][stage] | {"minutes": 0} == records[1][stage] | {"minutes": 0}
    assert (one / "plan.json").read_text() == (other / "plan.json").read_text()


def test_a_process_killed_in_recovery_is_resumed_to_the_same_model(runs: Runs, tmp_path: Path) -> None:
    """All up to the cut is copied from the run that was not killed; a real process goes on from there, and is killed
    in the midst of its steps and checkpoints."""
    asked: dict[str, Any] = {"tokens": 60 * 64, "rounds": 2, "tolerance": 0.0, "saliency": "magnitude",
                             "compensation": "none", "dropout": 0.1}  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    runs(whole, **asked, **OFTEN)
    draw = random.Random()
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("model", "state", "metrics.jsonl", "report.html"))
    records = json.loads((run / "stages.json").read_text())
    del records["recover"]
    (run / "stages.json").write_text(json.dumps(records))
    command, step, after = Command(runs, run, **asked, **OFTEN), draw.randint(1, 40), draw.uniform(0, 0.03)
    print(f"killed {after:.3f} s after step {step} of 60")  # shown where the test fails
    command.kill("metrics.jsonl", '"recover"', step, after, "--resume")
    assert (run / "state" / "recover").is_dir() and not (run / "model").exists()
    runs(run, resume=True, **asked, **OFTEN)
    same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("carrier", ["gates", "weights"])
def test_a_command_killed_in_every_stage_is_resumed_to_the_same_model(runs: Runs, tmp_path: Path, carrier: str) -> None:
    """Killed in the knowledge analysis, then in LHSPG, then in recovery, at moments that are drawn anew each time."""
    asked: dict[str, Any] = {
        "gamma": 0.5, "ratio": 0.1, "knowledge_ratios": [0.1 * i for i in range(1, 10)], "knowledge_windows": 64,
        "prune_share": 0.5, "carrier": carrier, "merge": "period" if carrier == "weights" else "end", "periods": 3,
        "tokens": 80 * 64, "dropout": 0.1, "tolerance": 0.0, "compensation": "none", "rounds": 2,
    }  # fmt: skip
    runs(tmp_path / "whole", **asked)
    draw = random.Random()
    moments = [
        ("knowledge.jsonl", "\n", draw.randint(1, 6), draw.uniform(0, 0.02)),
        ("metrics.jsonl", '"event": "prune"', draw.randint(1, 30), draw.uniform(0, 0.05)),
        ("metrics.jsonl", '"event": "recover"', draw.randint(1, 30), draw.uniform(0, 0.05)),
    ]
    print(f"killed {moments}")  # shown where the test fails
    killed = Command(runs, tmp_path / "killed", **asked, **OFTEN)
    for number, moment in enumerate(moments):
        killed.kill(*moment, *(["--resume"] if number else []))
        done = json.loads((killed.out / "stages.json").read_text()).keys()
        assert ("knowledge" in done, "prune" in done, "recover" in done) == (number > 0, number > 1, False)
    killed.finish("--resume")
    same(killed.out, tmp_path / "whole")
