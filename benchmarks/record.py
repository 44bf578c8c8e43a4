"""What every benchmark result carries: the command, the versions, the hardware; written as Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def conditions() -> dict[str, str]:
    """Command line, package versions and hardware of this run."""
    versions = {}
    for name in ("torch", "transformers", "peft", "torch-pruning", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {module.name}" if module else sys.argv[0]
    return {
        "command": shlex.join([*program.split(), *sys.argv[1:]]),
        "python": platform.python_version(),
        **versions,
        "hardware": hardware(),
    }


def hardware() -> str:
    """What this runs on."""
    return f"{_processor()}, {os.cpu_count()} cores, {_accelerator()}"


def commit() -> str | None:
    """That of the code, with "-dirty" where files beside the results differ from it; None outside a checkout."""
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parents[1])]
    try:
        head, changed = (
            subprocess.run([*git, *command], check=True, capture_output=True, text=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", ".", ":!benchmarks/results"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _accelerator() -> str:
    torch = sys.modules.get("torch")  # a benchmark that has not imported it has used none
    if torch is None or not torch.cuda.is_available():
        return "no accelerator"
    return str(torch.cuda.get_device_name())


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def keep(name: str, title: str, text: str, data: Any, command: str | None = None) -> None:
    """Write ``results/NAME.md`` and ``results/NAME.json``, which name this process's command, or another one."""
    RESULTS.mkdir(exist_ok=True)
    about = conditions() | ({} if command is None else {"command": command})
    listing = "\n".join(f"- {key}: `{value}`" for key, value in about.items())
    (RESULTS / f"{name}.md").write_text(f"# {title}\n\n{listing}\n\n{text}\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({"conditions": about, "data": data}, indent=1) + "\n")
