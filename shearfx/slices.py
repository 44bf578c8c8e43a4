"""Sums over the slices of structures: from a number per weight to a number per structure, by reductions alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from shearfx.graph import Graph, Group, Member, coordinates
from shearfx.low_rank import spans


class SliceSums:
    """For each structure of some groups: the sum, over all its parameter slices, of a number per weight.

    Feed it tensors shaped like the parameters, one after the other, in any order; what is fed for one parameter twice
    adds up. A tensor is reduced to a vector per dim, and those are added up by structure: no index lists.
    """

    def __init__(self, graph: Graph, groups: Iterable[Group]) -> None:
        self.groups = tuple(groups)
        self.sums = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in self.groups}
        self.names: dict[str, str] = {}
        """Every name of every parameter that a group mentions, to its first name."""
        self._members: dict[str, list[tuple[str, list[Member]]]] = {}
        self._where: dict[tuple[str, str, int], torch.Tensor] = {}
        for group in self.groups:
            of: dict[str, list[Member]] = {}
            for member in group.members:
                tensor = graph.tensors[member.name]
                if tensor.kind == "parameter" and tensor.dtype.is_floating_point:
                    of.setdefault(member.name, []).append(member)
                    self.names.update(dict.fromkeys(tensor.aliases, member.name))
            for name, members in of.items():
                self._members.setdefault(name, []).append((group.name, members))

    def add(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Add up a tensor with a number for each weight of the named parameter (any alias).

        Args:
            name: of the parameter.
            values: shaped like it, or like some of its rows.
            start: which row ``values`` begins at.
        """
        first = self.names[name]
        vectors: dict[int, torch.Tensor] = {}
        for group, members in self._members[first]:
            if len(members) > 1:
                self._add_union(group, members, values, start)
                continue
            (member,) = members
            if member.dim not in vectors:
                vectors[member.dim] = _along(values, member.dim)
            self._collect(group, self._coordinates(group, member, values, start), vectors[member.dim])

    def take(self, name: str | None = None) -> dict[str, torch.Tensor]:
        """The sums by name of group, float64 ``[size]``; counting starts again.

        Args:
            name: of a parameter: only the groups that mention it.
        """
        asked = self.sums if name is None else [group for group, _ in self._members[self.names[name]]]
        taken = {group: self.sums[group] for group in asked}
        self.sums |= {group: torch.zeros_like(s) for group, s in taken.items()}
        return taken

    def _coordinates(self, group: str, member: Member, values: torch.Tensor, start: int) -> torch.Tensor:
        key = (group, member.name, member.dim)
        if key not in self._where:
            self._where[key] = coordinates(member.term, member.atom)
        return self._where[key] if member.dim else self._where[key][start : start + len(values)]

    def _add_union(self, group: str, members: list[Member], values: torch.Tensor, start: int) -> None:
        """Several dims of one tensor mention the atom (``hidden x hidden``): what lies in two slices counts once."""
        rank = values.dim()
        seen: list[torch.Tensor] = []
        for member in members:
            where = self._coordinates(group, member, values, start).to(values.device)
            shaped = where.reshape([-1 if axis == member.dim else 1 for axis in range(rank)])
            fresh = values
            for other in seen:
                fresh = fresh.masked_fill(shaped == other, 0)
            self._collect(group, where, _along(fresh, member.dim))
            seen.append(shaped)

    def _collect(self, group: str, where: torch.Tensor, vector: torch.Tensor) -> None:
        where, vector = where.cpu(), vector.cpu().double()
        here = where >= 0
        self.sums[group].index_add_(0, where[here], vector[here])


def _along(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The sum over all dims but one."""
    others = [axis for axis in range(values.dim()) if axis != dim]
    return values.sum(others) if others else values


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 where it has less: 16 bits lose what is summed over a layer."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def product_along(left: torch.Tensor, right: torch.Tensor, dim: int) -> torch.Tensor:
    """``sum(left * right)`` over all dims but one, at least in float32, a part of the tensors at a time.

    Args:
        left, right: of one shape.
        dim: which is left.
    """
    found = precise(left.new_zeros(left.shape[dim]))
    for start, stop in spans(len(left), left[0].numel()):
        part = _along(precise(left[start:stop]) * precise(right[start:stop]), dim)
        if dim == 0:
            found[start:stop] = part
        else:
            found += part
    return found
