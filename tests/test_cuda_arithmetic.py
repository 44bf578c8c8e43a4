"""Index arithmetic, tables and 16-bit numbers of the CUDA headers, built with the host's compiler."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import astuple, fields

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shearfx.cuda.launching import Argument
from shearfx.cuda.tables import KINDS, Matrix, first_blocks, numbers, packed
from tests.cuda_host.building import built, start

KERNELS = ("places", "fields", "widen", "narrow", "halves", "stuck")
CPU = torch.device("cpu")


def run(kernel: str, blocks: int, *arguments: Argument) -> None:
    start(ctypes.CDLL(str(built("arithmetic", KERNELS))), kernel, blocks, 32, 0, arguments)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=9))
def test_every_strip_and_chunk_of_every_job_has_one_block(sizes: list[tuple[int, int]]) -> None:
    table = packed([Matrix(0, 0, 0, 0, 0, 0, strips=s, chunks=c) for s, c in sizes], CPU)
    blocks = sum(s * c for s, c in sizes)
    found = torch.full((blocks, 3), -1)
    if blocks:
        run("places", blocks, table, first_blocks([s * c for s, c in sizes], CPU), len(sizes), found)
    expected = [[j, s, c] for j, (ss, cc) in enumerate(sizes) for c in range(cc) for s in range(ss)]
    assert found.tolist() == expected


def test_fields_are_packed_in_the_order_of_the_header() -> None:
    row = Matrix(0, 0, 0, 0, 0, 0)
    for number, field in enumerate(fields(row)):
        setattr(row, field.name, 1000.0 if field.name == "scaling" else 101 + number)
    found = torch.zeros(26, dtype=torch.int64)
    run("fields", 1, packed([row], CPU), found)
    assert found.tolist() == [*map(int, astuple(row)), 8 * len(astuple(row))]


def test_every_number_of_16_bits_is_what_torch_says() -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        found, own = torch.empty(2**16), bits.view(dtype)
        run("widen", 2**11, bits, KINDS[dtype], found, 2**16)
        assert torch.equal(found.isnan(), own.isnan())
        assert torch.equal(found[~own.isnan()], own[~own.isnan()].float())


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.bfloat16, torch.float16]))
def test_rounding_to_16_bits_is_torchs(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    anything = torch.randint(-(2**31), 2**31, (2048,), generator=generator, dtype=torch.int64).to(torch.int32)
    # ties, and their neighbours on both sides, where rounding goes wrong first
    exact = torch.randint(0, 2**15, (2048,), generator=generator, dtype=torch.int32).to(torch.int16).view(dtype).float()
    edges = exact.view(torch.int32) + (2**15 if dtype == torch.bfloat16 else 2**12) + torch.randint(-1, 2, (2048,))
    subnormal = torch.rand(2048, generator=generator) * 2.0**-13
    given_ = torch.cat([anything.view(torch.float32), edges.to(torch.int32).view(torch.float32), subnormal])
    found = torch.empty(len(given_), dtype=torch.int16)
    run("narrow", len(given_) // 32, given_, KINDS[dtype], found, len(given_))
    expected, narrow = given_.to(dtype), found.view(dtype)
    there = ~expected.isnan()
    assert torch.equal(narrow.isnan(), expected.isnan())
    assert torch.equal(found[there], expected.view(torch.int16)[there])


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-100), min_size=1))
def test_two_bfloat16_keep_16_bits_of_a_float(values: list[float]) -> None:
    given_ = torch.tensor(values, dtype=torch.float32)
    found = torch.empty_like(given_)
    run("halves", -(-len(values) // 32), given_, found, len(values))
    assert bool(((found.double() - given_.double()).abs() <= given_.double().abs() * 2.0**-16).all())


def test_the_emulator_sees_a_barrier_that_some_threads_never_reach() -> None:
    path = built("arithmetic", KERNELS)
    code = (
        f"import ctypes; of = ctypes.CDLL({str(path)!r}); n = ctypes.c_longlong(0); "
        "of.emulate_stuck(1, 64, 0, (ctypes.c_void_p * 1)(ctypes.addressof(n)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "wait for others" in done.stderr


def test_numbers_go_to_the_device_as_they_are() -> None:
    assert numbers([2**40, -1], CPU).tolist() == [2**40, -1]
