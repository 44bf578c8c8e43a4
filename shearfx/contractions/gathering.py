"""What is read where structures are read, gathered as data comes by: by hooks on modules, on the graph elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from shearfx.contractions.patches import patch_size
from shearfx.contractions.products import Product
from shearfx.contractions.replaying import Call, Read, Replay, calls_of
from shearfx.errors import PlanError, message
from shearfx.gating.moments import add_squares, mirror, second_moments
from shearfx.gating.sites import GateSite


def run_and_replay(
    run: Callable[[nn.Module, Any], Any],
    replay: Replay,
    keys: Collection[str],
    watching: Callable[[], AbstractContextManager[Any]],
    read: Read,
) -> Callable[[nn.Module, Any], Any]:
    """What runs a model on a batch, watched, and then each of its calls on the graph.

    Args:
        run: calls the model on a batch.
        replay: of the model.
        keys: of the products to look at; without any, there is no replay.
        watching: for the while of the run, looks at modules.
        read: looks at products.

    Raises:
        PlanError: when run, if the model was not called.
    """

    def go(model: nn.Module, batch: Any) -> Any:
        kept: AbstractContextManager[list[Call]] = calls_of(model) if keys else nullcontext([])
        with watching(), kept as calls:
            result = run(model, batch)
        if keys and not calls:
            what = "the data never calls the model, on whose graph activations are looked at"
            raise PlanError(message(what, todo="call the model itself in loss(...), not parts of it"))
        for one in calls:
            replay(one, read, keys)
        return result

    return go


class Sums:
    """Second moments of what is read in some places, as data comes by."""

    def __init__(self, part: Sequence[GateSite | Product]) -> None:
        self.sites = [one for one in part if isinstance(one, GateSite)]
        self.products = {one.key: one for one in part if isinstance(one, Product)}
        self.inputs: dict[str, Tensor] = {}
        """By path of the module."""
        self._read: dict[str, dict[int, Tensor]] = {}

    def watching(self) -> AbstractContextManager[Any]:
        """For the while, hooks look at modules."""
        return second_moments(self.sites, self.inputs)

    def read(self, product: Product, instance: int, rows: Tensor) -> None:
        """Take in what an instance of a product reads."""
        add_squares(self._read.setdefault(product.key, {}), instance, rows)

    def taken(self) -> Iterator[tuple[Product, dict[int, Tensor]]]:
        """The second moments of each product that has run, by instance, one product after the other and gone then."""
        for key in list(self._read):
            found = self._read.pop(key)
            for moments in found.values():
                mirror(moments)
            yield self.products[key], found


def squares(one: GateSite | Product) -> int:
    """How many numbers the second moments of what is read somewhere are."""
    return one.size**2 if isinstance(one, GateSite) else one.count * (one.features * patch_size(one)) ** 2
