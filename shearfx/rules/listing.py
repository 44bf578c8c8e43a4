"""The registered rules as a table for people, read off the registry and the rules' own code.

``python -m shearfx.rules.listing`` prints it; ``python -m benchmarks.readme`` puts it into the README.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from types import ModuleType

from shearfx.rules import RULES

__all__ = ["operators", "pin_reasons", "table"]


NOTATION, PATTERNS = ("registry", "notation"), "contraction"
"""Where rules that are a line of notation have their function, and the family of all of them."""


def operators() -> dict[str, list[str]]:
    """Family (the file of the rules) to the names of its operators, overloads as one."""
    found: dict[str, set[str]] = {}
    for target, rule in RULES.items():
        module = rule.function.__module__
        if module.startswith("shearfx.rules."):
            family = module.rpartition(".")[2]
            name = target._schema.name.removeprefix("aten::").lstrip("_").replace("::", ".")
            found.setdefault(PATTERNS if family in NOTATION else family, set()).add(name)
    return {family: sorted(names) for family, names in sorted(found.items())}


def pin_reasons() -> dict[str, list[str]]:
    """Family to the reasons for which its rules pin, in the words of the messages."""
    found = {family: _reasons(importlib.import_module(f"shearfx.rules.{family}")) for family in operators()}
    return {family: reasons for family, reasons in found.items() if reasons}


def _reasons(module: ModuleType) -> list[str]:
    reasons = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pin", "opaque"):
            reason = node.args[1] if len(node.args) > 1 else None
            if isinstance(reason, ast.Name):
                reasons.append(str(getattr(module, reason.id, "")))
            elif isinstance(reason, ast.Constant):
                reasons.append(str(reason.value))
    return [reason for reason in dict.fromkeys(reasons) if reason]


def table() -> str:
    """Markdown: a row for each family."""
    pins = pin_reasons()
    rows = ["| rules | operators | what they pin |", "|---|---|---|"]
    for family, names in operators().items():
        shown = ", ".join(f"`{name}`" for name in names)
        if family == "pointwise":
            shown = f"every operator that torch tags `pointwise`, and {shown}"
        rows.append(f"| [{family}](shearfx/rules/{family}.py) | {shown} | {'; '.join(pins.get(family, ())) or '-'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
