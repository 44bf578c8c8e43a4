"""Every registered rule against running its operator, and every point-wise operator at once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shearfx.dims import Atom
from shearfx.graph import mentions
from shearfx.rules import RULES
from shearfx.rules.pointwise import is_pointwise
from shearfx.values import Value, classify
from tests.one_operator import Call, OneOperator, contains, run, take, where

torch.manual_seed(0)


def _samples(target: Any) -> list[Call]:
    make = RULES[target].samples
    return [(operator, args, kwargs) for operator, args, kwargs in make() if operator is target] if make else []


TARGETS = sorted(RULES, key=str)
SAMPLES = [
    pytest.param(call, id=f"{str(target).removeprefix('aten.')}-{i}")
    for target in TARGETS
    for i, call in enumerate(_samples(target))
]
_UNDEFINED = ("empty", "rand", "bernoulli", "multinomial", "normal_")


def undefined(call: Call) -> bool:
    """Whether the numbers that the operator returns are random, or whatever was in memory."""
    return torch.Tag.nondeterministic_seeded in call[0].tags or any(
        str(call[0]).startswith(f"aten.{name}") or f"_{name}" in str(call[0]) for name in _UNDEFINED
    )


def test_every_operator_with_a_rule_has_samples() -> None:
    returning = [t for t in TARGETS if any("Tensor" in str(r.type) for r in t._schema.returns)]  # not sym_size
    missing = [str(target) for target in returning if not _samples(target)]
    assert not missing, f"no samples for {', '.join(missing)}"


# -- all point-wise operators at once --------------------------------------------------------------------


def _arguments(target: Any, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """Simple arguments by the schema of a point-wise operator: tensors of (3, 4), the second one of (4,)."""
    args: list[Any] = []
    tensors = 0
    for argument in target._schema.arguments:
        kind = str(argument.type)
        if argument.kwarg_only:
            break
        if kind in ("Tensor", "Optional[Tensor]"):
            shape = (4,) if tensors == 1 else (3, 4)
            tensors += 1
            args.append(torch.empty(shape).uniform_(-3, 3).to(dtype))
        elif argument.has_default_value():
            args.append(argument.default_value)
        elif kind in ("number", "float"):
            args.append(2)
        elif kind == "int":
            args.append(1)
        else:
            return None
    return tuple(args)


def _pointwise_calls() -> list[Call]:
    calls: list[Call] = []
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
            target = getattr(packet, overload)
            if not is_pointwise(target) or target._schema.is_mutable or target in RULES:
                continue
            for dtype in (torch.float64, torch.int64, torch.bool):
                args = _arguments(target, dtype)
                try:
                    if args is not None and isinstance(run((target, args, {})), Tensor):
                        calls.append((target, args, {}))
                except (RuntimeError, NotImplementedError, TypeError, IndexError):
                    continue
                break
    return calls


POINTWISE = _pointwise_calls()
_CLASSES = {
    Value.ZERO: (0.0, 0.0),
    Value.POSITIVE: (1e-3, 30.0),
    Value.NONNEGATIVE: (0.0, 30.0),
    Value.FINITE: (-30.0, 30.0),
}


def test_point_wise_operators_can_be_called_with_simple_tensors() -> None:
    assert len(POINTWISE) > 180  # of some 200 in torch 2.13; the next tests run on these


@pytest.mark.parametrize("call", [pytest.param(c, id=str(c[0])) for c in POINTWISE])
def test_point_wise_operators_pass_every_dim(call: Call) -> None:
    one = OneOperator.of(call)
    assert not one.graph.pins
    for atom in one.atoms:
        mask = torch.arange(atom.size) % 2 == 0
        expected = [take(value, dims, {atom: mask}) for value, dims in one.results]
        assert_same(one.cut({atom: mask}, one.inputs), expected, call)


@pytest.mark.parametrize("call", [pytest.param(c, id=str(c[0])) for c in POINTWISE])
def test_what_is_measured_of_point_wise_operators_holds(call: Call) -> None:
    """Random numbers of each class: what comes out is of the class that was measured on samples of it."""
    one = OneOperator.of(call)
    if undefined(call):
        return
    for classes in itertools.product(_CLASSES, repeat=len(one.record.operands)):
        numbers = {}
        for node, value in zip(one.record.operands, classes, strict=True):
            like = one.inputs[node]
            random = torch.empty(500, dtype=torch.float64).uniform_(*_CLASSES[value])
            if value is Value.POSITIVE and not like.is_floating_point():
                random = random.ceil()
            numbers[node] = random.to(like.dtype)
        assert one.record.transfer is not None
        claimed = one.record.transfer(list(classes))
        for result in one.full(numbers):
            assert contains(claimed, classify(result)), (classes, claimed, classify(result))


# -- every rule ----------------------------------------------------------------------------------------


def draw_masks(data: st.DataObject, atoms: list[Atom]) -> dict[Atom, Tensor]:
    """For some of the atoms which of their indices stay, at least one."""
    masks = {}
    for atom in atoms:
        if atom.size > 1 and data.draw(st.booleans(), label=f"cut {atom}"):
            kept = data.draw(st.sets(st.integers(0, atom.size - 1), min_size=1), label=f"kept of {atom}")
            masks[atom] = torch.zeros(atom.size, dtype=torch.bool)
            masks[atom][sorted(kept)] = True
    return masks


def assert_same(actual: list[Tensor], expected: list[Tensor], call: Call) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if not undefined(call):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("call", SAMPLES)
def test_a_rule_explains_every_dim(call: Call) -> None:
    one = OneOperator.of(call)
    for pin in one.graph.pins:
        assert "rule" not in pin.reason, pin.reason  # "no rule", "the rule failed"
    for value, dims in one.results:
        assert [d.size for d in dims] == list(value.shape)


@pytest.mark.parametrize("call", SAMPLES)
@settings(max_examples=12)
@given(data=st.data())
def test_cutting_is_zeroing_and_slicing(call: Call, data: st.DataObject) -> None:
    """Pass-through: op(slice(x)) == slice(op(x)). Contracted: zeroed == sliced where the rule says that it is."""
    one = OneOperator.of(call)
    floating = [n for n in one.record.operands if n in one.inputs and one.inputs[n].is_floating_point()]
    zero = [n for n in floating if data.draw(st.booleans(), label=f"zero {n}")]
    masks = draw_masks(data, [a for a in one.atoms if one.exits(a, zero) != "approximate"])
    leaving = {a for e in one.record.exits for a in one.graph.solver.atoms(e.dim)}
    inputs = one.zeroed({a: m for a, m in masks.items() if a in leaving}, zero)
    expected = [take(value, dims, masks) for value, (_, dims) in zip(one.full(inputs), one.results, strict=True)]
    assert_same(one.cut(masks, one.inputs if data.draw(st.booleans()) else inputs), expected, call)


@pytest.mark.parametrize("call", SAMPLES)
@settings(max_examples=8)
@given(data=st.data())
def test_what_a_rule_says_of_zero_holds(call: Call, data: st.DataObject) -> None:
    """The class that a rule claims for the slice of a zeroed index contains the numbers that are there."""
    one = OneOperator.of(call)
    record = one.record
    if undefined(call):
        return
    if record.transfer is None:
        return
    claimed = record.transfer(one.seen(Atom(1), []))
    for value, _ in one.results:
        assert contains(claimed, classify(value)), (claimed, value)
    # what leaves for certain is never claimed exact, whatever its slice holds afterwards
    leaving = {a for e in record.exits if e.certificate == "approximate" for a in one.graph.solver.atoms(e.dim)}
    atoms = {a for _, dims in one.results for a in mentions(dims) if a.pin is None} - leaving
    if not atoms:
        return
    atom = data.draw(st.sampled_from(sorted(atoms, key=lambda a: a.serial)), label="atom")
    index = data.draw(st.integers(0, atom.size - 1), label="index")
    floating = [n for n in dict.fromkeys(record.operands) if one.inputs[n].is_floating_point()]
    zero = [n for n in floating if data.draw(st.booleans(), label=f"zero {n}")]
    mask = torch.ones(atom.size, dtype=torch.bool)
    mask[index] = False
    results = one.full(one.zeroed({atom: mask}, zero))
    claimed = one.claimed(atom, zero)
    for value, (_, dims) in zip(results, one.results, strict=True):
        coordinate = where(dims, atom)
        if coordinate is not None:
            assert contains(claimed, classify(value[coordinate == index])), (claimed, value[coordinate == index])


MOVES = ("shearfx.rules.views", "shearfx.rules.segments", "shearfx.rules.overwriting")


@pytest.mark.parametrize("call", [s for s in SAMPLES if RULES[s.values[0][0]].function.__module__ in MOVES])  # type: ignore[index]
@settings(max_examples=8)
@given(data=st.data())
def test_views_and_segments_move_each_element_to_its_place(call: Call, data: st.DataObject) -> None:
    """On tensors of indices the operator shows which element went where; the coordinates must go with it."""
    one = OneOperator.of(call)
    numbers, first = {}, 1  # zero is what padding is filled with
    for node, value in one.inputs.items():
        numbers[node] = torch.arange(first, first + value.numel()).reshape(value.shape).to(torch.float64)
        if value.is_complex():
            numbers[node] = numbers[node].to(value.dtype)
        first += value.numel()
    masks = draw_masks(data, one.atoms)
    results = one.full(numbers)
    expected = [take(value, dims, masks) for value, (_, dims) in zip(results, one.results, strict=True)]
    assert_same(one.cut(masks, numbers), expected, call)
    for result, (_, dims) in zip(results, one.results, strict=True):
        if result.is_complex() or "complex" in str(call[0]):
            continue
        for node, value in numbers.items():
            if value.is_complex():
                continue
            here = (result >= value.min()) & (result <= value.max()) & (result == result.round())
            at = (result[here] - value.min()).long()
            for atom in (mentions(dims) & mentions(one.dims_of(node))).intersection(one.atoms):
                source, target = where(one.dims_of(node), atom), where(dims, atom)
                if source is not None and target is not None:
                    assert torch.equal(source.reshape(-1)[at], target[here])
