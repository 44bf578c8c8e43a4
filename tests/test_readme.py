"""The README is true: its snippets run and print what it says they print, its generated parts are in step."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from benchmarks import readme

README = readme.README.read_text(encoding="utf-8")


def snippets(text: str) -> list[tuple[str, str | None]]:
    """Each python block with the text block that follows it directly, if one does."""
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", text, flags=re.DOTALL)
    return [(code, output or None) for code, output in blocks]


@pytest.mark.timeout(900)  # solving a class for its attributes takes a minute on a busy machine
def test_snippets_print_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = snippets(README)
    assert len(found) >= 3
    names: dict[str, object] = {"__name__": "readme"}
    for code, expected in found:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), names)
        if expected is not None:
            assert out.getvalue() == expected, code


def test_first_commands_are_the_demo_and_the_tests() -> None:
    commands = re.findall(r"^    (\w[^#\n]*)", README, flags=re.MULTILINE)
    assert [c.strip() for c in commands[:2]] == ["make demo", "make test"]


def test_generated_parts_are_in_step() -> None:
    marks = re.findall(r"<!-- (\w+): begin -->", README)
    assert marks == ["methods", "operators", "real_models"]
    assert readme.updated(README) == README, "run python -m benchmarks.readme"


def test_files_that_the_readme_names_exist() -> None:
    root = readme.README.parent
    named = re.findall(r"`((?:shearfx|passes|tests|benchmarks)/[\w./]*|\w+\.(?:md|txt|toml))`", README)
    assert named
    for name in named:
        assert (root / name).exists(), name
