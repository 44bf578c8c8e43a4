"""Torch-Pruning on one row of the model matrix: does it cut, and does what it cuts compute the same?

    python -m benchmarks.torch_pruning_row --row NAME

It is given the model, its example inputs and nothing else, as shearfx is: no ``num_heads``, no ignored layers but the
last one that makes the output. A row may take a minute of processor time, whatever else the machine does. Everything
that it says it removes is zeroed in a copy of the original; the cut model has to agree with that copy.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import json
import resource
from collections.abc import Callable, Mapping
from typing import Any

LIMIT = 60
"""Seconds of processor time that a row may take."""


def add(
    rows: dict[str, dict[str, Any]],
    entries: Mapping[str, Any],
    jobs: int,
    keep: Callable[[], None],
    patience: float = 1800.0,
) -> None:
    """Add a column to the rows, each measured in a process of its own; ``keep`` is called after each."""
    from benchmarks.model_matrix import run

    todo = [name for name in entries if name in rows and "Torch-Pruning" not in rows[name]]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, name, "benchmarks.torch_pruning_row", patience): name for name in todo}
        for job in concurrent.futures.as_completed(running):
            result = job.result()
            hang = f"hang: more than {LIMIT} s"
            rows[running[job]]["Torch-Pruning"] = hang if result["outcome"] == "hang" else result["outcome"]
            keep()


def measure(name: str) -> str:
    """One of ``sound``, ``wrong``, ``nothing``, ``refused``; with what it did."""
    import torch
    import torch_pruning as tp
    from torch import nn

    from shearfx.comparison import relative_error
    from shearfx.precision import double_precision, doubled, doubled_inputs
    from tests import zoo

    torch.set_num_threads(1)
    model = zoo.get(name).build()
    module = doubled(model.module).eval()
    full = copy.deepcopy(module)
    inputs = doubled_inputs(model.kwargs) if model.kwargs else doubled_inputs(model.args)
    before = sum(p.numel() for p in module.parameters())

    def run(candidate: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad(), double_precision():
            return zoo.float_outputs(candidate(*doubled_inputs(model.args), **doubled_inputs(model.kwargs)))

    wide = {t.shape[-1] for t in run(full)}
    last = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features in wide]
    names = {m: n for n, m in module.named_modules()}
    zeroed = copy.deepcopy(full)
    try:
        with double_precision():
            pruner = tp.pruner.MagnitudePruner(
                module, inputs, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.2,
                ignored_layers=last[-1:],
            )  # fmt: skip
            for group in pruner.step(interactive=True):
                for dependency, indices in group:
                    _zero(zeroed, names, dependency, indices)
                group.prune()
        cut = run(module)
    except Exception as error:  # any failure is its refusal
        return f"refused: {type(error).__name__}: {str(error)[:80]}"
    removed = 1 - sum(p.numel() for p in module.parameters()) / before
    if removed < 0.01:
        return f"nothing: removed {removed:.1%}"
    expected = run(zeroed)
    if [t.shape for t in expected] != [t.shape for t in cut]:
        return f"wrong: other output shapes, removed {removed:.0%}"
    difference = relative_error(expected, cut)
    return f"{'sound' if difference < 1e-8 else 'wrong'}: removed {removed:.0%}, error {difference:.0e}"


def _zero(model: Any, names: Mapping[Any, str], dependency: Any, indices: Any) -> None:
    """Zero in the full-size copy what a pruning function of theirs removes."""
    import torch

    layer, name = dependency.target.module, names.get(dependency.target.module)
    if name is None:
        return
    target = model.get_submodule(name)
    inward = "in_channels" in dependency.handler.__name__
    with torch.no_grad():
        for key, parameter in target.named_parameters(recurse=False):
            if parameter.dim() == 1:
                if not inward or not hasattr(layer, "weight") or layer.weight.dim() == 1:
                    parameter[indices] = 0
            elif key == "weight":
                parameter.index_fill_(1 if inward else 0, torch.as_tensor(indices), 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", required=True)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    print(json.dumps({"outcome": measure(parser.parse_args().row)}))
