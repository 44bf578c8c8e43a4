"""How long a run has been at work, over all of its processes."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearfx.config import ShearConfig
from shearfx.errors import CheckpointError
from shearfx.pipeline.study import Study
from shearfx.run_clock import seconds_at_work
from shearfx.run_directory import RunDirectory
from tests.tiny_runs import Runs, Telling, options, tiny_llama, write_model, write_text
from tests.tiny_tokenizers import byte_tokenizer

PROCESSES = st.lists(st.lists(st.integers(0, 1000), max_size=5), max_size=4)


@given(PROCESSES, st.integers(0, 10**6))
def test_pauses_between_processes_do_not_count(processes: list[list[int]], pause: int) -> None:
    now, lines = 1_700_000_000, []
    for gaps in processes:
        now += pause
        lines.append({"event": "begin", "time": now})
        for gap in gaps:
            now += gap
            lines.append({"event": "recover", "time": now})
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        assert seconds_at_work(metrics) == 0, "nothing there"
        metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert seconds_at_work(metrics) == sum(map(sum, processes))


def test_damaged_lines_and_clocks_set_back_add_nothing(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(
        '{"event": "recover", "time": 5}\n'  # an older version did not say when it began
        '{"event": "begin", "time": 100}\n{"event": "recover", "time": 103}\n{"event": "recover", "ti\n[3]\n'
        '{"event": "begin", "time": 50}\n{"event": "recover", "time": 40}\n'
    )
    assert seconds_at_work(tmp_path / "m") == 3


def test_a_finished_run_says_how_long_it_took(tmp_path: Path) -> None:
    runs = Runs(write_model(tmp_path / "model"), write_text(tmp_path / "text.txt"))
    said = runs(tmp_path / "run", tokens=None, minutes=0.2).record["recover"]["minutes"]
    run = RunDirectory(tmp_path / "run", *_asked(tmp_path / "run"), resume=True)
    assert run.spent / 60 == pytest.approx(said, abs=0.05)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert RunDirectory(tmp_path / "run", *_asked(tmp_path / "run"), resume=True).spent == run.spent
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines, "a finished run is only read"


def test_a_pause_does_not_count_where_options_change_or_a_line_was_cut_in_two(tmp_path: Path) -> None:
    config, metrics = ShearConfig(), tmp_path / "metrics.jsonl"
    RunDirectory(tmp_path, "m", config, resume=False).finish("dense", {})
    long_ago = time.time() - 8 * 3600
    metrics.write_text(
        f'{{"event": "begin", "time": {long_ago}}}\n{{"event": "recover", "time": {long_ago + 180}}}\n{{"event": "rec'
    )
    for lr in (1e-4, 2e-4):
        run = RunDirectory(tmp_path, "m", ShearConfig(lr=lr), resume=True)
        assert 180 <= run.spent < 190
        run.log("recover", step=1)


def test_a_folder_in_which_a_run_was_killed_at_once_can_be_used(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123").write_text("# model")
    assert not RunDirectory(tmp_path, "m", ShearConfig(), resume=True).records
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match="in use by something else"):
        RunDirectory(tmp_path, "m", ShearConfig(), resume=False)


def test_what_the_clock_leaves_is_what_may_still_be_trained(tmp_path: Path) -> None:
    config = ShearConfig.of_mapping(options(write_text(tmp_path / "text.txt"), tokens=None, minutes=10.0))
    before, told = time.monotonic(), Telling()
    left = [Study(tiny_llama(), byte_tokenizer(), config, told, spent)._deadline() for spent in (0.0, 300.0, 900.0)]
    expected = [0.9 * 600, 0.9 * 300, 0.0]
    assert all(end is not None and 0 <= end - before - e < 20 for end, e in zip(left, expected, strict=True))
    assert told.told == ["caution: the 10 minutes are over: recovery takes one step"]


def _asked(run: Path) -> tuple[str, ShearConfig]:
    kept = run / "config.yaml"
    return json.loads(kept.read_text().splitlines()[0].removeprefix("# model: ")), ShearConfig.read(kept)
