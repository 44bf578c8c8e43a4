"""The plan: what is cut, as data. Made on one machine, read by a person, applied on another."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from shearfx.dims import Atom
from shearfx.displayed import Displayed
from shearfx.errors import PlanError, message
from shearfx.graph import Graph, kept_mask, mentions, new_size
from shearfx.plan_text import format_term, from_ranges, parse_term, to_ranges

FORMAT = 1
LARGEST = 2**26
"""Structures that all cuts of a plan may have together: some tenfold of what a model of 70 B parameters has."""


@dataclass(frozen=True)
class Cut:
    """One group that is cut: which of its structures stay."""

    name: str
    kind: str
    size: int
    certificate: str
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Compensation:
    """A root-mean-square norm whose dim was cut from ``before`` to ``after`` indices.

    ``(offset + weight) * sqrt(before/after) - offset`` replaces the weight, ``epsilon * before/after`` its epsilon.
    ``module`` and ``attribute`` say where the original class keeps epsilon (empty where it could not be found).
    """

    weight: str
    offset: float
    before: int
    after: int
    epsilon: float
    module: str = ""
    attribute: str = ""


@dataclass(frozen=True)
class PruningPlan(Displayed):
    """A small document that says which structures of which model stay.

    ``terms`` gives, for each tensor that shrinks, each dim as a term over the names of ``cuts`` (``#0*2*(#3+#3)``,
    ``#k`` the k-th cut), or None where the dim stays.
    """

    model: str
    shapes: dict[str, tuple[int, ...]]
    """Fingerprint: every parameter and buffer by every name, with its shape."""
    aliases: dict[str, tuple[str, ...]]
    """For tensors that go by several names: first name to all."""
    call: dict[str, Any]
    cuts: tuple[Cut, ...]
    terms: dict[str, tuple[str | None, ...]]
    compensations: tuple[Compensation, ...] = ()
    attributes: dict[str, dict[str, int | float]] = field(default_factory=dict)
    """Integer attributes of the original class that change: module path to names and values."""
    config: dict[str, int | float] = field(default_factory=dict)
    """Where layers stay alike: the fields of the model's configuration that state the cut."""
    asked: float = 0.0
    achieved: float = 0.0
    layers: tuple[str, ...] = ()
    """Paths in the full model of layers that go whole, before anything is cut: the rest of the plan is about the model
    that they leave, with its layers numbered anew."""
    full: str = ""
    """Where layers go: the :func:`fingerprint` of the full model."""
    layers_share: float = 0.0
    """Where layers go: the share of the full model's parameters that is in them."""
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def achieved_params(self) -> float:
        """The share of the parameters that goes, whatever unit ``achieved`` is a share of."""
        return float(self.options.get("achieved_params", self.achieved))

    @property
    def removed(self) -> float:
        """The share of the full model's parameters that goes, in layers and in cuts together."""
        return 1 - (1 - self.layers_share) * (1 - self.achieved_params)

    # -- what stays ----------------------------------------------------------------------------------

    @functools.cached_property
    def kept(self) -> dict[str, dict[int, torch.Tensor]]:
        """For every name of every tensor that shrinks: dim to LongTensor of kept indices."""
        kept: dict[str, dict[int, torch.Tensor]] = {}
        for name, terms in self.terms.items():
            dims = {axis: self._mask(term).nonzero().flatten() for axis, term in enumerate(terms) if term is not None}
            for alias in self.aliases.get(name, (name,)):
                kept[alias] = dims
        return kept

    @functools.cached_property
    def _atoms(self) -> tuple[list[Atom], dict[Atom, torch.Tensor]]:
        atoms = [Atom(cut.size) for cut in self.cuts]
        masks = {}
        for atom, cut in zip(atoms, self.cuts, strict=True):
            masks[atom] = torch.zeros(cut.size, dtype=torch.bool)
            masks[atom][list(cut.kept)] = True
        return atoms, masks

    def _mask(self, term: str) -> torch.Tensor:
        atoms, masks = self._atoms
        return kept_mask(parse_term(term, atoms), masks)

    def shapes_after(self) -> dict[str, tuple[int, ...]]:
        """The fingerprint of the smaller model."""
        after = dict(self.shapes)
        for name, dims in self.kept.items():
            after[name] = tuple(len(dims[i]) if i in dims else s for i, s in enumerate(self.shapes[name]))
        return after

    # -- does it fit? --------------------------------------------------------------------------------

    def check_fits(self, shapes: Mapping[str, Iterable[int]], what: str = "the model") -> None:
        """Raise PlanError unless parameters and buffers have the names and shapes that the plan was made for."""
        for name, shape in self.shapes.items():
            if name not in shapes:
                raise PlanError(_misfit(f"{what} has no tensor {name!r}, which the plan was made for"))
            if tuple(shapes[name]) != shape:
                raise PlanError(_misfit(f"{name} has shape {tuple(shapes[name])}; the plan was made for {shape}"))
        lists = tuple({f"{path.rpartition('.')[0]}." for path in self.layers})
        more = next((name for name in shapes if name not in self.shapes and lists and name.startswith(lists)), None)
        if more is not None:
            raise PlanError(_misfit(f"{what} has {more}, which is in none of the layers that the plan leaves"))

    # -- JSON ----------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as JSON, stable from run to run."""
        data = asdict(self)
        data["format"] = FORMAT
        for cut in data["cuts"]:
            cut["kept"] = to_ranges(cut["kept"])
        data["digest"] = digest_of(data)
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Read a plan; nothing in it is ever executed.

        Raises:
            PlanError: the text is no plan, or contradicts itself.
        """
        try:
            return cls._read(json.loads(text))
        except PlanError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise PlanError(
                message(f"this is no readable plan: {type(error).__name__}: {error}", todo="make the plan again")
            ) from None

    @classmethod
    def _read(cls, data: dict[str, Any]) -> PruningPlan:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError(message("this is no plan of this version of shearfx", todo="make the plan again"))
        if data.get("digest") != digest_of(data):
            raise PlanError(message("the plan was damaged or changed after it was made", todo="make the plan again"))
        # A plan may come from a stranger: whatever it says, reading it needs no more memory than a model's plan does.
        if sum(int(c["size"]) for c in data["cuts"]) > LARGEST or any(int(c["size"]) < 1 for c in data["cuts"]):
            raise ValueError("cuts of impossible sizes")
        cuts = tuple(_cut(c, int(c["size"])) for c in data["cuts"])
        plan = cls(
            model=str(data["model"]),
            shapes={str(k): tuple(map(int, v)) for k, v in data["shapes"].items()},
            aliases={str(k): tuple(map(str, v)) for k, v in data["aliases"].items()},
            call={str(k): _argument(v) for k, v in data["call"].items()},
            cuts=cuts,
            terms={str(k): tuple(None if t is None else str(t) for t in v) for k, v in data["terms"].items()},
            compensations=tuple(_compensation(c) for c in data["compensations"]),
            attributes={str(k): _numbers(v) for k, v in data["attributes"].items()},
            config=_numbers(data["config"]),
            asked=_number(data["asked"]),
            achieved=_number(data["achieved"]),
            layers=tuple(map(str, data.get("layers", ()))),
            full=str(data.get("full", "")),
            layers_share=_number(data.get("layers_share", 0.0)),
            options=dict(data["options"]),
            versions={str(k): str(v) for k, v in data["versions"].items()},
        )
        plan._check_consistent()
        return plan

    def _check_consistent(self) -> None:
        for first, names in self.aliases.items():
            if first not in names or any(self.shapes.get(name) != self.shapes.get(first, ()) for name in names):
                raise PlanError(message(f"the plan ties {first!r} to tensors unlike it: {', '.join(names)}"))
        atoms, _ = self._atoms
        for name, terms in self.terms.items():
            shape = self.shapes.get(name)
            if shape is None or len(shape) != len(terms):
                raise PlanError(message(f"the plan cuts {name!r}, which its own list of tensors does not have"))
            for axis, term in enumerate(terms):
                if term is not None and (shape[axis] > LARGEST or parse_term(term, atoms).size != shape[axis]):
                    raise PlanError(message(f"the plan contradicts itself at dim {axis} of {name}: {term}"))
        for compensation in self.compensations:
            if compensation.weight not in self.shapes or compensation.after < 1 or compensation.before < 1:
                raise PlanError(message(f"the plan compensates {compensation.weight!r}, which is no tensor of it"))


def fingerprint(shapes: Mapping[str, Iterable[int]]) -> str:
    """A check sum of the names and shapes of a model's parameters and buffers."""
    content = json.dumps({name: list(shape) for name, shape in shapes.items()}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest_of(data: Mapping[str, Any]) -> str:
    """A check sum of a plan's JSON, against damage; it proves nothing of where the plan comes from."""
    content = {name: value for name, value in data.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"expected a number, not {value!r}")
    return value


def _numbers(data: Mapping[str, Any]) -> dict[str, int | float]:
    return {str(k): _number(v) for k, v in data.items()}


def _argument(value: Any) -> Any:
    """An argument of the traced call: a plain value, or the dtype and shape of a tensor."""
    if not isinstance(value, dict):
        if isinstance(value, (int, float, str, bool, type(None))):
            return value
        raise ValueError(f"expected a plain argument, not {value!r}")
    shape = list(value["shape"])
    if not all(isinstance(s, str) or (type(s) is int and s >= 0) for s in shape):
        raise ValueError(f"expected a shape, not {shape}")
    if math.prod(s for s in shape if isinstance(s, int)) > LARGEST:
        raise ValueError(f"a call with a tensor of impossible size {shape}")
    found = {"dtype": str(value["dtype"]), "shape": shape}
    if "example" not in value:
        return found
    example = list(value["example"])
    if len(example) != len(shape) or not all(type(s) is int and s >= 0 for s in example):
        raise ValueError(f"expected the sizes of an example, not {example}")
    if math.prod(example) > LARGEST:
        raise ValueError(f"a call with a tensor of impossible size {example}")
    return found | {"example": example}


def _cut(data: Mapping[str, Any], size: int) -> Cut:
    kept = from_ranges(data["kept"], size)
    return Cut(str(data["name"]), str(data["kind"]), size, str(data["certificate"]), kept)


def _compensation(data: Mapping[str, Any]) -> Compensation:
    values: dict[str, Any] = {k: str(data[k]) for k in ("weight", "module", "attribute")}
    values |= {k: int(_number(data[k])) for k in ("before", "after")}
    values |= {k: float(_number(data[k])) for k in ("offset", "epsilon")}
    return Compensation(**values)


def _misfit(what: str) -> str:
    return message(what, todo="apply the plan to the model it was made for, or make a plan for this one")


def of_cuts(graph: Graph, kept: Mapping[str, Iterable[int]], **details: Any) -> PruningPlan:
    """The plan that keeps these structures of these groups, whatever chose them.

    Args:
        graph: an analysed model.
        kept: group name to kept structures; groups not named stay whole.
        details: further fields of the plan (``attributes``, ``asked``, ``options``, ...).

    Raises:
        PlanError: no such group, or one that is not exact would lose all its structures.
    """
    import shearfx

    groups = {g.name: g for g in graph.groups}
    cuts: list[Cut] = []
    atoms: dict[Atom, int] = {}
    for name, indices in kept.items():
        if name not in groups:
            raise PlanError(message(f"the graph has no group {name!r}", todo="see graph.groups for their names"))
        group, stay = groups[name], tuple(sorted({int(i) for i in indices}))
        if stay and (stay[0] < 0 or stay[-1] >= group.size):
            raise PlanError(message(f"group {name}: kept structures must be some of 0..{group.size - 1}, not {stay}"))
        if not stay and group.certificate != "exact":
            what = f"group {name} is {group.certificate}: only exact groups can lose all of their structures"
            raise PlanError(message(what, todo="keep at least one"))
        if len(stay) < group.size:
            atoms[group.atom] = len(cuts)
            cuts.append(Cut(name, group.kind, group.size, group.certificate, stay))
    terms = {
        name: tuple(format_term(d, atoms) if mentions((d,)) & atoms.keys() else None for d in dims)
        for name, dims in graph.tensor_dims.items()
        if mentions(dims) & atoms.keys() and graph.tensors[name].kind != "constant"
    }
    sizes = {atom: len(cuts[i].kept) for atom, i in atoms.items()}
    before = graph.total_params
    after = sum(math.prod(new_size(d, sizes) for d in graph.tensor_dims[t.name]) for t in graph.parameters())
    return PruningPlan(
        model=graph.traced.model_class,
        shapes={a: t.shape for t in graph.tensors.values() if t.kind != "constant" for a in t.aliases},
        aliases={t.name: t.aliases for t in graph.tensors.values() if len(t.aliases) > 1},
        call=graph.traced.call,
        cuts=tuple(cuts),
        terms=terms,
        compensations=_compensations(graph, sizes),
        achieved=1 - after / max(before, 1),
        versions={"shearfx": shearfx.__version__, "torch": torch.__version__},
        **details,
    )  # fmt: skip


def check_terms(graph: Graph, plan: PruningPlan) -> None:
    """Raise PlanError unless the plan cuts every tensor just where its groups lie in this graph."""
    again = of_cuts(graph, {cut.name: cut.kept for cut in plan.cuts})
    for name in {**plan.kept, **again.kept}:
        wanted, found = again.kept.get(name, {}), plan.kept.get(name, {})
        if wanted.keys() != found.keys() or not all(torch.equal(wanted[i], found[i]) for i in wanted):
            raise PlanError(_misfit(f"the plan keeps of {name} other indices than its groups have there"))


def _compensations(graph: Graph, sizes: Mapping[Atom, int]) -> tuple[Compensation, ...]:
    found = []
    for norm in graph.composed:
        if norm.kind == "rms_norm":
            before, after = norm_sizes(graph, norm.mean, sizes)
            if before != after:
                assert norm.weight is not None
                found.append(Compensation(norm.weight, norm.offset, before, after, norm.value, norm.path))
    return tuple(dict.fromkeys(found))


def norm_sizes(graph: Graph, node: Any, sizes: Mapping[Atom, int]) -> tuple[int, int]:
    """How many numbers the mean at a node is over, before and after."""
    record = graph.records[node]
    before = after = 1
    for exit_ in record.exits:
        dim = graph.solver.resolve(exit_.dim)
        if isinstance(dim.size, int):
            before, after = before * dim.size, after * new_size(dim, sizes)
    return before, after


def masks_of(graph: Graph, plan: PruningPlan) -> dict[Atom, torch.Tensor]:
    """For the atoms of a graph that the plan cuts: which of their indices stay.

    Raises:
        PlanError: the graph does not have the plan's groups.
    """
    groups = {g.name: g for g in graph.groups}
    masks: dict[Atom, torch.Tensor] = {}
    for cut in plan.cuts:
        group = groups.get(cut.name)
        if group is None or group.size != cut.size:
            raise PlanError(_misfit(f"the model has no group {cut.name!r} of size {cut.size}"))
        mask = torch.zeros(cut.size, dtype=torch.bool)
        mask[list(cut.kept)] = True
        masks[group.atom] = mask
    return masks
