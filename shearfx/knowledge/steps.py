"""Layers that a forward pass goes through one after the other, and starting it in the middle of them.

No table says which modules these are: the items of every ``nn.ModuleList`` and ``nn.Sequential`` are watched in one
forward pass, and those that are called exactly once, none inside another, are its steps. Encoder-decoders have the
steps of both stacks, convolutional networks those of every stage; layers that share one module have none.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from shearfx.gating.sites import GatedWeight, Places

Run = Callable[[], Any]
"""One forward pass over one batch."""

_PLAIN = (torch.Tensor, bool, int, float, str, type(None))
"""Leaves of a layer's output that may be given out again. A cache of keys, say, may not: it changes as it is used."""


class Steps:
    """The steps of a model's forward pass.

    For a batch, :meth:`record` runs the full model and keeps every step's output; :meth:`resume` then runs it again
    from some step on: the steps before return what was recorded, which is what they would compute, as long as nothing
    that they or anything before them reads has changed. What is between steps always runs.

    Args:
        model: left as it was after each pass, also after an exception.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: list[nn.Module] = []
        """In the order of their calls."""
        self.reason = "it was not looked for layers yet"
        """Why nothing can be resumed; empty where it can."""
        self.first: dict[str, int] = {}
        """For each gated group: how many steps of the recorded pass had ended when its gates first had any effect."""
        self._outputs: list[Any] = []
        self._reusable: list[bool] = []

    def __len__(self) -> int:
        return len(self.modules)

    def give_up(self, reason: str) -> None:
        """Resume no more."""
        self.modules, self.reason = [], reason
        self.forget()

    def forget(self) -> None:
        """Let go of what was recorded."""
        self._outputs, self._reusable, self.first = [], [], {}

    @property
    def recorded_bytes(self) -> int:
        """Of the outputs that are held."""
        leaves = {id(t): t for t in pytree.tree_leaves(self._outputs) if isinstance(t, torch.Tensor)}
        return sum(t.numel() * t.element_size() for t in leaves.values())

    # -- finding -----------------------------------------------------------------------------------

    def find(self, run: Run) -> Any:
        """Run once and find the steps. Returns what the pass returns."""
        outermost: list[nn.Module] = []
        inside = 0

        def watch(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                if not inside:
                    outermost.append(module)
                inside += 1
                try:
                    return forward(*args, **kwargs)
                finally:
                    inside -= 1

            return watched

        with _forwards(_items(self.model), watch):
            result = run()
        calls: dict[nn.Module, int] = {}
        for module in outermost:
            calls[module] = calls.get(module, 0) + 1
        self.modules = [module for module in outermost if calls[module] == 1]
        self.reason = "" if self.modules else "it has no list of layers that are called once each"
        return result

    # -- recording and resuming --------------------------------------------------------------------

    def record(self, run: Run, places: Places) -> Any:
        """Run the full model, keep the outputs of its steps, note when each group is first read.

        Args:
            run: the pass, gates open.
            places: where the groups are gated.
        """
        self.forget()
        versions: list[list[tuple[torch.Tensor, int]]] = []
        order = {module: i for i, module in enumerate(self.modules)}
        in_order = True

        def keep(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def kept(*args: Any, **kwargs: Any) -> Any:
                nonlocal in_order
                output = forward(*args, **kwargs)
                in_order = in_order and order[module] == len(self._outputs)
                leaves = pytree.tree_leaves(output)
                tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
                plain = all(isinstance(leaf, _PLAIN) for leaf in leaves) and not any(t.is_inference() for t in tensors)
                self._outputs.append(output)
                self._reusable.append(plain)
                versions.append([(t, t._version) for t in tensors] if plain else [])
                return output

            return kept

        with _noting(places, self._note, self._unread), _forwards(self.modules, keep):
            result = run()
        if not in_order or len(self._outputs) != len(self.modules):
            # this batch takes another way through the model: all of it is run anew for every measurement
            self._reusable, self.first = [False] * len(self.modules), {}
        for i, before in enumerate(versions):
            if any(tensor._version != version for tensor, version in before):
                self._reusable[i] = False  # what comes later changed it in place, so it has to be made anew
        self._outputs = [out if ok else None for out, ok in zip(self._outputs, self._reusable, strict=False)]
        return result

    def start(self, groups: Iterable[str]) -> int:
        """From which step on the model has to run for these groups' gates to have their effect."""
        if not self.modules or not any(self._reusable):
            return 0
        # modules that were not called have gates without effect until something before them changes
        return min((self.first.get(name, len(self.modules)) for name in groups), default=0)

    def saved(self, start: int) -> int:
        """How many steps do not run when the pass is resumed there."""
        return sum(self._reusable[:start])

    def resume(self, run: Run, start: int) -> Any:
        """Run from a step on."""
        outputs = dict(zip(self.modules[:start], self._outputs, strict=False))
        ready = [module for module, ok in zip(self.modules[:start], self._reusable, strict=False) if ok]

        def recorded(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: outputs[module]

        with _forwards(ready, recorded):
            return run()

    def _note(self, group: str) -> None:
        self.first.setdefault(group, len(self._outputs))

    def _unread(self, group: str) -> None:
        self.first[group] = 0


def _items(model: nn.Module) -> list[nn.Module]:
    """Items of lists and sequences; of a sequence in a sequence, its own items."""
    found: dict[nn.Module, None] = {}
    for container in model.modules():
        if isinstance(container, (nn.ModuleList, nn.Sequential)):
            for item in container:
                if type(item) not in (nn.ModuleList, nn.Sequential) and not isinstance(item, torch.jit.ScriptModule):
                    found[item] = None
    return list(found)


@contextlib.contextmanager
def _forwards(
    modules: Iterable[nn.Module], make: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """For the while, other ``forward`` methods. Hooks, gates among them, stay where they are."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            forward = module.forward
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = functools.wraps(forward)(make(module, forward))
        yield
    finally:
        for module, own in reversed(before):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


@contextlib.contextmanager
def _noting(places: Places, note: Callable[[str], None], unread: Callable[[str], None]) -> Iterator[None]:
    """Tell whenever something that a group's gates change is about to be used; and of weights where it cannot."""
    hooks = []
    try:
        for site in places.sites:
            names = [group for group, _ in site.where]

            def called(*_: Any, names: list[str] = names) -> None:
                for name in names:
                    note(name)

            hooks.append(site.module.register_forward_pre_hook(called))
        if places.weights:
            with _Reads(places.weights, note) as reads:
                yield
            for weight in places.weights:
                if id(weight.parameter) not in reads.seen:
                    unread(weight.group)
        else:
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Reads(TorchFunctionMode):
    """Tells of every torch function that is given a weight which is gated in place."""

    def __init__(self, weights: Iterable[GatedWeight], note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note
        self.groups: dict[int, list[str]] = {}
        for weight in weights:
            self.groups.setdefault(id(weight.parameter), []).append(weight.group)
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if id(leaf) in self.groups:
                self.seen.add(id(leaf))
            for name in self.groups.get(id(leaf), ()):
                self.note(name)
        return func(*args, **(kwargs or {}))
