"""LHSPG's step on fading slices: sums, half-space test, trial iterate or zero, adapters' own slices cleared.

Source: LoRAShear, Algorithm 4, lines 7 and 8, and equation (2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shearfx.cuda.launching import Argument, Launcher
from shearfx.cuda.sources import Module, layout
from shearfx.cuda.statistics import Lines, Statistics, matrix_of
from shearfx.cuda.tables import Matrix, first_blocks, packed


def module_of(job: Matrix) -> Module:
    """What writes a job's trial iterate, compiled for its precision."""
    return Module("step_replace", (("WEIGHT_KIND", job.kind), ("FACTOR_KIND", job.lead_kind)))


class Step:
    """The step over all structures of a period, planned once.

    Slices of one weight that belong to several groups fade one group after the other, as they overlap; all else is one
    launch for each kind of weight, and one that clears rows of B and columns of A.

    Args:
        launcher: where kernels run.
        lines: the slices (see :func:`shearfx.cuda.statistics.unfit`), those of one weight in the order they fade in.
        slots: for each of the lines, which structure every slice belongs to: LongTensor.
        structures: how many there are.
    """

    def __init__(self, launcher: Launcher, lines: Sequence[Lines], slots: Sequence[Tensor], structures: int) -> None:
        device = launcher.device
        self.launcher, self.structures = launcher, structures
        self.statistics = Statistics(launcher, lines, delta=False)
        self.factors = torch.ones(structures, device=device)
        """What each structure's present weights were multiplied by last."""
        self.fallen = torch.zeros(structures, dtype=torch.int32, device=device)
        """Which structures are zero: 1 or 0."""
        order = torch.cat([slot.cpu() for slot in slots]) if slots else torch.zeros(0, dtype=torch.long)
        self._slots = order.to(device)
        # sums of a structure in the order of its slices, whatever the threads do
        self._members = order.argsort(stable=True).to(device)
        counts = torch.bincount(order, minlength=structures)
        self._from = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(device)
        self._waves = [self._wave(own) for own in self._apart(lines)]

    def _apart(self, lines: Sequence[Lines]) -> list[list[Matrix]]:
        """Jobs in waves, none of which has two of one weight or adapter."""
        waves: list[list[Matrix]] = []
        last: dict[int, int] = {}
        at = 0
        for one in lines:
            job = matrix_of(one)
            assert job is not None
            job.slot_at, at = at, at + job.lines
            touched = [p for p in (job.weight, job.lead, job.other) if p]
            wave = 1 + max((last.get(p, -1) for p in touched), default=-1)
            last |= dict.fromkeys(touched, wave)
            if wave == len(waves):
                waves.append([])
            waves[wave].append(job)
        return waves

    def _wave(self, jobs: Sequence[Matrix]) -> tuple[list[tuple[Module, Tensor, Tensor, int, int]], Clearing]:
        sizes = layout()
        kinds: dict[Module, list[Matrix]] = {}
        for job in jobs:
            rows = job.along_stride == 1
            tiles = (sizes["SLOW_TILE"], sizes["FAST_TILE"])
            by_line, by_along = tiles if rows else tiles[::-1]
            job.strips, job.chunks = -(-job.lines // by_line), -(-job.along // by_along)
            kinds.setdefault(module_of(job), []).append(job)
        tables = []
        device = self.launcher.device
        for module, own in kinds.items():
            blocks = [job.strips * job.chunks for job in own]
            tables.append((module, packed(own, device), first_blocks(blocks, device), len(own), sum(blocks)))
        return tables, Clearing(self.launcher, jobs)

    def run(
        self,
        left: int,
        *,
        constant: bool = False,
        strength: float = 0.0,
        epsilon: float = -math.inf,
        more: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """One step; afterwards :attr:`fallen` says what is zero.

        Args:
            left: steps left in the period, this one included.
            constant: whether the penalty is constant, with ``strength`` for its lambda; else the ramp.
            epsilon: of the half-space; ``-inf`` for no test.
            more: ``||x||^2`` and ``<x, d>`` that structures have in other slices, float32 ``[structures]`` each.
        """
        looks = left > 1 and (constant or epsilon != -math.inf)
        square, inner, _ = self.statistics.run() if looks else (None, None, None)
        more_square, more_inner = more if looks and more is not None else (None, None)
        # C's double has no portable way through every layer for an infinity
        bound = epsilon if math.isfinite(epsilon) else -1e308
        blocks = -(-self.structures // layout()["THREADS"])
        self.launcher.launch(
            Module("step_any"),
            "decide",
            blocks,
            [
                self.structures, self._from, self._members, square, inner, more_square, more_inner,
                self.factors, self.fallen, left, int(constant), float(strength), bound,
            ],
        )  # fmt: skip
        for tables, clearing in self._waves:
            for module, jobs, first, count, blocks in tables:
                arguments: list[Argument] = [jobs, first, count, self._slots, self.factors, self.fallen]
                self.launcher.launch(module, "replace_lines", blocks, arguments)
            clearing.run()


class Clearing:
    """Adapters' own slices set to zero, rows of B and columns of A, in one launch.

    Args:
        launcher: where kernels run.
        jobs: the slices.
    """

    def __init__(self, launcher: Launcher, jobs: Sequence[Matrix]) -> None:
        self.launcher = launcher
        adapted = [job for job in jobs if job.rank and job.lines]
        blocks = [-(-job.lines * job.rank // layout()["CLEAR_CHUNK"]) for job in adapted]
        self._arguments: list[Argument] = [
            packed(adapted, launcher.device),
            first_blocks(blocks, launcher.device),
            len(adapted),
        ]
        self._blocks = sum(blocks)

    @classmethod
    def of(cls, launcher: Launcher, lines: Sequence[Lines]) -> Clearing:
        """Of slices that :func:`shearfx.cuda.statistics.unfit` has nothing against."""
        jobs = [matrix_of(one) for one in lines]
        found = cls(launcher, [job for job in jobs if job is not None])
        found.lines = list(lines)
        return found

    lines: list[Lines]
    """Kept, as the table holds bare addresses."""

    def run(self) -> None:
        """Set them to zero."""
        self.launcher.launch(Module("step_any"), "clear_factors", self._blocks, self._arguments)
