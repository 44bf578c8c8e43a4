"""The table of ``benchmarks.lorashear_table``: means over seeds, and shares of the full model's scores kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from shearfx.zero_shot import kept

ROWS = record.RESULTS / "lorashear_table_rows"
DENSE = "dense"
COLUMNS = ("ratio", "method", "parameters", "without embeddings", "WikiText-2", "C4", "mean", "kept", "above chance",
           "prefill", "decode", "minutes", "peak, MiB", "seeds")  # fmt: skip
SHORT = ("cut", "method", "WikiText-2", "C4", "mean", "above chance", "prefill", "decode")


def report(settings: dict[str, Any], folder: Path) -> None:
    """Means over seeds; beside the rows, and in ``results`` where they are kept there."""
    dense = json.loads((folder / f"{DENSE}.json").read_text())
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    rows = [row for row in rows if row["method"] in settings["methods"] and not stale(row, settings)]
    order = list(settings["methods"])
    groups: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["ratio"], order.index(row["method"])), []).append(row)
    lines = [_line([dense], dense, settings, ratio=0, method="dense")]
    lines += [
        _line(same, dense, settings, ratio=ratio, method=order[at]) for (ratio, at), same in sorted(groups.items())
    ]
    where = Counter(row.get("timed_on", "elsewhere, or while others ran") for row in rows if "speed_up" in row)
    timed = "; ".join(f"{count} rows: {name}" for name, count in where.most_common())
    signal = ", ".join(f"{name} ({metric})" for name, metric in settings["signal"].items())
    tasks = []
    for row in rows:
        found = {name: f"{one['acc']:.3f} ±{one['acc_stderr']:.3f}" for name, one in row["tasks"].items()}
        tasks.append({"ratio": row["ratio"], "method": row["method"], "seed": row["seed"]} | found)
    text = (
        f"{dense['model']}; {settings['common']['tokens']} training tokens for every "
        f"method, at {settings['common']['batch_size']} windows of {settings['common']['sequence_length']} a step. "
        f"Of the dense model, {'; '.join(f'{text}: {said}' for text, said in dense['conditions'].items())}. "
        f"`mean`: over {signal}, first {settings['limit']} items of each. `kept`, `above chance`: of the dense model's "
        "mean, with the middle 95% of a paired bootstrap over items. Speed-ups in bfloat16, medians of 5 rounds by "
        f"turns ({timed}). `minutes`: processor time of the whole run (with one thread, the wall clock of an idle "
        "core).\n\n"
    )
    text += "".join(f"- {note}\n" for note in settings["notes"]) + "\n"
    text += record.table(lines, COLUMNS) + "\n\nAccuracy and standard error, all tasks:\n\n"
    text += record.table(tasks, ("ratio", "method", "seed", *dense["tasks"]))
    if folder == ROWS:
        record.keep("lorashear_table", "LoRAShear and its rivals", text, lines)
    else:
        print(text)


def short() -> str:
    """The table of the last report in the README's columns; of each ratio the best perplexity of C4 first."""
    lines = json.loads((record.RESULTS / "lorashear_table.json").read_text())["data"]
    lines.sort(key=lambda line: (line["ratio"], float(line["C4"])))
    rows = [line | {"cut": f"{line['ratio']:.0%}" if line["ratio"] else "none",
                    "method": f"**{line['method']}**" if line["method"].startswith("shearfx") else line["method"]}
            for line in lines]  # fmt: skip
    return record.table(rows, SHORT)


def fields(settings: dict[str, Any], method: str, ratio: float) -> dict[str, Any]:
    """What a method sets; of what depends on the ratio, that of this one."""
    named = settings["methods"][method]
    return {key: value[ratio] if isinstance(value, dict) else value for key, value in named.items()}


def stale(row: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a row was made by other settings than those of now; of the first rows the tokens alone are known."""
    asked = settings["common"] | fields(settings, row["method"], row["ratio"])
    return bool(row["tokens"] != asked["tokens"] or row.get("settings", asked) != asked)


def _line(
    same: Sequence[dict[str, Any]], dense: dict[str, Any], settings: dict[str, Any], **named: Any
) -> dict[str, Any]:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    def right(row: dict[str, Any]) -> dict[str, list[bool]]:
        return {name: [sign == "1" for sign in row["tasks"][name]["right_norm" if metric == "acc_norm" else "right"]]
                for name, metric in settings["signal"].items()}  # fmt: skip

    chance = {name: dense["tasks"][name]["chance"] for name in settings["signal"]}
    scores = [mean([mean([float(v) for v in of]) for of in right(row).values()]) for row in same]
    found = [kept(right(dense), right(row), chance) for row in same]

    def share(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> str:
        low, high = (mean([interval[end] for interval in intervals]) for end in (0, 1))
        return f"{mean(values):.1%} ({low:.0%} to {high:.0%})"

    line: dict[str, Any] = named | {
        "parameters": f"{same[0]['parameters']:,}", "without embeddings": f"{same[0]['without_embeddings']:,}",
        **{key: f"{mean([row['perplexity'][key] for row in same]):.2f}" for key in ("WikiText-2", "C4")},
        "mean": f"{mean(scores):.3f}", "kept": share([k.raw for k in found], [k.raw_interval for k in found]),
        "above chance": share([k.above_chance for k in found], [k.above_chance_interval for k in found]),
        "seeds": len(same),
    }  # fmt: skip
    timed = [row["speed_up"] for row in same if "speed_up" in row]
    if timed:
        line |= {what: f"{mean([one[what] for one in timed]):.2f}" for what in ("prefill", "decode")}
    minutes, peaks = ([row[what] for row in same if row.get(what)] for what in ("minutes", "peak"))
    line |= {"minutes": f"{mean(minutes):.0f}" if minutes else "", "peak, MiB": max(peaks) >> 20 if peaks else ""}
    return line
