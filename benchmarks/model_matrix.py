"""Every architecture of the zoo, cut: sound, refused, crash or wrong.

    python -m benchmarks.model_matrix [NAME ...] [--jobs 2] [--torch-pruning]

*Sound*: on every call (another batch size and length, and a padding mask, among them) the cut model agrees with
the masked original to 1e-10 in float64, at least 10% of the parameters are gone, the output moved, and every kind
of structure that the zoo says is there was cut. Each row runs in a process of its own with a time limit; finished
rows are kept in ``results/model_matrix_rows.json`` and reused unless ``--again``.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import record

ROWS = record.RESULTS / "model_matrix_rows.json"
KINDS = {
    "ffn": {"ffn", "channels", "features"},
    "heads": {"heads", "query_group"},
    "query_group": {"query_group", "heads"},
    "head_dim": {"head_dim", "value_dim"},
    "value_dim": {"value_dim", "head_dim"},
    "conv": {"channels", "hidden", "ffn"},
    "expert": {"ffn", "features"},
    "ssm": {"ffn", "channels", "heads", "query_group", "head_dim", "value_dim", "features"},
    "hidden_rms": {"hidden"},
}
"""Which kinds of groups count as cutting a structure that the zoo names. LayerNorm's width is opt-in: left out."""
COLUMNS = ("model", "family", "outcome", "removed", "error", "moved", "coverage", "exact", "module form", "pinned")


def main() -> None:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a row")
    parser.add_argument("--again", action="store_true", help="do not reuse finished rows")
    parser.add_argument("--torch-pruning", action="store_true", help="run Torch-Pruning beside it, where installed")
    parser.add_argument("--fx-only", action="store_true", help="leave out the original class, which takes longest")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, not options.fx_only)))
        return
    from tests import zoo

    entries = {e.name: e for e in zoo.entries() if not options.names or e.name in options.names}
    rows = {} if options.again or not ROWS.exists() else json.loads(ROWS.read_text())
    todo = [n for n in entries if n not in rows or not (options.fx_only or "module form" in rows[n])]
    extra = ["--fx-only"] if options.fx_only else []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = {pool.submit(run, name, "benchmarks.model_matrix", options.limit, extra): name for name in todo}
        for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            rows[jobs[job]] = job.result()
            print(f"[{done}/{len(todo)}] {jobs[job]}: {rows[jobs[job]]['outcome']}", file=sys.stderr, flush=True)
            keep(rows)
    if options.torch_pruning:
        from benchmarks import torch_pruning_row

        torch_pruning_row.add(rows, entries, options.jobs, lambda: keep(rows))
    report([rows[name] for name in entries if name in rows])


def keep(rows: dict[str, dict[str, Any]]) -> None:
    """Write what is measured, so that a run that is cut off goes on where it was."""
    ROWS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def run(name: str, module: str, limit: float, extra: Sequence[str] = ()) -> dict[str, Any]:
    """One row, in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, "--row", name, *extra],
            capture_output=True, text=True, timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"model": name, "outcome": "hang", "pinned": f"more than {limit:.0f} s"}
    if done.returncode == -signal.SIGXCPU:  # it set itself a limit of processor time
        return {"model": name, "outcome": "hang", "pinned": "out of processor time"}
    if done.returncode or not done.stdout.strip():
        return {"model": name, "outcome": "crash", "pinned": done.stderr.strip().splitlines()[-1:]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(name: str, original_class: bool = True) -> dict[str, Any]:
    """Cut one model in all its groups at once, at random, and compare."""
    import torch

    import shearfx
    from shearfx.errors import ShearError, SoundnessError
    from tests import zoo

    torch.set_num_threads(1)
    entry = zoo.get(name)
    model = entry.build()
    row: dict[str, Any] = {"model": name, "family": entry.family}
    start = time.perf_counter()
    try:
        graph = shearfx.trace(model.module, *model.args, **model.kwargs)
        row |= {"coverage": graph.coverage, "exact": graph.coverage_exact, "pinned": pinned(graph)}
        cut = [g for g in graph.groups if g.certificate != "approximate" and g.size > 1]
        reports = [check(model, graph, seed) for seed in range(2)]
        row["removed"] = max(plan.achieved for plan, _ in reports)
        row["error"] = max(r.max_relative_error for _, found in reports for r in found)
        row["moved"] = max(r.moved for _, found in reports for r in found)
        row["missing"] = sorted(s for s in entry.structures if s in KINDS and not KINDS[s] & {g.kind for g in cut})
        enough = row["removed"] >= 0.1 and row["moved"] > 1e-6 and not row["missing"]
        row["outcome"] = "sound" if enough else "refused"
        if original_class:
            row["module form"] = module_form(model, graph)
    except SoundnessError as error:
        row |= {"outcome": "wrong", "pinned": str(error)}
    except ShearError as error:
        row |= {"outcome": "refused", "pinned": str(error).splitlines()[0]}
    except Exception as error:  # a crash is what this table is for
        row |= {"outcome": "crash", "pinned": f"{type(error).__name__}: {error}"[:300]}
    row["seconds"] = time.perf_counter() - start
    return row


def check(model: Any, graph: Any, seed: int) -> tuple[Any, list[Any]]:
    """A random plan over every exact and compensated group, verified on every call of the traced signature."""
    import random

    import shearfx
    from shearfx.errors import PlanError
    from shearfx.pruning_plan import of_cuts

    chance = random.Random(seed)
    kept = {}
    for group in graph.groups:
        if group.certificate != "approximate" and group.size > 1:
            count = chance.randint(max(1, group.size // 2), group.size - 1)
            kept[group.name] = chance.sample(range(group.size), count)
    if not kept:
        raise PlanError(f"nothing to cut: {pinned(graph)}")
    plan = of_cuts(graph, kept, options={"form": "fx"})
    calls = model.calls() if seed == 0 else model.calls()[:1]
    return plan, [shearfx.verify(model.module, plan, *args, graph=graph, **kwargs) for args, kwargs in calls]


def module_form(model: Any, graph: Any) -> str:
    """The same in the original class: every group that the class can express, together."""
    import random

    import shearfx
    from shearfx.attributes import settle
    from shearfx.bundles import bundles
    from shearfx.errors import PlanError
    from shearfx.pruning_plan import of_cuts
    from shearfx.testing import random_tied_cuts

    kept = random_tied_cuts(bundles(graph, model.module), random.Random(0))
    if not kept:
        reasons = sorted({b.reason.splitlines()[0] for b in bundles(graph, model.module) if b.reason})
        return f"refused: {'; '.join(reasons)[:200]}"
    try:
        plan = settle(model.module, graph, of_cuts(graph, kept))
    except PlanError as error:
        return f"refused: {' '.join(str(error).split())[:200]}"
    reports = [shearfx.verify(model.module, plan, *args, graph=graph, **kwargs) for args, kwargs in model.calls()]
    worst = max(report.max_relative_error for report in reports)
    return f"sound: {plan.achieved:.0%}, {', '.join(sorted({cut.kind for cut in plan.cuts}))}, error {worst:.0e}"


def pinned(graph: Any, shown: int = 4) -> str:
    """The commonest reasons for pins, inputs and outputs left out."""
    reasons = collections.Counter(p.reason for p in graph.pins if "of the model's" not in p.reason)
    return "; ".join(f"{reason[:80]} ({count})" for reason, count in reasons.most_common(shown))


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table and its totals, and keep both."""
    totals = collections.Counter(row["outcome"] for row in rows)
    head = f"{len(rows)} architectures: " + ", ".join(f"{n} {outcome}" for outcome, n in totals.most_common())
    inside = sum(str(row.get("module form", "")).startswith("sound") for row in rows)
    head += f". In the original class too: {inside}."
    columns = list(COLUMNS)
    if any("Torch-Pruning" in row for row in rows):
        columns.insert(3, "Torch-Pruning")
        beside = [row["Torch-Pruning"] for row in rows if "Torch-Pruning" in row]
        theirs = collections.Counter(outcome.split(":")[0] for outcome in beside)
        head += (
            f" Torch-Pruning on {len(beside)} of these rows: "
            + ", ".join(f"{n} {o}" for o, n in theirs.most_common())
            + "."
        )
    text = head + "\n\n" + record.table(rows, columns)
    print(text)
    record.keep("model_matrix", "Model matrix", text, rows)


if __name__ == "__main__":
    main()
