"""Wanda-sp and FLAP on every architecture of the zoo, asked for nothing but a ratio: a plan, or a stated reason."""

from __future__ import annotations

import pytest

import shearfx
from shearfx.errors import PlanError
from shearfx.saliency import find
from shearfx.tracing import by_name
from tests import zoo
from tests.zoo import Entry

QUICK = {"moe_dense", "moe_einsum", "lstm", "cnn_grouped", "squeeze_excite", "attention_einsum", "tied_autoencoder"}
UNREAD = {
    "squeezebert": "transformer.pooler.dense.bias:0",
    "trap_mean": "inner.bias:0",
    "wavlm": "wavlm.encoder.layers.0.attention.gru_rel_pos_linear.bias:0.0",
}
"""What no weight reads, by entry: a pooler whose result is not returned; numbers that are summed up, or averaged."""
ENTRIES = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in QUICK else pytest.mark.slow)
    for entry in zoo.entries()
    if entry.exports
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_plan_by_default_kinds_or_a_reason(entry: Entry) -> None:
    model = entry.build()
    graph = shearfx.trace(model.module, *model.args, **model.kwargs)
    data = [by_name(model.module, *call) for call in model.calls()[:2]]
    groups = [g for g in graph.groups if g.certificate in ("exact", "compensated") and g.size > 1]
    if not [g for g in groups if g.kind not in ("hidden", "head_dim")]:
        pytest.skip("there is nothing to cut by default")
    for rival in ("wanda_sp", "flap"):
        if entry.name in UNREAD and len(groups) == 1:
            with pytest.raises(PlanError, match=rf"{rival}.* does not see 1 groups"):
                shearfx.plan(graph, 0.1, rival, model.module, form="fx", data=data)
            continue
        plan = shearfx.plan(graph, 0.1, rival, model.module, form="fx", data=data)
        assert plan.cuts
        assert UNREAD.get(entry.name) not in {cut.name for cut in plan.cuts}
        streams = [g for g in groups if g.kind == "hidden"]
        scores = find(rival).score(graph, model.module, groups=streams, data=data)
        assert all(bool(score.any()) for score in scores.values())
