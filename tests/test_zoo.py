"""The zoo keeps its promises: models build, move, repeat, and have attention worth testing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import transformers

from tests import zoo
from tests.zoo.entropy import attention_entropy
from tests.zoo.entry import Entry, Model

ENTRIES = zoo.entries()
pytestmark = pytest.mark.zoo

#: Operators whose randomness or state would make two runs differ are absent, so outputs repeat to the last bit.
each = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose time to a second thread: an order of magnitude on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def outputs(model: Model) -> list[list[torch.Tensor]]:
    """Floating outputs of every call."""
    return [zoo.float_outputs(model.module(*args, **kwargs)) for args, kwargs in model.calls()]


@each
def test_outputs_are_finite_repeatable_and_of_order_one(entry: Entry) -> None:
    model = entry.build().to(torch.float64)
    assert not model.module.training
    first, again = outputs(model), outputs(model)
    for call, repeated in zip(first, again, strict=True):
        assert call, "no floating output"
        for a, b in zip(call, repeated, strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)
        scale = max(float(tensor.abs().max()) for tensor in call)
        assert 0.05 < scale < 200.0
        # an output that ignores its input would hide every error
        assert any(tensor.numel() == 1 or float(tensor.std()) > 1e-3 for tensor in call)


@each
def test_building_twice_gives_equal_weights(entry: Entry) -> None:
    first, second = entry.build().module.state_dict(), entry.build().module.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@each
def test_alternatives_differ_from_the_example_in_batch(entry: Entry) -> None:
    model = entry.build()
    assert model.alternatives
    for args, kwargs in model.alternatives:
        (example, *_), (other, *_) = (
            [v for v in (*a, *k.values()) if isinstance(v, torch.Tensor)]
            for a, k in ((model.args, model.kwargs), (args, kwargs))
        )
        assert example.shape[0] != other.shape[0]
    same_signature = [kwargs.keys() == model.kwargs.keys() for _, kwargs in model.alternatives]
    assert same_signature[0]
    assert len(same_signature) == 1 or "attention_mask" in model.alternatives[-1][1]


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.attention], ids=lambda entry: entry.name)
def test_attention_is_neither_uniform_nor_one_hot(entry: Entry) -> None:
    entropy = attention_entropy(entry.build())
    assert entropy is not None, "no softmax seen: declare attention=False"
    assert 0.2 < entropy < 0.8


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "bart", "vit"])
def test_entropy_agrees_with_the_attentions_that_hugging_face_returns(name: str) -> None:
    model = zoo.get(name).build().to(torch.float64)
    watched = attention_entropy(model)
    assert isinstance(model.module, transformers.PreTrainedModel)
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        output = model.module(*model.args, **model.kwargs, output_attentions=True)
    kinds = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    means = []
    for weights in (w for kind in kinds for w in output.get(kind) or ()):
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        visible = (weights > 1e-30).sum(-1)
        means.append((entropy[visible > 1] / visible[visible > 1].log()).mean().item())
    assert watched is not None
    # eager softmax runs in float32, ours in float64
    assert math.isclose(watched, sum(means) / len(means), rel_tol=1e-5)


def test_names_are_unique_and_structures_are_declared() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) >= 75
    assert all(entry.structures for entry in ENTRIES)
    assert {entry.family for entry in ENTRIES} == {"text", "vision", "speech", "custom"}
    assert set().union(*(entry.structures for entry in ENTRIES)) == zoo.STRUCTURES
    with pytest.raises(KeyError, match="no zoo entry 'dragon'"):
        zoo.get("dragon")


@pytest.mark.slow
@each
def test_export_matches_the_declaration(entry: Entry) -> None:
    model = entry.build()

    def export() -> torch.export.ExportedProgram:
        with torch.no_grad():
            return torch.export.export(model.module, model.args, model.kwargs, strict=False)

    if not entry.exports:
        with pytest.raises(Exception):  # noqa: B017 - whatever torch.export raises for it
            export()
        return
    exported = export()
    with torch.no_grad():
        expected = zoo.float_outputs(model.module(*model.args, **model.kwargs))
        actual = zoo.float_outputs(exported.module()(*model.args, **model.kwargs))
    # float32 on both sides; kernels may differ in the order of sums
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
