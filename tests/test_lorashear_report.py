"""The tables of ``benchmarks.lorashear_table``, of rows that no model was needed for."""

from __future__ import annotations

import itertools
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import lorashear_report, lorashear_table, record
from benchmarks.lorashear_report import asked, finished, read, report, short, stale, tables
from shearfx.config import ShearConfig

ITEMS = 20
SETTINGS: dict[str, Any] = {
    "common": {"tokens": 1000, "sequence_length": 8, "batch_size": 2, "max_tokens": 5000},
    "ratios": [0.2, 0.5], "seeds": [0], "limit": ITEMS, "signal": {"hellaswag": "acc_norm", "piqa": "acc"},
    "notes": ["What a reader should know."],
    "methods": {"dense, same tokens": {"dense": True}, "plain": {"cuts": 1}, "shearfx": {},
                "shearfx, layers too": {"layers": {0.2: 4, 0.5: 10}}},
}  # fmt: skip
SPEEDS = {"speed_up": {"prefill": 1.25, "decode": 1.5},
          "timed": "prefill 9 tokens/s, decode 8 tokens/s (1 x 128 + 24 tokens, median of 1, bfloat16, cpu, 1 threads)",
          "timed_on": "a machine"}  # fmt: skip


def judged(c4: float, right: int) -> dict[str, Any]:
    """What is found of a model: so many items of piqa are right, one more of hellaswag by its norm, two fewer else."""

    def task(of: int, norm: int) -> dict[str, Any]:
        signs = {"right": "1" * of + "0" * (ITEMS - of), "right_norm": "1" * norm + "0" * (ITEMS - norm)}
        accuracies = {"acc": of / ITEMS, "acc_norm": norm / ITEMS, "acc_stderr": 0.01, "acc_norm_stderr": 0.02}
        return {"chance": 0.25, **accuracies, **signs}

    return {"parameters": 1000, "without_embeddings": 900, "perplexity": {"WikiText-2": c4 / 2, "C4": c4},
            "conditions": {"C4": "perplexity, somehow"},
            "tasks": {"hellaswag": task(right - 2, right + 1), "piqa": task(right, right)}}  # fmt: skip


def made(method: str, ratio: float = 0.2, seed: int = 0, tokens: int = 1000, c4: float = 40.0, right: int = 10,
         **changes: Any) -> dict[str, Any]:  # fmt: skip
    """A finished row; changes that are None take away."""
    row = judged(c4, right) | SPEEDS | {
        "method": method, "ratio": ratio, "seed": seed, "tokens": tokens, "minutes": 7.0, "peak": 5 << 20,
        "settings": asked(SETTINGS, method, ratio, tokens),
    } | changes  # fmt: skip
    return {name: value for name, value in row.items() if value is not None}


def folder_of(path: Path, *rows: dict[str, Any]) -> Path:
    """A folder with these rows, and with that of the dense model."""
    path.mkdir(exist_ok=True)
    (path / "dense.json").write_text(json.dumps({"model": "Tiny"} | judged(20.0, 16)))
    for row in rows:
        name = lorashear_table.row_file(row["seed"], row["ratio"], row["method"], row["tokens"])
        (path / name).write_text(json.dumps(row))
    return path


def table_after(text: str, heading: str) -> list[dict[str, str]]:
    """The first Markdown table behind a heading, as rows by column."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), text[text.index(heading) :].splitlines())
    block = itertools.takewhile(lambda line: line.startswith("|"), lines)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def shown(path: Path) -> tuple[str, dict[tuple[float, str], dict[str, Any]]]:
    """The text, and the main table's lines by ratio and method."""
    text, lines = tables(read(SETTINGS, path), SETTINGS)
    return text, {(line["ratio"], line["method"]): line for line in lines}


def test_one_seed_has_no_spread_and_several_have(tmp_path: Path) -> None:
    rows = [
        made("shearfx", seed=seed, c4=c4, right=right) for seed, c4, right in ((0, 40, 9), (1, 44, 10), (2, 45, 14))
    ]
    _, lines = shown(folder_of(tmp_path, *rows, made("plain")))
    line, alone = lines[0.2, "shearfx"], lines[0.2, "plain"]
    assert line["C4"] == f"43.00 ± {statistics.stdev([40, 44, 45]):.2f}"
    assert line["WikiText-2"] == f"21.50 ± {statistics.stdev([20, 22, 22.5]):.2f}"
    # items of both tasks, hellaswag with one more by its norm
    scores = [(2 * right + 1) / (2 * ITEMS) for right in (9, 10, 14)]
    assert line["mean"] == f"{statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}"
    full = (2 * 16 + 1) / (2 * ITEMS)
    kept, above = statistics.fmean(scores) / full, (statistics.fmean(scores) - 0.25) / (full - 0.25)
    assert line["kept"].startswith(f"{kept:.1%} (") and line["above chance"].startswith(f"{above:.1%} (")
    assert line["seeds"] == 3
    assert (alone["C4"], alone["mean"], alone["seeds"]) == ("40.00", "0.525", 1)


def test_seeds_that_agree_say_no_more_than_one(tmp_path: Path) -> None:
    _, one = shown(folder_of(tmp_path / "one", made("shearfx")))
    _, all_alike = shown(folder_of(tmp_path / "many", *(made("shearfx", seed=seed) for seed in range(5))))
    for column in ("kept", "above chance"):
        assert all_alike[0.2, "shearfx"][column] == one[0.2, "shearfx"][column]
    assert all_alike[0.2, "shearfx"]["C4"] == "40.00 ± 0.00"


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": asked(SETTINGS, "plain", 0.2, 1000) | {"cuts": 3}},
        {"method": "gone"},
        {"method": "shearfx, layers too", "ratio": 0.3, "settings": {"layers": 6}},  # no longer said for this ratio
    ],
)
def test_stale_rows_are_left_out_by_name_and_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    old = made("plain") | changes
    path = folder_of(tmp_path, made("shearfx"), old)
    name = lorashear_table.row_file(0, old["ratio"], old["method"], 1000)
    assert stale(old, SETTINGS) and not finished(path / name, SETTINGS)
    assert finished(path / "shearfx-0.2-1000-0.json", SETTINGS) and not finished(path / "none.json", SETTINGS)
    report(SETTINGS, path)
    told = capsys.readouterr()
    assert told.err.count(name) == told.out.count(f"`{name}`") == 1
    assert [row["method"] for row in table_after(told.out, "- What")] == ["dense", "shearfx"]


def test_rows_that_name_no_settings_stay_and_are_counted(tmp_path: Path) -> None:
    whole = made("plain", config={"cuts": 1}, commit="abc")
    text, lines = shown(folder_of(tmp_path, whole, made("shearfx", settings=None), made("shearfx", 0.5, settings=None)))
    assert (0.5, "shearfx") in lines
    assert "2 of 3 rows were made before rows recorded their settings; 1 record the whole configuration" in text
    assert "Left out" not in text


def test_other_numbers_of_tokens_have_a_table_of_their_own(tmp_path: Path) -> None:
    usual = [made("shearfx"), made("plain"), made("shearfx", 0.5, c4=90)]
    before, lines = shown(folder_of(tmp_path, *usual))
    more = [made("shearfx", tokens=5000, c4=c4, seed=seed) for seed, c4 in enumerate((31, 33))]
    after, same = shown(folder_of(tmp_path, *usual, *more))
    assert same == lines and "More training tokens" not in before and "Left out" not in after
    rows = table_after(after, "More training tokens")
    assert [(row["method"], row["ratio"], row["tokens"]) for row in rows] == [
        ("shearfx", "0.2", "1,000"), ("shearfx", "0.2", "5,000"),
    ]  # fmt: skip
    assert [row["C4"] for row in rows] == ["40.00", "32.00 ± 1.41"]
    assert list(rows[0]) == list(lorashear_report.LONGER)


def test_rows_without_speeds_have_blank_cells_and_are_counted(tmp_path: Path) -> None:
    untimed = made("plain", speed_up=None, timed=None, timed_on=None, minutes=None)
    text, lines = shown(folder_of(tmp_path, untimed, made("shearfx", peak=None)))
    row = next(row for row in table_after(text, "- What") if row["method"] == "plain")
    assert (row["prefill"], row["decode"], row["minutes"], row["peak, MiB"]) == ("", "", "", "5")
    assert lines[0.2, "shearfx"]["prefill"] == "1.25" and lines[0.2, "shearfx"]["peak, MiB"] == ""
    assert "1 row without speeds and minutes" in text and "the peak alone in 1 early row" in text
    assert "1 x 128 + 24 tokens, bfloat16, cpu, 1 threads" in text and "a machine (1 rows)" in text
    text, _ = shown(folder_of(tmp_path / "none", untimed))
    assert "No speeds. 1 row without" in text


def test_accuracies_begin_with_the_dense_model_and_show_what_the_mean_takes(tmp_path: Path) -> None:
    text, _ = shown(folder_of(tmp_path, made("shearfx", 0.5), made("plain"), made("shearfx", tokens=5000)))
    rows = table_after(text, "Accuracy and standard error")
    assert [(row["ratio"], row["method"], row["tokens"]) for row in rows] == [
        ("0", "dense", ""), ("0.2", "plain", "1,000"), ("0.2", "shearfx", "5,000"), ("0.5", "shearfx", "1,000"),
    ]  # fmt: skip
    assert rows[0]["hellaswag"] == "0.700 ±0.010" and rows[0]["hellaswag (norm)"] == "0.850 ±0.020"
    assert rows[1]["hellaswag (norm)"] == "0.550 ±0.020" and "piqa (norm)" not in rows[1]


def test_kept_report_names_the_whole_command_and_short_orders_by_c4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder_of(
        tmp_path / "rows", made("plain", c4=100), made("shearfx", c4=9, seed=0), made("shearfx", c4=11, seed=1),
        made("shearfx, layers too", c4=20), made("shearfx", 0.5, c4=300), made("plain", 0.5, c4=200),
    )  # fmt: skip
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(lorashear_report, "ROWS", path)
    monkeypatch.setattr(sys, "argv", ["lorashear_table", "--methods", "shearfx"])
    report(SETTINGS, path)
    text = (tmp_path / "lorashear_table.md").read_text()
    assert f"- command: `{lorashear_report.COMMAND}`\n" in text and "--methods" not in text
    rows = table_after("\n" + short(), "\n")
    assert [(row["cut"], row["method"], row["C4"]) for row in rows] == [
        ("none", "dense", "20.00"),
        ("20%", "**shearfx**", "10.00 ± 1.41"), ("20%", "**shearfx, layers too**", "20.00"), ("20%", "plain", "100.00"),
        ("50%", "plain", "200.00"), ("50%", "**shearfx**", "300.00"),
    ]  # fmt: skip


def test_the_command_runs_what_is_missing_or_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, float, int]] = []

    class Bench:
        native = True

        def __init__(self, data: Path, runs: Path, settings: dict[str, Any], model: str | None) -> None:
            self.tokens = settings["common"]["tokens"]

        def row(self, seed: int, ratio: float, method: str) -> dict[str, Any]:
            ran.append((method, ratio, self.tokens))
            return made(method, ratio, seed, self.tokens, c4=30)

    path = folder_of(tmp_path / "rows", made("shearfx"), made("plain") | {"settings": {"cuts": 3}})
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.setattr(lorashear_table, "SETTINGS", tmp_path / "settings.yaml")
    monkeypatch.setattr(lorashear_table, "Bench", Bench)

    def command(*options: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["lorashear_table", "--rows", str(path), *options])
        lorashear_table.main()
        return capsys.readouterr()

    out, _ = command("--report")
    assert not ran and "plain-0.2-1000-0.json" in out
    out, err = command("--methods", "plain", "shearfx", "--ratios", "0.2")
    assert ran == [("plain", 0.2, 1000)] and "again" in err and "Left out" not in out
    main = table_after(out, "- What")
    out, _ = command("--methods", "shearfx", "--ratios", "0.2", "--tokens", "9000")
    assert ran[1:] == [("shearfx", 0.2, 9000)] and (path / "shearfx-0.2-9000-0.json").exists()
    assert table_after(out, "- What") == main and "1,000 training tokens for every method" in out
    command("--methods", "shearfx", "--ratios", "0.2", "--tokens", "9000")
    assert len(ran) == 2


def test_published_rows_count_what_went_of_the_full_model() -> None:
    rows = read(yaml.safe_load(lorashear_table.SETTINGS.read_text()), lorashear_report.ROWS)
    assert rows.current
    for row in rows.current:
        went = 1 - row["parameters"] / rows.dense["parameters"]
        assert row["achieved"] == pytest.approx(went, abs=1e-12), (row["method"], row["ratio"])  # rounding of a share


def test_options_of_a_row_make_the_same_run_again() -> None:
    for config in (ShearConfig(ratio=0.3, pretrain=("a.txt",)), ShearConfig.paper(layers="auto")):
        text = json.dumps(lorashear_table.options_of(config), allow_nan=False)
        assert ShearConfig.of_mapping(json.loads(text)) == config


def test_runs_of_other_settings_have_other_folders() -> None:
    one, other = ({"lr": lr, "cuts": 1} for lr in (0.1, 0.2))
    assert lorashear_table.digest(one) != lorashear_table.digest(other)
    assert lorashear_table.digest(one) == lorashear_table.digest(dict(reversed(one.items())))


def test_commit_says_whether_the_code_is_that_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "benchmarks" / "record.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    (results / "row.json").write_text("{}")
    assert re.fullmatch(r"[0-9a-f]{40}", record.commit() or "")
    (tmp_path / "code.py").write_text("")
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", record.commit() or "")
