"""A run writes down what a report tells, and the command writes the report at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shearfx.cli import app
from shearfx.viz.report.page import content
from shearfx.viz.report.reading import Run, read_run
from tests.tiny_runs import options, write_model, write_text

pytestmark = pytest.mark.slow  # a whole run from the command line; test_pipeline has a finished one that it resumes


def shear(folder: Path, *more: str) -> Result:
    """The command on a tiny model, with knowledge analysis and LHSPG; the same words resume it."""
    words = ["shear", str(folder / "model"), "-o", str(folder / "run"), *more]
    chosen = options(folder / "text.txt", prune_share=0.5, periods=2, tokens=12 * 2 * 32, gamma=0.5, ratio=0.1)
    for name, value in chosen.items():
        words += ["--set", f"{name}={json.dumps(list(value) if isinstance(value, tuple) else value)}"]
    return CliRunner().invoke(app, words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shear")
    write_model(made / "model")
    write_text(made / "text.txt")
    done = shear(made)
    assert done.exit_code == 0, done.output
    assert f"report: {made / 'run' / 'report.html'}" in done.output
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read_run(folder / "run")


def test_a_run_ends_with_its_report(folder: Path, run: Run) -> None:
    assert run.missing == [] and run.finished
    page = (folder / "run" / "report.html").read_text()
    assert page.startswith("<!doctype html>") and f"{run.records['dense']['parameters']:,}" in page
    drawn = {item["name"] for part in content([run])["sections"] for item in part["items"]}
    wanted = "kept-width knowledge fading pruning-loss saliency degradation recovery-loss refused pins memory"
    assert {*wanted.split()} <= drawn


def test_every_period_says_how_salient_what_it_picked_was(run: Run) -> None:
    periods = run.of("period")
    assert [one["period"] for one in periods] == [0, 1]
    for one in periods:
        both = one["saliency"]["ffn"]
        assert both["picked"] == sorted(both["picked"]) and len(both["picked"]) == len(both["stays"]) == 5
        assert both["picked"][2] < both["stays"][2]
    steps = run.of("prune")
    (schedule,) = run.of("schedule")
    picked = [one["picked"] for one in periods]
    first = schedule["warmup"] + schedule["period_length"]
    assert [step["zero"] for step in steps[:first]] == [0] * (first - 1) + [picked[0]]
    assert steps[schedule["warmup"]]["fading"] == picked[0] and steps[-1]["zero"] == sum(picked)
    assert steps[-1]["fading"] == 0


def test_the_groups_say_what_may_not_be_cut_and_why(run: Run) -> None:
    groups = {one["name"]: one for one in run.account["groups"]}
    assert {one["name"] for one in run.plan["cuts"]} <= {name for name, one in groups.items() if not one["why"]}
    crucial = [name for name, one in groups.items() if one["why"].startswith("unprunable")]
    assert crucial == run.records["knowledge"]["unprunable"]
    assert any("kinds" in one["why"] for one in groups.values())
    assert run.account["pins"] and all(one["count"] >= 1 for one in run.account["pins"])


def test_a_report_that_cannot_be_written_does_not_fail_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shearfx.viz.report import beside

    def broken(paths: Any) -> str:
        raise RuntimeError("no such colour")

    monkeypatch.setattr(beside, "report", broken)
    done = shear(folder, "--resume")
    assert done.exit_code == 0, done.output
    assert "warning: no report was written: no such colour" in done.output and "parameters" in done.output


def test_a_run_of_an_older_version_is_gone_on_with(folder: Path) -> None:
    """Without groups.json, and with lines that know less."""
    place = folder / "run"
    (place / "groups.json").unlink()
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    known = {"event", "time", "step", "loss", "norm", "lr", "seconds", "period", "picked", "saved"}
    older = [{k: v for k, v in line.items() if k in known} for line in lines if line["event"] in ("prune", "period")]
    (place / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in older))
    done = shear(folder, "--resume")
    assert done.exit_code == 0, done.output
    found = read_run(place)
    assert any("groups.json" in what for what in found.missing)
    names = {item["name"] for part in content([found])["sections"] for item in part["items"]}
    assert "pruning-loss" in names and "fading" not in names and "kept-width" in names
