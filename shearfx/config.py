"""Everything that a run of LoRAShear can be asked, by the same names in Python, YAML and on the command line.

The defaults are what won by measurement; :meth:`ShearConfig.paper` is the method as the paper prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from shearfx.config_checks import BUDGETS, check
from shearfx.config_values import Compensation, Gamma, LayerCount, LearningRate, Quantize, RoundTo, field_value
from shearfx.errors import PlanError, message


@dataclass(frozen=True)
class ShearConfig:
    """What :func:`shearfx.shear` does. All numbers are checked before anything is loaded."""

    # -- what is cut
    ratio: float = 0.2
    """Share of the parameters that goes, or of what ``unit`` says."""
    unit: Literal["params", "flops", "milliseconds"] = "params"
    """What the ratio counts: parameters, operations of the traced call, or the time of a generation on this machine,
    measured by kind of structure and by layer; what goes is then what costs the least loss per millisecond."""
    milliseconds: float | None = None
    """What a generation (128 tokens of a prompt, 24 new ones) may take on this machine afterwards, in the dtype of
    training; the ratio follows from it, and the unit."""
    of: Literal["all", "without_embeddings"] = "all"
    """What the ratio is a share of: all unique parameters, or those outside of embeddings."""
    kinds: tuple[str, ...] = ("ffn", "heads")
    """Kinds of groups that may be cut."""
    exclude: tuple[str, ...] = ()
    """Globs over module paths that stay whole."""
    scope: Literal["global", "uniform"] = "global"
    """Where it is cut: wherever it costs the least, or by equal counts in all layers, which a plain Hugging Face
    configuration can state, so that the result loads without shearfx."""
    layers: LayerCount = 0
    """Layers that go whole before anything is cut, those that are missed the least; their parameters count towards the
    ratio. "auto": as many as lose less than widths would."""
    branches: LayerCount = 0
    """Branches of layers that go whole before widths are cut, those that are missed the least: attentions lose all of
    their heads, feed-forward parts all of their width. "auto": as many as lose less than widths would. Where structures
    go at once."""
    missed_windows: int = 4
    """Windows that say how much layers and branches are missed; of 1024 tokens of text, or as many as the model has
    positions, as attention that reaches far back is hardly missed in short ones."""
    floor: float = 0.1
    """Share of every other group that stays at least."""
    round_to: RoundTo = "auto"
    """Dims of parameters that change become multiples of this, so that kernels are fast on them. "auto": of what suits
    their size, powers of two up to 64 in steps of a 32nd or a structure; 1 for any."""

    # -- data
    pretrain: tuple[str, ...] = ()
    """Sources of text: files, folders, or names on the hub; ``notes.parquet#body`` names the field with the text."""
    instruct: tuple[str, ...] = ()
    """Sources of instructions."""
    min_tokens: int = 0
    """Paragraphs of text with no more tokens are left out (the paper: 64)."""
    max_tokens: int | None = 2_000_000
    """Tokens read of each source."""
    sequence_length: int = 256
    """Tokens of a window."""
    check_tokenizer: bool = True
    """Refuse a full model that predicts a source worse than the counts of its tokens do: often not its tokenizer."""
    validation: int = 8
    """Windows of every source that are held out: judged by, never trained on."""

    # -- Algorithm 3
    gamma: Gamma = None
    """Share of the node groups that becomes unprunable; "auto" reads it off the deviations; None skips the analysis."""
    knowledge: str | None = None
    """File that `shearfx knowledge` wrote of the same model: what it measured is taken, with its gamma unless one is
    given."""
    knowledge_ratios: tuple[float, ...] = (0.5,)
    """Ratios at which every node group is pruned alone."""
    knowledge_windows: int = 8
    """Windows that deviations are measured on."""

    calibrate: Literal["none", "kinds", "groups"] = "none"
    """Scores are scaled to the losses that the analysis measures, by kind or by node group, so that what goes is what
    was measured to cost the least; where structures go at once."""

    # -- Algorithm 4
    saliency: str = "fisher"
    """Proxy that ranks structures."""
    scoring_windows: int = 32
    """Windows that a proxy looks at, where it looks at data; others for each cut or period."""
    scoring_labels: Literal["model", "text"] = "model"
    """The next tokens that Fisher information is about, where it is not told by LHSPG's own training: drawn from the
    whole model's word, so that it measures how far the model moves from itself; or the text's."""
    fitting_windows: int = 128
    """Windows that least squares looks at (compensation, and ``compensated_fisher``); no gradients, so that many are
    cheap, and fewer tokens than inputs of a layer would be fitted to the windows and not to the language."""
    prune_share: float = 0.0
    """Share of the training steps that LHSPG gets; 0 cuts at once and leaves all steps to recovery."""
    warmup: float = 0.2
    """Share of LHSPG's steps before the first period."""
    periods: int = 5
    """Periods of progressive pruning."""
    penalty: Literal["ramp", "constant"] = "ramp"
    """How redundant structures fade."""
    strength: float = 0.0
    """Lambda of the constant penalty."""
    half_space_eps: float = float("-inf")
    """Epsilon of the half-space test; -inf for none."""
    carrier: Literal["gates", "weights"] = "gates"
    """What fades: gates, or the weights themselves as in equation (2)."""
    merge: Literal["end", "period", "never"] = "end"
    """When adapters are merged into the weights: at the end, after each period of LHSPG, or never: then the cut model
    holds nothing but weights of the full one, compensated, and what was learnt, by LHSPG too, lies beside it as one
    PEFT adapter."""
    merge_moments: Literal["keep", "reset"] = "keep"
    """What each merge of ``merge: period`` does to the optimiser's moments of the adapters."""
    merge_warmup: int = 0
    """Steps over which the learning rate rises again after each such merge."""
    cuts: int = 3
    """Cuts in which the ratio is reached where structures go at once; each is scored on what the one before left."""
    compensation: Compensation = "least_squares"
    """What the layers that read what goes get for it: a fit by least squares to what they gave before (true), at
    once or while it fades; a bias that keeps their mean output (FLAP; at once only); or none (false)."""

    # -- Algorithm 5
    rounds: int = 4
    """Rounds of a recovery stage; each chooses its subset anew."""
    balance: float = 0.2
    """Share of a subset that is drawn evenly from all sources; 1 for uniform recovery, which learns more of sources
    that the full model did not know, and brings back less of what it lost (SmolLM2 at 20%, 51 thousand tokens, C4 and
    WikiText-2: 0.207 and -0.187 nats from the full model, uniform 0.235 and -0.307)."""
    tolerance: float = 0.01
    """Recovery stops when degradation falls by less than this share over two rounds."""
    distill: float = 0.5
    """Share of the full model's word in the loss."""

    # -- training
    tokens: int | None = 400_000
    """Tokens to train on, all stages together."""
    steps: int | None = None
    """Optimiser steps instead."""
    minutes: float | None = None
    """Wall clock of the whole run instead, reading the model aside; a run that goes on counts what it took before. How
    many steps LHSPG takes is settled when it begins; recovery ends in time."""
    rank: int = 16
    """Of the adapters."""
    alpha: int = 32
    """Numerator of the adapters' scaling."""
    dropout: float = 0.0
    """In front of the adapters."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers that get adapters, as PEFT names them."""
    lr: LearningRate = "auto"
    """Peak learning rate. "auto": 1.2 by the width of the embedding, 0.006 at most (see
    :func:`shearfx.pipeline.study.rate_for`)."""
    weight_decay: float = 0.0
    """Of AdamW."""
    batch_size: int = 4
    """Windows of a microbatch."""
    accumulate: int = 1
    """Microbatches of a step."""
    gradient_checkpointing: bool = False
    """Recompute activations: half as fast again, far less memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights while training; auto takes bfloat16 where the hardware computes in it, else float32."""
    quantize: Quantize = "none"
    """Form of the frozen weights while recovery trains; "4bit" is QLoRA, and needs bitsandbytes. What is learnt goes
    into the plain weights afterwards."""
    device: str = "auto"
    """One GPU where there is one, else the CPU."""
    seed: int = 0
    """Of all draws."""
    checkpoint_seconds: float = 60.0
    """What training that is killed loses at most; stages, cuts and measurements that are done are kept as they come."""
    recipe: Literal["default", "paper"] = "default"
    """Where the defaults come from."""

    def __post_init__(self) -> None:
        if isinstance(self.compensation, bool):  # as it was written before there were several
            object.__setattr__(self, "compensation", "least_squares" if self.compensation else "none")

    @classmethod
    def paper(cls, **changes: Any) -> ShearConfig:
        """The method as the paper prints it, where it says; changes on top.

        The ratio counts parameters, where the paper counts structures, and every group gives up an equal share, as its
        scores say nothing across layers: :meth:`shearfx.optim.LHSPG.paper` ranks over all groups, to the letter.
        """
        return dataclasses.replace(cls(**PAPER), **changes)

    @classmethod
    def of_mapping(cls, values: Mapping[str, Any]) -> ShearConfig:
        """From names and values, as they come from YAML or a command line.

        Raises:
            PlanError: an unknown name, a value of the wrong kind, or one out of range.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                near = [k for k in known if k.startswith(str(name)[:3])]
                todo = f"names are: {', '.join(near or known)}"
                raise PlanError(message(f"a run has no option {name!r}", where="configuration", todo=todo))
        recipe = values.get("recipe", "default")
        base: dict[str, Any] = dict(PAPER) if recipe == "paper" else {}
        if values.get("tokens") is None and any(values.get(name) is not None for name in BUDGETS):
            base["tokens"] = None
        made = {name: field_value(known[name].type, value, name) for name, value in values.items()}
        config = cls(**(base | made))
        config.check()
        return config

    @classmethod
    def read(cls, path: Path, **changes: Any) -> ShearConfig:
        """From a YAML file; changes on top.

        Raises:
            PlanError: the file is not there, no YAML, or holds what :meth:`of_mapping` refuses.
        """
        return cls.of_mapping(cls.values_of(path) | changes)

    @staticmethod
    def values_of(path: Path) -> dict[str, Any]:
        """Names and values that a YAML file states.

        Raises:
            PlanError: the file is not there, or no YAML of names and values.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            what = f"the configuration cannot be read: {' '.join(str(error).split())}"
            raise PlanError(message(what, where=str(path), todo="write `name: value` lines")) from error
        if not isinstance(values, dict):
            raise PlanError(message("the configuration holds no names", where=str(path), todo="write `name: value`"))
        return values

    def to_yaml(self) -> str:
        """All names and values, readable by :meth:`read`."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    @property
    def counts(self) -> Literal["params", "flops", "milliseconds"]:
        """The unit of the budget."""
        return self.unit if self.milliseconds is None else "milliseconds"

    def check(self) -> None:
        """Raise PlanError unless the values make sense, each and together."""
        check(self)


PAPER: dict[str, Any] = {
    "recipe": "paper", "min_tokens": 64, "gamma": 0.2, "saliency": "combined", "prune_share": 0.5,
    "half_space_eps": 0.0, "carrier": "weights", "merge": "period", "cuts": 1, "compensation": "none", "distill": 0.0,
    "round_to": 1,
}  # fmt: skip
"""What the paper says, or its authors' code; it gives no numbers for gamma, the ratios, periods or steps."""
