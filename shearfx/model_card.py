"""The README.md of a saved model: what was cut, and how to load it."""

from __future__ import annotations

from shearfx.pruning_plan import PruningPlan

__all__ = ["model_card"]


def model_card(plan: PruningPlan, *, plain: bool, reason: str = "", adapters: bool = False) -> str:
    """A model card in Markdown.

    Args:
        plain: whether transformers alone loads the folder; ``reason`` says why not.
        adapters: whether adapters lie in the folder's ``adapter``.
    """
    name = plan.model.rpartition(".")[2]
    lines = ["---", "tags:", "- shearfx", "- pruned", "---", "", f"# {name}, pruned", ""]
    if plan.layers:
        gone, share = ", ".join(plan.layers), f"{plan.layers_share:.1%} of its parameters"
        lines += [f"shearfx dropped whole layers of a `{plan.model}`, {share}: {gone}.", ""]
    if plan.cuts or not plan.layers:
        lines += _cuts(plan)
    lines += ["`shearfx_plan.json` lists every structure that stays. Load it with", "", "```python"]
    if plain:
        lines += ["import transformers", "", f'model = transformers.{name}.from_pretrained("path/of/this/folder")']
        if adapters:
            lines[-1] = 'base = transformers.AutoModel.from_pretrained("path/of/this/folder")  # the class you need'
            lines += ["import peft", "", 'model = peft.PeftModel.from_pretrained(base, "path/of/this/folder/adapter")']
    else:
        lines += ["import shearfx", "", 'model = shearfx.load("path/of/this/folder")']
    lines += ["```", ""]
    if reason:
        lines += [f"transformers alone cannot load it: {reason}.", ""]
    if plan.config:
        stated = ", ".join(f"`{field}` = {value}" for field, value in plan.config.items())
        lines += [f"The configuration states the cut: {stated}.", ""]
    lines += [f"Made with shearfx {plan.versions.get('shearfx', '?')}, torch {plan.versions.get('torch', '?')}.", ""]
    return "\n".join(lines)


def _cuts(plan: PruningPlan) -> list[str]:
    of = "of what they leave" if plan.layers else f"of the parameters of a `{plan.model}`"
    lines = [f"shearfx removed {plan.achieved_params:.1%} {of}. What was cut:", ""]
    lines += ["| kind | groups | structures before | after | certificate |", "|---|---|---|---|---|"]
    for kind, certificate in sorted({(cut.kind, cut.certificate) for cut in plan.cuts}):
        cuts = [cut for cut in plan.cuts if (cut.kind, cut.certificate) == (kind, certificate)]
        before, after = sum(cut.size for cut in cuts), sum(len(cut.kept) for cut in cuts)
        lines.append(f"| {kind} | {len(cuts)} | {before} | {after} | {certificate} |")
    return [*lines, ""]
