"""Fisher information along every structure, through gates: by gradients of activations, where modules read them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shearfx.gating.collector import Collector
from shearfx.gating.gates import Gates
from shearfx.gating.sites import GatedWeight
from shearfx.gradients import Loss, backward_each, batch_loss, gradients
from shearfx.graph import Graph, Group
from shearfx.saliency.base import Saliency, Scores, refuse_unseen, register
from shearfx.saliency.evidence import Evidence
from shearfx.slices import product_along


@contextlib.contextmanager
def collecting(gates: Gates, model: nn.Module, collector: Collector | None = None) -> Iterator[Collector]:
    """For the while, backward passes through the model hand the derivatives by all gates to a collector."""
    collector = collector or Collector(sizes_of(gates))
    handle = watch(model, collector)
    before, gates.collector = gates.collector, collector
    try:
        yield collector
    finally:
        gates.collector = before
        handle.remove()


def watch(model: nn.Module, collector: Collector) -> Any:
    """Tell a collector of every forward pass that begins, so that it knows sequences apart. Returns the hook."""

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            tensors = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor) and v.dim()]
            # Token ids tell how many tokens there are in all; how many patches an image makes, nothing does.
            counted = [t for t in tensors if t.dim() > 1 and t.shape[0] == tensors[0].shape[0]]
            known = any(not t.is_floating_point() for t in counted)
            tokens = {t.shape[0] * t.shape[1] for t in counted} if known else ()
            collector.begin(tensors[0].shape[0] if tensors else 0, tokens)

    return model.register_forward_pre_hook(begin, with_kwargs=True)


@register
class Fisher(Saliency):
    """The sum over sequences of the squared derivative of the loss along a structure.

    Half of it estimates, to second order around a minimum, how much the loss grows when the structure goes.
    In units of loss, so that structures of all layers and kinds compare. Needs data; takes one forward and backward
    pass per batch. Where modules read a group, it takes no memory for gradients of weights; where other products with
    parameters do (fused experts), for one gradient at a time, and a batch counts as one sequence. Groups that something
    else than a parameter reads (query and key dims) are not scored.

    Source: Theis et al. 2018 (arXiv 1801.05787), equation 6, with gates as in Kwon et al. 2022 (arXiv 2204.09656).
    """

    name: ClassVar[str] = "fisher"
    unit = "loss"
    weights: ClassVar[bool] = True
    """Whether weights that are no module's own are looked at."""

    def unseen(self, graph: Graph, model: nn.Module, groups: Sequence[Group]) -> list[Group]:
        """Those that something else than a parameter reads, or that is not looked at."""
        return unseen_by(Gates(graph, model, groups), self.weights)

    def scores(self, given: Evidence) -> Scores:
        """Run the batches; the model is left as it was.

        Raises:
            PlanError: no model, no data, a loss that is not finite, or a group that gates do not see.
        """
        model, batches, loss = given.model, given.batches, given.loss
        gates = Gates(given.graph, model, given.groups)
        check_seen(gates, self.name, self.weights)
        seen = self._collector(gates, model, batches, loss or batch_loss)
        of: dict[int, list[GatedWeight]] = {}
        for one in (place for place in gates.places.weights if not place.formed):
            of.setdefault(id(one.parameter), []).append(one)

        def receive(name: str, weight: Tensor, gradient: Tensor) -> None:
            for one in of[int(name)]:
                seen.add_whole(one.group, one.where, product_along(weight, gradient, one.axis))

        weights = {str(key): places[0].parameter for key, places in of.items()}
        with gates, collecting(gates, model, seen) as collector, gradients(model, weights, receive):
            for _ in backward_each(model, batches, loss, self.name, given.progress):
                collector.flush()
        return {name: value / max(collector.sequences, 1) for name, value in collector.square.items()}

    def _collector(self, gates: Gates, model: nn.Module, batches: Iterable[Any], loss: Loss) -> Collector:
        return Collector(sizes_of(gates))


def sizes_of(gates: Gates) -> dict[str, int]:
    """Numbers of structures of the groups whose derivatives are along them."""
    return {name: gates.groups[name].size for name in sorted(gates.places.inputs_only)}


def check_seen(gates: Gates, what: str, weights: bool = True) -> None:
    """Raise PlanError where a group is not gated where it is read.

    Args:
        gates: of the groups.
        what: the saliency.
        weights: whether it may be gated there in a weight, of which no module's input tells the derivative.
    """
    refuse_unseen(unseen_by(gates, weights), what)


def unseen_by(gates: Gates, weights: bool = True) -> list[Group]:
    """Groups that are not gated where they are read. Args: as of :func:`check_seen`."""
    in_weights = set() if weights else {place.group for place in gates.places.weights if not place.formed}
    seen = gates.places.inputs_only - in_weights
    return [group for name, group in gates.groups.items() if name not in seen]
