"""The front end: what it captures, what it leaves alone, and what it says when it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shearfx
from shearfx.errors import TraceError
from shearfx.pruning_plan import of_cuts


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.dropout = nn.Dropout(0.5)
        self.down = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.dropout(torch.relu(self.up(x))))
        return out


def test_modes_and_weights_are_left_as_they_were() -> None:
    model = Block().train()
    model.dropout.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shearfx.trace(model, torch.randn(3, 6))
    assert model.training and model.up.training and not model.dropout.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_does_not_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class Growing(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int((x > 0).sum())] if int((x > 0).sum()) > 3 else x

    with pytest.raises(TraceError, match="cannot be exported"):
        shearfx.trace(Growing(), torch.randn(3, 6))
    assert capfd.readouterr() == ("", "")


def test_a_buffer_that_is_a_parameter_is_one_tensor_with_it() -> None:
    class Doubled(Block):
        again: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("again", self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down(torch.relu(self.up(x)) + self.again.sum(1))
            return out

    model, x = Doubled().eval(), torch.randn(3, 6)
    graph = shearfx.trace(model, x)
    (group,) = [g for g in graph.groups if g.size == 10]
    for form in ("fx", "module"):
        plan = of_cuts(graph, {group.name: range(7)}, options={"form": "fx"} if form == "fx" else {})
        small = shearfx.construct(model, plan, form=form, graph=graph)
        if form == "module":
            assert small.get_buffer("again") is small.get_parameter("up.weight")
        assert shearfx.verify(model, plan, x, graph=graph).moved > 1e-3


def test_a_table_as_long_as_the_whole_batch_is_pinned() -> None:
    class Numbering(Block):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.up(x)
            out: Tensor = self.down(hidden * torch.arange(x.shape[0] * 10).view(-1, 10))
            return out

    graph = shearfx.trace(Numbering(), torch.randn(3, 6))
    assert not graph.groups


def test_modes_are_restored_when_the_model_does_not_export() -> None:
    class Deciding(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = Deciding().train()
    with pytest.raises(TraceError, match=r"test_tracing.py:\d+: return x if"):
        shearfx.trace(model, torch.randn(3, 6))
    assert model.training


def test_what_the_model_keeps_for_itself_is_left_as_it_was() -> None:
    class Caching(Block):
        def __init__(self) -> None:
            super().__init__()
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = 2 * self.up.bias
                self.last = x
            return torch.relu(self.up(x) + self.cache["bias"])

    model, x = Caching(), torch.randn(3, 6)
    shearfx.trace(model, x)
    assert model.cache == {} and not hasattr(model, "last")
    assert not torch.compiler.is_compiling() and torch.isfinite(model(x)).all()


def test_hooks_that_a_model_installs_at_its_first_run_are_not_left_behind_by_tracing() -> None:
    """Found by the sweep of the zoo: Segformer, traced before it ever ran, then collected every hidden state twice."""

    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 5), nn.Linear(5, 2)
            self.installed = False
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            if not self.installed:
                self.up.register_forward_hook(lambda module, args, output: self.seen.append(output))
                self.installed = True
            self.seen.clear()
            y: Tensor = self.down(torch.relu(self.up(x)))
            return y + len(self.seen)

    model = Collecting().eval()
    shearfx.trace(model, torch.randn(4, 3))
    assert not model.up._forward_hooks
    model(torch.randn(4, 3))
    assert len(model.seen) == 1


def test_arguments_that_the_signature_does_not_name_leave_the_dims_open() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Block()

        def forward(self, x: Tensor, **options: bool) -> Tensor:
            out: Tensor = self.inner(x)
            return -out if options.get("negative") else out

    model = Wrapped()
    graph = shearfx.trace(model, torch.randn(3, 6), negative=True)
    assert graph.traced.specialised == [] and "forward" not in vars(model)


def test_the_batch_stays_open_also_from_an_example_of_one() -> None:
    graph = shearfx.trace(Block(), torch.randn(1, 6))
    assert not isinstance(graph.traced.call["x"]["shape"][0], int)
    assert graph.traced.specialised == []


def test_a_dim_that_the_code_fixes_is_reported() -> None:
    class Fixed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.ones(3, 1)

    graph = shearfx.trace(Fixed(), torch.randn(3, 6))
    assert graph.traced.specialised == ["x: dim 0 is fixed to 3"]


def test_a_model_on_the_meta_device_needs_no_weights() -> None:
    with torch.device("meta"):
        model = Block()
    graph = shearfx.trace(model, torch.randn(3, 6))
    assert [(g.kind, g.size, g.certificate) for g in graph.groups] == [("ffn", 10, "exact")]
    assert all(p.is_meta for p in model.parameters())


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(TraceError, match=r"do not fit the model.*\n.*Block.forward\(x"):
        shearfx.trace(Block(), y=torch.randn(3, 6))
    with pytest.raises(TraceError, match="cannot be exported"):
        shearfx.trace(Block(), torch.randn(3, 7))


def test_tied_weights_are_one_tensor_with_all_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.body = Block()
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(self.embed(tokens)))
            return out

    graph = shearfx.trace(Tied(), torch.randint(0, 11, (2, 5)))
    assert [t.aliases for t in graph.parameters() if len(t.aliases) > 1] == [("embed.weight", "head.weight")]


def test_what_the_call_never_reaches_is_pinned_and_listed() -> None:
    class Spare(Block):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(4, 4)

    graph = shearfx.trace(Spare(), torch.randn(3, 6))
    assert {p.node for p in graph.pins if "never reaches" in p.reason} == {"spare.weight", "spare.bias"}
    assert not any("spare" in m.name for g in graph.groups for m in g.members)


def test_a_result_that_nobody_uses_still_ties_its_weights() -> None:
    class Wasteful(Block):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.up(x))
            self.extra(hidden)
            out: Tensor = x + self.down(hidden)
            return out

    graph = shearfx.trace(Wasteful(), torch.randn(3, 6))
    (group,) = [g for g in graph.groups if g.size == 10]
    assert ("extra.weight", 1) in {(m.name, m.dim) for m in group.members}
