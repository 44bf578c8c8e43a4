"""LHSPG in several processes: all ranks choose the same, and end with the same model, bit for bit."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from shearfx.optim import LHSPG
from shearfx.saliency import Fisher
from tests.tiny_models import fresh, inputs_of, loss_of, optimizer, scores_of

RANKS = 2
STEPS = 9
NAME = "llama"
CASES: dict[str, dict[str, Any]] = {
    "fisher": {"saliency": "fisher", "merge": "period", "merge_moments": "reset", "half_space_eps": 0.6},
    "taylor": {"saliency": "taylor", "merge": "end", "carrier": "weights", "half_space_eps": 0.6},
    "data of each rank": {"saliency": Fisher(), "data": "own", "merge": "never"},
    "gradients of weights": {"saliency": "taylor", "data": "own", "merge": "never"},
    "scores of each rank": {"scores": "own", "merge": "never"},
    "compensated": {"saliency": "fisher", "compensate": "own", "merge": "never"},
    "weights": {"saliency": "lora_magnitude", "merge": "period"},
}


def options_of(case: str, rank: int) -> dict[str, Any]:
    options = dict(CASES[case])
    if "data" in options:
        options["data"] = [inputs_of(NAME, 50 + rank)]
    if "compensate" in options:
        options["compensate"] = [inputs_of(NAME, 60 + rank)]
    if "scores" in options:
        options["scores"] = scores_of(NAME, rank)
    return options | {"warmup": 1, "periods": 3, "period_length": 2}


def run(case: str, rank: int, stop: int | None = None) -> dict[str, Any]:
    """Train on batches of this rank's own; at ``stop`` go on, on a new model, from what the first rank saved."""

    def made() -> tuple[nn.Module, nn.Module, LHSPG]:
        model = fresh(NAME, {})
        wrapped = DistributedDataParallel(model)
        return model, wrapped, optimizer(NAME, wrapped, **options_of(case, rank))

    model, wrapped, opt = made()
    gates: list[dict[str, Tensor]] = []
    for step in range(STEPS):
        if step == stop:
            saved = [[{k: v for k, v in model.state_dict().items() if "lora_" in k}, opt.state_dict()]]
            dist.broadcast_object_list(saved, src=0)
            model, wrapped, opt = made()
            model.load_state_dict(saved[0][0], strict=False)
            opt.load_state_dict(saved[0][1])
        opt.zero_grad()
        loss_of(NAME, wrapped, RANKS * step + rank).backward()
        opt.step()
        gates.append({name: value.clone() for name, value in opt.gates.values.items()})
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"picks": opt.picks, "zeros": opt.zeros, "gates": gates, "weights": weights, "history": opt.history}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS,
                            timeout=datetime.timedelta(seconds=120))  # fmt: skip
    found = {case: run(case, rank) for case in CASES}
    found["resumed"] = run("fisher", rank, stop=4)
    torch.save(found, f"{folder}/{rank}.pt")  # noqa: TID251 - plain tensors, to the test that asks for them
    dist.destroy_process_group()


def together(case: str) -> LHSPG:
    """One process that sees the batches of all ranks, one after the other."""
    model = fresh(NAME, {})
    opt = optimizer(NAME, model, **options_of(case, 0))
    for step in range(STEPS):
        opt.zero_grad()
        for rank in range(RANKS):
            (loss_of(NAME, model, RANKS * step + rank) / RANKS).backward()
        opt.step()
    return opt


@pytest.mark.slow  # two processes import torch and transformers
def test_all_ranks_choose_the_same_and_end_with_the_same_model(tmp_path: Path) -> None:
    spawn(work, args=(str(tmp_path),), nprocs=RANKS)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))  # noqa: TID251
    for case, found in one.items():
        beside = other[case]
        assert found["picks"] == beside["picks"] and found["zeros"] == beside["zeros"], case
        assert found["history"] == beside["history"] and len(found["picks"]) == 3, case
        assert sum(map(len, found["zeros"].values())) == 9
        for mine, theirs in zip(found["gates"], beside["gates"], strict=True):
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items()), case
        for name, weight in found["weights"].items():
            assert torch.equal(weight, beside["weights"][name]), (case, name)
    for name, weight in one["fisher"]["weights"].items():
        assert torch.equal(weight, one["resumed"]["weights"][name]), "what one rank saved is right for all"
    assert one["fisher"]["picks"] == one["resumed"]["picks"]
    # as if all batches had been one rank's
    assert together("fisher").picks == one["fisher"]["picks"]
    # every rank has its say: neither rank's scores alone choose the same
    alone = [optimizer(NAME, fresh(NAME, {}), **options_of("scores of each rank", rank)) for rank in range(RANKS)]
    for opt in alone:
        for _ in range(STEPS):
            loss_of(NAME, opt.model).backward()
            opt.step()
        assert opt.picks != one["scores of each rank"]["picks"]
