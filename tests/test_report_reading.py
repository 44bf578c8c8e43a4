"""Folders of runs in any state give a page on what there is, and it says what is missing."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shearfx.cli import app
from shearfx.errors import CheckpointError
from shearfx.viz.report.curves import MOST, smoothed, steps_of
from shearfx.viz.report.headline import closed
from shearfx.viz.report.page import content, report, to_html
from shearfx.viz.report.reading import read_run, read_runs
from shearfx.viz.report.widths import counted, widths
from tests.report_runs import LAYERS, write_run

FILES = ("config.yaml", "environment.json", "stages.json", "plan.json", "groups.json", "knowledge.json",
         "metrics.jsonl")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "whole")


def data_of(page: str) -> dict[str, Any]:
    """What the page's program reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return data


def items(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for part in data["sections"] for item in part["items"]}


def test_a_whole_run_misses_nothing_and_shows_everything(whole: Path) -> None:
    data = data_of(report([whole]))
    (run,) = data["runs"]
    assert run["missing"] == [] and run["done"]
    found = items(data)
    wanted = "result perplexity kept-width knowledge fading pruning-loss saliency degradation sampling recovery-loss"
    assert {*wanted.split(), "refused", "pins", "options", "environment", "command"} <= found.keys()
    rows = {row[0]["t"]: [one["t"] for one in row[1:]] for row in found["result"]["rows"]}
    assert rows["parameters"] == ["10,000", "7,000", "7,000", "−30.0%"]
    assert rows["latency of a token, ms"] == ["20.0", "", "16.7", "−16.7%"]
    assert {name for name in rows if name.startswith("perplexity")} == {"perplexity, stories", "perplexity, wiki"}
    cells = {
        (one["row"], one["layer"]): (one["kept"], one["size"], one["whole"]) for one in found["kept-width"]["data"]
    }
    assert len(cells) == 2 * LAYERS
    assert cells["ffn", 0] == (64, 64, True) and cells["ffn", 2] == (36, 64, False) and cells["heads", 0][0] == 4
    assert closed(read_run(whole))["stories"] == pytest.approx(0.8 / 1.1)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "recover", "step": 4, "lo')
    data = data_of(report([run]))
    assert not data["runs"][0]["done"] and "unfinished" in data["runs"][0]["state"]
    (missing,) = data["runs"][0]["missing"]
    assert "metrics.jsonl: line" in missing and "damaged" in missing
    assert items(data)["result"]["rows"][0][3]["t"] == ""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["gone", "empty", "cut off", "another kind", "garbage"])
def test_each_file_may_be_missing_or_damaged(whole: Path, tmp_path: Path, name: str, how: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    file = run / name
    kept = file.read_bytes()
    made = {
        "empty": b"",
        "cut off": kept[: len(kept) // 2 + 1],
        "another kind": b"[3]",
        "garbage": b"\xff\0{\x80",
    }
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(made[how])
    data = data_of(report([run]))
    silent = name == "metrics.jsonl" and how == "empty"  # what a run has that has not taken a step
    half = name == "config.yaml" and how == "cut off"  # half of a list of options is one too
    if not silent and not half:
        assert any(name in what for what in data["runs"][0]["missing"]), data["runs"][0]["missing"]
    assert len(data["sections"]) >= 3  # the rest is there


def test_other_versions_are_told(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "environment.json").write_text('{"shearfx": "9.9"}')
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"format": 7}))
    missing = " ".join(read_run(run).missing)
    assert "written by shearfx 9.9" in missing and "format 7" in missing


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8) | st.just("0-5"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def mutated(value: Any, draw: random.Random, other: Any) -> Any:
    """The same with one place in it replaced, somewhere deep."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        return {**value, key: mutated(value[key], draw, other)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        return [*value[:place], mutated(value[place], draw, other), *value[place + 1 :]]
    return other


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all places in a value; of a list, to its first."""
    yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*way, key))


def put(value: Any, way: tuple[Any, ...], other: Any) -> Any:
    """The same with another value in a place."""
    if not way:
        return other
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[way[0]] = put(value[way[0]], way[1:], other)
    return changed


ANYTHING: tuple[Any, ...] = ({"x": [{}]}, "x", -1.5, float("nan"))


@pytest.mark.parametrize("file", [name for name in FILES if name != "config.yaml"])
def test_every_place_of_every_file_may_hold_anything(whole: Path, tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    kept = (run / file).read_text()
    values = list(map(json.loads, kept.splitlines())) if file == "metrics.jsonl" else [json.loads(kept)]
    kinds = {value.get("event"): i for i, value in enumerate(values)}  # one line of each kind
    for i in kinds.values():
        for way in places(values[i]):
            for other in ANYTHING:
                changed = [*values[:i], put(values[i], way, other), *values[i + 1 :]]
                (run / file).write_text("".join(f"{json.dumps(one)}\n" for one in changed))
                try:
                    json.dumps(content([read_run(run)]), allow_nan=False)
                except Exception as error:
                    raise AssertionError(f"{file}: {other!r:.40} at {way}") from error


@settings(max_examples=50)
@given(
    file=st.sampled_from(FILES), draw=st.randoms(use_true_random=False), others=st.lists(JSON, min_size=1, max_size=6)
)
def test_no_value_in_any_place_breaks_the_page(whole: Path, file: str, draw: random.Random, others: list[Any]) -> None:
    run = whole.parent / "mutated"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    kept = (run / file).read_text()
    if file == "metrics.jsonl":
        lines = [json.loads(line) for line in kept.splitlines()]
        for other in others:
            place = draw.randrange(len(lines))
            lines[place] = mutated(lines[place], draw, other)
        (run / file).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    elif file == "config.yaml":
        lines = kept.splitlines()
        for other in others:
            place = draw.randrange(len(lines))
            lines[place] = lines[place].partition(":")[0] + ": " + json.dumps(other)
        (run / file).write_text("\n".join(lines))
    else:
        value = json.loads(kept)
        for other in others:
            value = mutated(value, draw, other)
        (run / file).write_text(json.dumps(value))
    page = report([run, whole]) if draw.random() < 0.3 else report([run])
    assert data_of(page)["runs"][0]["path"] == str(run)
    page.encode(errors="replace")


@settings(max_examples=100)
@given(
    file=st.sampled_from(FILES), start=st.integers(0, 3000), length=st.integers(0, 3000), instead=st.binary(max_size=40)
)
def test_no_damage_to_the_bytes_of_a_file_breaks_the_page(
    whole: Path, file: str, start: int, length: int, instead: bytes
) -> None:
    run = whole.parent / "bytes"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    kept = (run / file).read_bytes()
    (run / file).write_bytes(kept[:start] + instead + kept[start + length :])
    assert data_of(report([run]))["sections"]


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='broken'\"></script><script>alert(1)</script>{{data}}"
    run = write_run(tmp_path / "run", sources=(evil, "wiki"), path=f"{evil}.layers", model=f"/models/{evil}")
    page = report([run])
    assert evil not in page and "<img src=x" not in page
    assert page.count("</script>") == 2  # the data's and the program's own
    names = {row[0]["t"] for row in items(data_of(page))["result"]["rows"]}
    assert f"perplexity, {evil}" in names


def test_runs_beside_each_other_have_names_of_their_own_and_differing_options_first(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a" / "run")
    second = write_run(tmp_path / "b" / "run", progressive=False)
    runs = read_runs([first, second, first])
    assert len({run.name for run in runs}) == 3 and runs[0].name.startswith("a/run")
    found = items(data_of(to_html(read_runs([first, second]))))
    assert found["result"]["columns"][2:] == ["a/run", "b/run"]
    assert "Change" not in found["result"]["note"]  # a column that only the report of one run has
    options = found["options"]
    assert {row[0]["t"] for row in options["rows"][: options["first"]]} == {"model", "prune_share"}
    assert "Only of a/run." in found["fading"]["note"]


def test_steps_that_a_resumed_run_took_again_count_once(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    again = [dict(line, loss=9.0) for line in run.events if line["event"] == "recover" and line["stage"] == "instruct"]
    run.events += again
    steps = steps_of(run, "recover")
    assert [step["at"] for step in steps] == list(range(1, 21))
    assert [step["loss"] for step in steps[12:]] == [9.0] * 8
    for line in run.events:
        line.pop("stage", None) if line["event"] == "recover" else None
    assert [step["at"] for step in steps_of(run, "recover")] == list(range(1, 21))  # as older runs wrote them


def test_long_curves_stay_small_and_keep_their_mean() -> None:
    steps = [{"at": i, "step": i, "loss": float(i % 10)} for i in range(1, 100_001)]
    points = smoothed("run", steps)
    assert len(points) <= MOST and points[-1]["at"] > 99_000
    assert all(abs(point["mean"] - 4.5) < 0.1 for point in points)


@given(st.sets(st.integers(0, 60)))
def test_counting_ranges_agrees_with_writing_them_out(indices: set[int]) -> None:
    from shearfx.plan_text import to_ranges

    assert counted(to_ranges(sorted(indices)), 61) == len(indices)
    if indices:
        assert counted(to_ranges(sorted(indices)), max(indices)) is None


def test_evaluations_in_the_folder_join_the_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    task = {"name": "arc_easy", "items": 10, "acc": 0.5, "acc_norm": 0.6}
    (run / "eval-dense.json").write_text(json.dumps({"model": "m", "parameters": 10_000, "tasks": [task]}))
    better = {"model": str(run / "model"), "parameters": 7_000, "tasks": [task | {"acc": 0.4}]}
    (run / "eval-recovered.json").write_text(json.dumps(better))
    (run / "eval-other.json").write_text(json.dumps({"model": "other", "parameters": 3}))
    data = data_of(report([run]))
    rows = {row[0]["t"]: [one["t"] for one in row[1:]] for row in items(data)["result"]["rows"]}
    assert rows["accuracy, arc_easy"] == ["0.500", "", "0.400", "−20.0%"]
    assert any("an evaluation of other" in what for what in data["runs"][0]["missing"])


def test_the_command_writes_the_page_and_refuses_what_is_no_run(whole: Path, tmp_path: Path) -> None:
    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["report", *arguments])

    done = invoke(str(whole))
    assert done.exit_code == 0 and (whole / "report.html").is_file(), done.output
    assert invoke(str(whole)).exit_code == 0  # its own page is made anew
    page = tmp_path / "page.html"
    as_json = invoke(str(whole), str(whole), "-o", str(page), "--json")
    assert json.loads(as_json.stdout)["written"] == str(page) and page.stat().st_size < 1_000_000
    for arguments, what in (
        ((str(whole), "-o", str(page)), "the file exists"),
        ((str(whole), str(whole)), "-o"),
        ((str(whole), "-o", str(tmp_path / "page.txt")), "is no page"),
        ((str(tmp_path / "nowhere"),), "no such folder"),
        ((str(tmp_path),), "this is not the folder of a run"),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 1 and what in refused.output, refused.output
    with pytest.raises(CheckpointError):
        read_run(page)


def test_layers_that_went_whole_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    records = json.loads((folder / "stages.json").read_text())
    assert "Whole layers" not in widths(read_runs([folder]))["intro"]
    records["layers"] = {"paths": ["model.layers.2"], "losses": [1.0, 1.1], "parameters": 100}
    (folder / "stages.json").write_text(json.dumps(records))
    assert "Whole layers went first" in (intro := widths(read_runs([folder]))["intro"]) and "model.layers.2" in intro
    wrong: list[Any] = [7, {"paths": 3}, {"paths": [None, {}], "parameters": "x"}]
    for damaged in wrong:
        (folder / "stages.json").write_text(json.dumps(records | {"layers": damaged}))
        assert isinstance(widths(read_runs([folder]))["intro"], str)
