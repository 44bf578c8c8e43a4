"""What was measured: a row per node group and ratio, and what becomes unprunable for it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shearfx.atomic import replace_file
from shearfx.errors import CheckpointError, PlanError, message
from shearfx.knowledge.crucial import unlike_their_like

Metric = Literal["perplexity", "kl"]
FORMAT = "shearfx knowledge 1"


@dataclass(frozen=True)
class Row:
    """One node group with its least salient structures shut, alone."""

    name: str
    """Of the node group: that of its first group."""
    groups: tuple[str, ...]
    kind: str
    layer: int | None
    """The first number in its name; None where it goes through several."""
    ratio: float
    """As asked; ``shut / of`` is what came of it."""
    shut: int
    of: int
    """Structures."""
    share: float
    """Of all unique parameters of the model, what these structures take along."""
    loss: float
    """Mean per token in nats; inf where it is not finite."""
    perplexity: float
    deviation: float
    """``perplexity`` minus the full model's."""
    relative: float
    """``deviation`` as a share of the full model's perplexity."""
    kl: float | None
    """Mean KL(full || this) per position in nats; None where the outputs are no distributions."""


@dataclass(frozen=True)
class Standing:
    """A node group over all ratios."""

    name: str
    kind: str
    layer: int | None
    share: float
    """Mean share of the model's parameters that was shut."""
    deviation: float
    """Mean over ratios of the growth of the loss (log of the perplexity's ratio to the full model's), or of KL."""


@dataclass(frozen=True)
class KnowledgeDistribution:
    """How much the model loses with each node group.

    Source: LoRAShear, Algorithm 3 and Figure 4.
    """

    rows: tuple[Row, ...]
    """In the order of node groups as given, each at all ratios."""
    loss: float
    """Of the full model, mean per token in nats."""
    weight: float
    """Predicted tokens that losses are means over; with a loss of the user's, sequences."""
    batches: int
    ratios: tuple[float, ...]
    gamma: float | str | None = "auto"
    """The share for :meth:`unprunable` where none is passed."""
    reused: float = 0.0
    """Share of layer passes that were not run, as activations were reused."""
    note: str = ""
    """Why nothing was reused; empty where something was."""

    @property
    def perplexity(self) -> float:
        """Of the full model."""
        return perplexity_of(self.loss)

    def ranking(self, by: Metric = "perplexity") -> tuple[Standing, ...]:
        """Node groups, the largest deviation first; of equal ones, that which comes first in the model.

        Over several ratios the deviation is the mean, ratios counting alike, of ``log(perplexity / full perplexity)``,
        so that one explosion of the perplexity at a high ratio does not drown the rest; for one ratio, the order is
        that of perplexities. ``by="kl"`` takes the mean of KL.

        Raises:
            PlanError: no KL was measured, or there is no such metric.
        """
        if by not in ("perplexity", "kl"):
            raise PlanError(message(f"there is no metric {by!r}", todo="choose 'perplexity' or 'kl'"))
        of: dict[str, list[Row]] = {}
        for row in self.rows:
            of.setdefault(row.name, []).append(row)
        found = []
        for name, rows in of.items():
            if by == "kl":
                values = [row.kl for row in rows if row.kl is not None]
                if len(values) < len(rows):
                    raise PlanError(message("no KL was measured", todo="pass kl=True, or rank by perplexity"))
            else:
                values = [row.loss - self.loss for row in rows]
            share = sum(row.share for row in rows) / len(rows)
            found.append(Standing(name, rows[0].kind, rows[0].layer, share, sum(values) / len(values)))
        return tuple(sorted(found, key=lambda standing: -standing.deviation))

    def unprunable(self, gamma: float | str | None = "default", by: Metric = "perplexity") -> tuple[str, ...]:
        """Names of the node groups that are to be left whole, the most crucial first.

        Args:
            gamma: the share of node groups, at least 0 and below 1, rounded down to a whole number of them, those
                with the largest deviation (equal ones in the order of the model); ``"auto"`` for those that are
                unlike their like (see :func:`shearfx.knowledge.crucial.unlike_their_like`); None for none.
                Default: the one that the analysis was asked for.
            by: which deviation.

        Source: LoRAShear, Algorithm 3, last line; the choice by itself is its future work.
        """
        share = self.gamma if gamma == "default" else gamma
        checked_gamma(share)
        if share is None:
            return ()
        ranking = self.ranking(by)
        if isinstance(share, str):
            picked = unlike_their_like([(s.name, s.kind, s.share, s.deviation) for s in ranking])
            return tuple(s.name for s in ranking if s.name in picked)
        return tuple(s.name for s in ranking[: count_of(share, len(ranking))])

    # -- as data ---------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Plain JSON; infinities are written as ``"inf"``."""
        data: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        data["rows"] = [{k: _plain(v) for k, v in row.items()} for row in data["rows"]]
        return json.dumps(data, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "") -> KnowledgeDistribution:
        """The reverse of :meth:`to_json`; ``where`` the text is from is for the error.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            rows = [
                Row(**({k: _number(v) for k, v in row.items()} | {"groups": tuple(row["groups"])}))
                for row in data.pop("rows")
            ]
            return cls(rows=tuple(rows), **(data | {"ratios": tuple(data["ratios"])}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"this is no knowledge distribution: {type(error).__name__}: {error}"
            raise CheckpointError(message(what, where=where, todo="analyse the model again")) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON; the file appears whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        replace_file(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KnowledgeDistribution:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: it cannot be read, or is something else.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(message(f"it cannot be read: {error}", where=str(path))) from error
        return cls.from_json(text, str(path))


def perplexity_of(loss: float) -> float:
    """``exp``, or inf where that is too much for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def count_of(gamma: float, total: int) -> int:
    """How many of so many node groups a share is: rounded down, but for what is lost in writing 0.1."""
    return min(math.floor(gamma * total + 1e-9), max(total - 1, 0))


def checked_gamma(gamma: float | str | None) -> None:
    """Raise PlanError unless it is a share, ``"auto"`` or None."""
    share = isinstance(gamma, (int, float)) and not isinstance(gamma, bool) and 0 <= gamma < 1
    if not (gamma is None or gamma == "auto" or share):
        what = f"gamma={gamma!r} is no share of node groups"
        raise PlanError(message(what, todo="pass a number from 0 to below 1, 'auto', or None"))


def _plain(value: Any) -> Any:
    return "inf" if value == math.inf else value


def _number(value: Any) -> Any:
    return math.inf if value == "inf" else value
