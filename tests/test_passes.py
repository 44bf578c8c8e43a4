"""The passes: what they find in a small model, in words, and how the manager guards them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import shearfx
from shearfx.errors import SoundnessError
from shearfx.graph import Graph, show
from shearfx.passes import ANALYSIS, Pass, run
from shearfx.tracing import trace_call
from tests import zoo


class Attention(nn.Module):
    """Two key heads of four, each shared by three queries; a fused projection; a feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(10, 2 * (3 + 1 + 1) * 4, bias=False)
        self.out = nn.Linear(2 * 3 * 4, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        fused = self.qkv(x).view(*x.shape[:2], 2, 5, 4)
        q, k, v = fused.split([3, 1, 1], dim=3)
        q = q.reshape(*x.shape[:2], 6, 4).transpose(1, 2)
        k, v = (t.expand(*x.shape[:2], 2, 3, 4).reshape(*x.shape[:2], 6, 4).transpose(1, 2) for t in (k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        out: Tensor = x + self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], 24))
        return out


def analysed() -> Graph:
    return shearfx.trace(Attention(), torch.randint(0, 2, (2, 7, 10)).float())


GOLDEN = """\
out.weight:1.0 heads size=2 exact params=320
out.weight:1.1 query_group size=3 exact params=160
out.weight:1.2 value_dim size=4 exact params=160
qkv.weight: <out.weight:1.0> * (<out.weight:1.1> + 1 + 1) * <out.weight:1.2>, 10!
out.weight: 10!, <out.weight:1.0> * <out.weight:1.1> * <out.weight:1.2>"""


def test_golden_text_of_a_fused_grouped_attention() -> None:
    graph = analysed()
    names = {g.atom: f"<{g.name}>" for g in graph.groups}
    lines = [f"{g.name} {g.kind} size={g.size} {g.certificate} params={g.params}" for g in graph.groups]
    for name in ("qkv.weight", "out.weight"):
        lines.append(f"{name}: " + ", ".join(show(d, names) for d in graph.tensor_dims[name]))
    text = "\n".join(lines)
    # one head dim serves queries, keys and values here: they come out of one view
    assert text.replace("head_dim", "value_dim") == GOLDEN


def test_node_groups_overlap_where_three_atoms_meet() -> None:
    graph = analysed()
    nodes = [set(g.nodes) for g in graph.node_groups]
    shared = set.intersection(*nodes)
    assert len(nodes) == 3 and "linear" in {n.name for n in shared}


def test_members_list_every_slice_once() -> None:
    graph = analysed()
    for group in graph.groups:
        for member in group.members:
            rows = member.indices
            assert rows.shape[0] == group.size
            assert rows.unique().numel() == rows.numel()
    heads = graph.groups[0]
    (rows,) = [m.indices for m in heads.members if m.name == "qkv.weight"]
    assert rows.tolist() == [list(range(20)), list(range(20, 40))]


def test_a_lora_linear_is_one_operator_and_its_rank_stays() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
    graph = shearfx.trace(wrapped.base_model.model, torch.randn(3, 6))
    assert sorted(c.path for c in graph.composed) == ["0", "2"]
    assert {p.reason for p in graph.pins if p.node.endswith(("lora_A.default.weight", "lora_B.default.weight"))} == {
        "the rank of a LoRA adapter"
    }
    (group,) = [g for g in graph.groups if g.size == 10]
    assert {(m.name, m.dim) for m in group.members} == {
        ("0.base_layer.weight", 0), ("0.base_layer.bias", 0), ("0.lora_B.default.weight", 0),
        ("2.base_layer.weight", 1), ("2.lora_A.default.weight", 1),
    }  # fmt: skip


@dataclass(frozen=True)
class Forgetful(Pass):
    """Loses a group."""

    name: ClassVar[str] = "forgetful"
    requires: ClassVar[tuple[str, ...]] = ("partition",)

    def apply(self, graph: Graph) -> None:
        graph.groups.pop()


def test_a_broken_invariant_names_the_pass_and_the_dims() -> None:
    graph = Graph(trace_call(Attention(), (torch.randn(2, 7, 10),), {}))
    with pytest.raises(SoundnessError, match=r"'grouped or pinned' does not hold.*\n.*after pass 'forgetful'"):
        run(graph, (*ANALYSIS, Forgetful()))


def test_passes_say_what_they_need() -> None:
    graph = Graph(trace_call(Attention(), (torch.randn(2, 7, 10),), {}))
    with pytest.raises(ValueError, match="'infer' needs compose"):
        run(graph, ANALYSIS[1:])


def test_every_pass_is_reported_when_done() -> None:
    seen: list[str] = []
    shearfx.trace(Attention(), torch.randn(2, 7, 10), after=lambda name, _: seen.append(name))
    assert seen == [step.name for step in ANALYSIS]


def test_heads_that_share_a_part_of_their_key_are_heads() -> None:
    """Multi-head latent attention: what turns with positions is shared, the rest of the key and the value are not."""
    kinds = {}
    for name in ("deepseek_v3", "llama"):
        built = zoo.get(name).build()
        kinds[name] = {group.kind for group in shearfx.trace(built.module, *built.args, **built.kwargs).groups}
    assert "heads" in kinds["deepseek_v3"] and "query_group" not in kinds["deepseek_v3"]
    assert {"heads", "query_group"} <= kinds["llama"]


def test_adapters_on_queries_alone_leave_them_what_they_are() -> None:
    peft = pytest.importorskip("peft")
    built = zoo.get("llama").build()
    wrapped = peft.get_peft_model(built.module, peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1))
    graph = shearfx.trace(wrapped.base_model.model, *built.args, **built.kwargs)
    assert {"heads", "query_group"} <= {group.kind for group in graph.groups}
