"""The tables of ``benchmarks.lorashear_table``: means over seeds, and shares of the full model's scores kept."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks import record
from benchmarks.texts import JUDGED_FROM
from shearfx.zero_shot import kept

Row = dict[str, Any]

ROWS = record.RESULTS / "lorashear_table_rows"
COMMAND = "python -m benchmarks.lorashear_table --data ../shared"
DENSE = "dense"
TEXTS = ("WikiText-2", "C4")
COLUMNS = ("ratio", "method", "parameters", "without embeddings", *TEXTS, "mean", "kept", "above chance",
           "prefill", "decode", "minutes", "peak, MiB", "seeds")  # fmt: skip
LONGER = ("ratio", "method", "tokens", *TEXTS, "mean", "above chance", "seeds")
SHORT = ("cut", "method", *TEXTS, "mean", "above chance", "prefill", "decode")


def report(settings: dict[str, Any], folder: Path) -> None:
    """All tables, printed; in ``results`` where the rows are kept there. What is left out is said on stderr too."""
    rows = read(settings, folder)
    for name in rows.stale:
        print(f"left out, made by other settings than those of now: {name}", file=sys.stderr)
    text, lines = tables(rows, settings)
    if folder == ROWS:
        record.keep("lorashear_table", "LoRAShear and its rivals", text, lines, COMMAND)
    else:
        print(text)


def short() -> str:
    """The table of the last report in the README's columns; of each ratio the best perplexity of C4 first."""
    lines = json.loads((record.RESULTS / "lorashear_table.json").read_text())["data"]
    lines.sort(key=lambda line: (line["ratio"], float(line["C4"].split()[0])))
    rows = [line | {"cut": f"{line['ratio']:.0%}" if line["ratio"] else "none",
                    "method": f"**{line['method']}**" if line["method"].startswith("shearfx") else line["method"]}
            for line in lines]  # fmt: skip
    return record.table(rows, SHORT)


# -- rows


@dataclass(frozen=True)
class Rows:
    """What lies in a folder."""

    dense: Row
    """The full model, not trained."""
    current: list[Row]
    """Made by the settings of now, of any number of tokens; by ratio, method, tokens and seed."""
    stale: list[str]
    """Files of all others."""


def read(settings: dict[str, Any], folder: Path) -> Rows:
    """All rows of a folder."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}
    old = [name for name, row in found.items() if stale(row, settings)]
    order = list(settings["methods"])
    current = [row for name, row in found.items() if name not in old]
    current.sort(key=lambda row: (row["ratio"], order.index(row["method"]), row["tokens"], row["seed"]))
    return Rows(json.loads((folder / f"{DENSE}.json").read_text()), current, old)


def fields(settings: dict[str, Any], method: str, ratio: float) -> dict[str, Any]:
    """What a method sets; of what depends on the ratio, that of this one."""
    named = settings["methods"][method]
    return {key: value.get(ratio) if isinstance(value, dict) else value for key, value in named.items()}


def asked(settings: dict[str, Any], method: str, ratio: float, tokens: int) -> dict[str, Any]:
    """The settings of a row, as it records them."""
    return cast(dict[str, Any], settings["common"] | fields(settings, method, ratio) | {"tokens": tokens})


def stale(row: Row, settings: dict[str, Any]) -> bool:
    """Whether a row was made by other settings than those of now, its tokens aside; the first rows do not say."""
    if row["method"] not in settings["methods"]:
        return True
    now = asked(settings, row["method"], row["ratio"], row["tokens"])
    return bool(row.get("settings", now) != now)


def finished(place: Path, settings: dict[str, Any]) -> bool:
    """Whether a row is there, and made by the settings of now."""
    return place.exists() and not stale(json.loads(place.read_text()), settings)


# -- tables


def tables(rows: Rows, settings: dict[str, Any]) -> tuple[str, list[Row]]:
    """The report as Markdown, and the lines of its first table: those of as many tokens as the settings say."""

    def key(row: Row) -> tuple[float, str, int]:
        return row["ratio"], row["method"], row["tokens"]

    lines = [{"ratio": 0, "method": "dense"} | _line([rows.dense], rows.dense, settings)]
    lines += [
        {"ratio": ratio, "method": method, "tokens": f"{tokens:,}"} | _line(list(same), rows.dense, settings)
        for (ratio, method, tokens), same in itertools.groupby(rows.current, key)
    ]
    usual = f"{settings['common']['tokens']:,}"
    others = {(line["ratio"], line["method"]) for line in lines if line.get("tokens", usual) != usual}
    longer = [line for line in lines if (line["ratio"], line["method"]) in others]
    lines = [line for line in lines if line.get("tokens", usual) == usual]
    text = f"{about(rows, settings)}\n{record.table(lines, COLUMNS)}\n"
    if longer:
        text += f"\nMore training tokens:\n\n{record.table(longer, LONGER)}\n"
    return f"{text}\nAccuracy and standard error, all tasks:\n\n{_accuracies(rows, settings)}", lines


def about(rows: Rows, settings: dict[str, Any]) -> str:
    """How all this was measured, in what is true of these rows."""
    common, dense, current = settings["common"], rows.dense, rows.current
    signal = ", ".join(f"{name} ({metric})" for name, metric in settings["signal"].items())
    untold = sum("settings" not in row for row in current)
    traced = sum("config" in row for row in current)
    notes = [
        f"Trained on C4 (rows 0 to {JUDGED_FROM - 1} of `c4_validation_2k.parquet`) and Alpaca (`alpaca_1000.json`), "
        f"at most {common['max_tokens']:,} tokens of each; the perplexity of C4 is that of the rows from {JUDGED_FROM} "
        "on, never trained on.",
        f"Of the dense model, {'; '.join(f'{text}: {said}' for text, said in dense['conditions'].items())}.",
        f"`mean`: over {signal}, first {settings['limit']} items of each. `kept`, `above chance`: of the dense model's "
        "mean, with the middle 95% of a paired bootstrap over items.",
        "Of several seeds: means, with the sample standard deviation behind ±; of each item the share of seeds that "
        "got it right, so that the bootstrap's interval says how items spread, and not seeds.",
        _speeds(current),
        "`minutes`: processor time of the whole run (with one thread, the wall clock of an idle core). `minutes` and "
        "`peak` are blank where they are not known, as of a run that went on in a second process"
        + _some(sum(bool(row.get("minutes")) and not row.get("peak") for row in current), "; the peak alone "
                "in {} early {rows}") + ".",
        f"{untold} of {len(current)} rows were made before rows recorded their settings; {traced} record the whole "
        "configuration and the commit. Versions and hardware above are those of the process that wrote this.",
        *(["Left out, as made by other settings than those of now, until a run of the same method, ratio, tokens and "
           f"seed replaces them: {', '.join(f'`{name}`' for name in rows.stale)}."] if rows.stale else []),
        *settings["notes"],
    ]  # fmt: skip
    steps = f"at {common['batch_size']} windows of {common['sequence_length']} a step"
    start = f"{dense['model']}; {common['tokens']:,} training tokens for every method, {steps}.\n\n"
    return start + "".join(f"- {note}\n" for note in notes)


def _speeds(rows: Sequence[Row]) -> str:
    """Conditions of the speeds, as rows say them."""
    timed = [row for row in rows if "speed_up" in row]
    missing = _some(len(rows) - len(timed), " {} {rows} without speeds and minutes: made where the processor does not "
                    "compute in bfloat16, its products imitated in float32 and rounded.")  # fmt: skip
    if not timed:
        return f"No speeds.{missing}"
    where = Counter(row.get("timed_on", "elsewhere, or while others ran") for row in timed)
    how = Counter(", ".join(part for part in row["timed"].partition("(")[2].rstrip(")").split(", ")
                            if not part.startswith("median")) for row in timed)  # fmt: skip
    return (
        f"Speed-ups: medians of 5 rounds by turns with the full model, each a greedy generation after one that is not "
        f"timed (batch x prompt + new tokens): {'; '.join(name for name, _ in how.most_common())}. `prefill` is up to "
        "the first new token, for which logits of the last position alone are worked out (`generate` passes "
        f"`logits_to_keep=1`); `decode` is the rest, with the cache. "
        f"Measured on: {'; '.join(f'{name} ({count} rows)' for name, count in where.most_common())}.{missing}"
    )


def _some(count: int, text: str) -> str:
    """A text about so many rows; nothing where there are none."""
    return text.format(count, rows="row" if count == 1 else "rows") if count else ""


def _accuracies(rows: Rows, settings: dict[str, Any]) -> str:
    """Every task of every row, and beside it the metric that the mean takes, where that is another."""
    lines: list[Row] = []
    for row in ({"ratio": 0, "method": "dense"} | rows.dense, *rows.current):
        line: Row = {name: row[name] for name in ("ratio", "method", "seed") if name in row}
        line |= {"tokens": f"{row['tokens']:,}"} if "tokens" in row else {}
        for name, one in row["tasks"].items():
            line[name] = f"{one['acc']:.3f} ±{one['acc_stderr']:.3f}"
            if settings["signal"].get(name) == "acc_norm":
                line[f"{name} (norm)"] = f"{one['acc_norm']:.3f} ±{one['acc_norm_stderr']:.3f}"
        lines.append(line)
    tasks = [column for column in lines[0] if column not in ("ratio", "method")]
    return record.table(lines, ("ratio", "method", "tokens", "seed", *tasks))


def _line(same: Sequence[Row], dense: Row, settings: dict[str, Any]) -> Row:
    """Rows of one method that differ in their seed."""
    signal: dict[str, str] = settings["signal"]
    chance = {name: dense["tasks"][name]["chance"] for name in signal}
    each = [_right(row, signal) for row in same]
    shares = {name: [statistics.fmean(item) for item in zip(*(of[name] for of in each), strict=True)]
              for name in signal}  # fmt: skip
    # shares of seeds are as good to it as right or wrong
    found = kept(_right(dense, signal), cast(Mapping[str, list[bool]], shares), chance)
    line: Row = {
        **{name: f"{round(statistics.fmean(row[of] for row in same)):,}"
           for name, of in (("parameters", "parameters"), ("without embeddings", "without_embeddings"))},
        **{name: _spread([row["perplexity"][name] for row in same], 2) for name in TEXTS},
        "mean": _spread([statistics.fmean(statistics.fmean(v) for v in of.values()) for of in each], 3),
        "kept": _share(found.raw, found.raw_interval),
        "above chance": _share(found.above_chance, found.above_chance_interval),
        "seeds": len(same),
    }  # fmt: skip
    timed = [row["speed_up"] for row in same if "speed_up" in row]
    if timed:
        line |= {what: f"{statistics.fmean(one[what] for one in timed):.2f}" for what in ("prefill", "decode")}
    minutes, peaks = ([row[what] for row in same if row.get(what)] for what in ("minutes", "peak"))
    line |= {"minutes": f"{statistics.fmean(minutes):.0f}" if minutes else ""}
    return line | {"peak, MiB": max(peaks) >> 20 if peaks else ""}


def _right(row: Row, signal: Mapping[str, str]) -> dict[str, list[bool]]:
    """Whether each item was right, by task."""
    return {name: [sign == "1" for sign in row["tasks"][name]["right_norm" if metric == "acc_norm" else "right"]]
            for name, metric in signal.items()}  # fmt: skip


def _spread(values: Sequence[float], digits: int) -> str:
    """A mean, of several with the sample standard deviation."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} ({interval[0]:.0%} to {interval[1]:.0%})"
