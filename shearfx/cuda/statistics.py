"""``||x||^2``, ``<x, d>`` and ``||d||^2`` of all structures' slices, in a few launches whatever the number of layers.

``d`` is LoRA's ``scaling * B A``, which is never formed, or a matrix that stands in its place (a gradient). Sums are
made in float32 in an order that depends on shapes alone, so that a run gives the same bits every time. On tensor cores
numbers are sums of two bfloat16: an inner product is off by at most ``2^-15`` of ``sum_k |b_k| sum_n |w_n| |a_kn|``
beside what float32 sums lose, without tensor cores by that loss alone, at most ``n 2^-24`` of the same sum.

Source: LoRAShear, section 3.3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shearfx.cuda.launching import Launcher
from shearfx.cuda.sources import Module, layout
from shearfx.cuda.tables import KINDS, Matrix, first_blocks, packed
from shearfx.low_rank import LowRank

MOST_RANKS = 128


@dataclass(frozen=True, eq=False)
class Lines:
    """The slices of a weight along one of its dims, or some of them."""

    weight: Tensor
    """``[n]`` or ``[n, m]``."""
    dim: int = 0
    index: Tensor | None = None
    """LongTensor of slices, on the weight's device."""
    adapter: LowRank | None = None
    beside: Tensor | None = None
    """Shaped like the weight, where there is no adapter."""
    scaling: float = 1.0
    """Of what stands beside."""

    @property
    def count(self) -> int:
        """How many slices."""
        return self.weight.shape[self.dim] if self.index is None else len(self.index)


def unfit(lines: Lines, device: torch.device) -> str | None:
    """Why kernels on a device cannot read some slices; None where they can."""
    tensors = {"weight": lines.weight}
    if lines.adapter is not None:
        tensors |= {"adapter's A": lines.adapter.a, "adapter's B": lines.adapter.b}
    if lines.beside is not None:
        tensors["gradient"] = lines.beside
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"a {name} is a {type(tensor).__name__} of layout {tensor.layout}"
        if tensor.dtype not in KINDS:
            return f"a {name} is kept as {tensor.dtype}"
        if tensor.device != device:
            return f"a {name} is on {tensor.device}"
        if tensor.dim() > 2:
            return f"a {name} has {tensor.dim()} dims"
    if matrix_of(lines) is None:
        return "a weight's numbers do not lie beside each other"
    if lines.adapter is not None:
        rank = lines.adapter.a.shape[0]
        if rank > MOST_RANKS:
            return f"an adapter has rank {rank}, above {MOST_RANKS}"
        if lines.adapter.a.dtype != lines.adapter.b.dtype:
            return "an adapter's A and B are kept in different precision"
    return None


def matrix_of(lines: Lines) -> Matrix | None:
    """How the slices lie in memory; None where neither dim's neighbours are beside each other."""
    weight, dim = lines.weight, lines.dim
    across = 1 - dim if weight.dim() == 2 else 0
    along = weight.shape[across] if weight.dim() == 2 else 1
    line_stride = weight.stride(dim)
    along_stride = weight.stride(across) if along > 1 else 1
    if along_stride != 1 and line_stride != 1:
        return None
    found = Matrix(weight.data_ptr(), KINDS[weight.dtype], lines.count, along, line_stride, along_stride)
    found.index = 0 if lines.index is None else lines.index.data_ptr()
    if lines.adapter is not None:
        lead, axis = lines.adapter.thin(dim)
        other = lines.adapter.a if lead is lines.adapter.b else lines.adapter.b
        found.lead, found.lead_kind = lead.data_ptr(), KINDS[lead.dtype]
        found.lead_line, found.lead_rank = lead.stride(axis), lead.stride(1 - axis)
        found.other, found.other_kind = other.data_ptr(), KINDS[other.dtype]
        found.other_rank, found.other_along = other.stride(axis), other.stride(1 - axis)
        found.rank, found.scaling = lines.adapter.a.shape[0], lines.adapter.scaling
    elif lines.beside is not None:
        beside = lines.beside
        found.other, found.other_kind, found.parts = beside.data_ptr(), KINDS[beside.dtype], 3
        found.other_rank, found.other_along = beside.stride(dim), beside.stride(across) if along > 1 else 1
        found.scaling = lines.scaling
        if (found.other_along if found.along_stride == 1 else found.other_rank) != 1:
            return None
    return found


def module_of(job: Matrix, tensor_cores: bool) -> Module:
    """What passes over the weight of a job, compiled for its precision and rank."""
    kinds = ("WEIGHT_KIND", job.kind), ("FACTOR_KIND", job.other_kind)
    if not job.rank:
        return Module("statistics_dense", kinds)
    if not tensor_cores:
        return Module("statistics_any")
    tiles = next(t for t in (1, 2, 4) if 16 * t >= job.rank or t == 4)
    return Module("statistics_product", (*kinds, ("RANK_TILES_OF_16", tiles)))


class Statistics:
    """The sums of some slices, planned once: tables stay on the device, and each run reads what is there then.

    Args:
        launcher: where kernels run.
        lines: the slices; :func:`unfit` says of each whether it can be among them.
        delta: whether ``||d||^2`` is wanted too, where it takes a Gram matrix.
    """

    def __init__(self, launcher: Launcher, lines: Sequence[Lines], *, delta: bool = True) -> None:
        self.launcher, self.lines = launcher, list(lines)
        self.count = sum(one.count for one in self.lines)
        """Slices in all."""
        jobs, passes = self._jobs(delta)
        self._passes = [(module, kernel, *self._table(own)) for (module, kernel), own in passes.items()]
        self._finish = self._table(jobs, [-(-job.lines // layout()["FINISH_STRIP"]) for job in jobs])
        grams = [job for job in jobs if job.gram_at >= 0]
        tile, threads = layout()["GRAM_TILE"], layout()["THREADS"]
        self._grams = self._table(grams, [job.gram_chunks * (-(-job.rank // tile)) ** 2 for job in grams])
        self._gram_sums = self._table(grams, [-(-(job.rank**2) // threads) for job in grams])

    def _jobs(self, delta: bool) -> tuple[list[Matrix], dict[tuple[Module, str], list[Matrix]]]:
        """All jobs, and which kernel takes which."""
        sizes = layout()
        jobs, passes = [], defaultdict[tuple[Module, str], list[Matrix]](list)
        line_at = partial_at = gram_at = 0
        for one in self.lines:
            job = matrix_of(one)
            assert job is not None
            side = "rows" if job.along_stride == 1 else "columns"
            module, kernel, strip = self._pass(job, side)
            job.strips, job.chunks = -(-job.lines // strip), -(-job.along // sizes["CHUNK"])
            job.line_at, job.partial_at = line_at, partial_at
            line_at += job.lines
            partial_at += job.chunks * job.lines * job.parts
            if delta and job.rank:
                job.gram_at, job.gram_chunks = gram_at, job.chunks
                gram_at += max(1, job.chunks) * job.rank**2
            jobs.append(job)
            passes[module, kernel].append(job)
        self.partials, self.gram_numbers = partial_at, gram_at
        return jobs, passes

    def _pass(self, job: Matrix, side: str) -> tuple[Module, str, int]:
        """Module, kernel, and lines per block."""
        sizes, module = layout(), module_of(job, self.launcher.tensor_cores)
        if not job.rank:
            return module, f"dense_{side}", sizes[f"DENSE_{side.upper()}"]
        if not self.launcher.tensor_cores:
            return module, "product_plain", sizes["PLAIN_STRIP"]
        return module, f"product_{side}", sizes["ROW_STRIP" if side == "rows" else "COLUMN_STRIP"]

    def _table(self, jobs: Sequence[Matrix], blocks: Sequence[int] | None = None) -> tuple[Tensor, Tensor, int, int]:
        """Jobs, first blocks, how many jobs, how many blocks."""
        counts = [job.strips * job.chunks for job in jobs] if blocks is None else list(blocks)
        device = self.launcher.device
        return packed(jobs, device), first_blocks(counts, device), len(jobs), sum(counts)

    def run(self) -> Tensor:
        """Float32 ``[3, slices]``: ``||x||^2``, ``<x, d>``, ``||d||^2`` (zero where it was not wanted)."""
        device, launch = self.launcher.device, self.launcher.launch
        partial = torch.empty(self.partials, device=device)
        grams = torch.empty(self.gram_numbers, device=device)
        found = torch.empty(3, self.count, device=device)
        for module, kernel, jobs, first, count, blocks in self._passes:
            launch(module, kernel, blocks, [jobs, first, count, partial])
        rest = Module("statistics_any")
        for kernel, (jobs, first, count, blocks) in (("gram_chunks", self._grams), ("gram_sums", self._gram_sums)):
            launch(rest, kernel, blocks, [jobs, first, count, grams])
        jobs, first, count, blocks = self._finish
        launch(rest, "line_sums", blocks, [jobs, first, count, partial, grams, found, self.count])
        return found

    def split(self, found: Tensor) -> list[Tensor]:
        """What :meth:`run` returned, for each of the lines: ``[3, slices]``."""
        return list(found.split([one.count for one in self.lines], dim=1))
