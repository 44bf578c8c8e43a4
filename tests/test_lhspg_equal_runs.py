"""What must make no difference to a run of LHSPG: merging what adapters learnt, and steps that a scaler skips.

Source of what is asked: LoRAShear, Algorithm 4, line 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from shearfx.optim import LHSPG
from tests.drawn_runs import Drawn, runs
from tests.tiny_models import furthest, output_of, train


def learnt(opt: LHSPG) -> bool:
    """Whether adapters hold anything."""
    return any(bool(one.b.any()) for one in opt.adapters.values())


@settings(max_examples=15)
@given(
    run=runs(dtype=torch.float64, adapted=True),
    merge=st.sampled_from(["period", "end"]),
    also=st.none() | st.integers(0, 5),
    moments=st.sampled_from(["keep", "reset"]),
)
def test_merging_and_resetting_does_not_change_the_function(
    run: Drawn, merge: str, also: int | None, moments: str
) -> None:
    """Of the model as it is, with structures in it that are fading: at periods' ends, and whenever one is asked for."""
    model = run.model()
    opt = run.optimizer(model, merge=merge, merge_moments=moments)
    far: list[float] = []

    def watched(work: Callable[..., None]) -> Callable[..., None]:
        def working(*args: Any) -> None:
            before, merges = output_of(run.name, model), len(opt.merger.events)
            assert learnt(opt)
            work(*args)
            far.append(furthest(output_of(run.name, model), before))
            assert learnt(opt) == (len(opt.merger.events) == merges)

        return working

    with patch.object(opt, "_end_period", watched(opt._end_period)):
        for step in range(run.schedule.steps):
            train(run.name, model, opt, 1, run.seed + step)
            if step == also and learnt(opt):
                watched(opt.merge_adapters)()
    asked = len(far) - run.schedule.periods
    assert len(opt.merger.events) == asked + (run.schedule.periods if merge == "period" else 1)
    assert max(far) <= 1e-10  # float64 rounds by 1e-16, a few thousand times


INJECTED = ("loss", "gradient", "second microbatch")
"""Where a step overflows: everywhere, in one number of one gradient, or after a part of it was sound."""


@settings(max_examples=20)
@given(
    run=runs(),
    merge=st.sampled_from(["never", "period", "end"]),
    saliency=st.sampled_from([None, "fisher", "taylor", "magnitude"]),
    skipped=st.dictionaries(st.integers(0, 8), st.sampled_from(INJECTED), min_size=1),
    microbatches=st.integers(1, 2),
)
def test_steps_that_a_scaler_skips_leave_no_trace(
    run: Drawn, merge: str, saliency: str | None, skipped: dict[int, str], microbatches: int
) -> None:
    """Bit for bit the run without those steps: in what is picked and when, in gates and weights and moments."""
    model, other = run.model(), run.model()
    options: dict[str, Any] = {"merge": merge} | ({} if saliency is None else {"saliency": saliency})
    opt, without = run.optimizer(model, **options), run.optimizer(other, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for step in range(opt.schedule.steps + len(skipped)):
        how, scale = skipped.get(step, ""), scaler.get_scale()
        opt.zero_grad()
        for part in range(microbatches):
            loss = scaler.scale(run.loss(model, 2 * step + part))
            overflows = how == "loss" or (how == "second microbatch" and part == microbatches - 1)
            (loss * float("inf") if overflows else loss).backward()
        if how == "gradient":
            next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] = float("inf")
        before = opt.steps
        scaler.step(opt)
        scaler.update()
        assert opt.steps == before + (not how)
        if how:
            continue
        without.zero_grad()
        # a power of two, which changes no digit; Fisher information of training is that of the scaled loss
        scale = scale if saliency in ("fisher", "taylor") else 1.0
        for part in range(microbatches):
            (scale * run.loss(other, 2 * step + part)).backward()
        for parameter in other.parameters():
            if parameter.grad is not None:
                parameter.grad /= scale
        without.step()
        assert opt.redundant == without.redundant and opt.zeros == without.zeros, step
        for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs), (step, name)
    assert opt.steps == without.steps
    for mine, theirs in zip(tree_leaves(opt.state_dict()), tree_leaves(without.state_dict()), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
