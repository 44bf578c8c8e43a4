"""Models of the zoo with batches, for what analyses them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

import shearfx
from shearfx.knowledge import KnowledgeDistribution, knowledge_distribution
from shearfx.precision import double_precision
from shearfx.selection import Selection, select
from tests import zoo

QUICK = ["llama", "gpt2", "t5", "cnn_resnet"]
SLOW = ["llama_lora", "mixtral", "resnet_hf"]
MODELS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
RATIOS = (0.3, 0.6)
slowly = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def classified(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """A loss of the user's: the first classes' cross entropy."""
    given = {name: value for name, value in batch.items() if name != "targets"}
    output = model(given["x"]) if "x" in given else model(**given)
    logits = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits.flatten(1), batch["targets"])


class Case:
    """A model in float64 with two batches for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        built = zoo.get(name).build().to(torch.float64)
        self.model = built.module
        self.graph = shearfx.trace(self.model, *built.args, **built.kwargs)
        self.tied = select(self.graph, self.model, Selection(form="fx"))[0]
        draw = torch.Generator().manual_seed(0)
        self.scores = {g.name: torch.rand(g.size, generator=draw) for t in self.tied for g in t.groups}
        self.loss: Callable[[nn.Module, Any], Tensor] | None = None
        self.batches: list[Any] = []
        for size in (2, 3):
            if name in ("cnn_resnet", "resnet_hf"):
                self.loss = classified
                key, image = ("x", built.args[0]) if built.args else ("pixel_values", built.kwargs["pixel_values"])
                x = torch.randn(size, *image.shape[1:], dtype=torch.float64, generator=draw)
                self.batches.append({key: x, "targets": torch.randint(4, (size,), generator=draw)})
                continue
            ids = torch.randint(3, 60, (size, 7 + size), generator=draw)
            if name == "t5":
                labels = torch.randint(3, 60, (size, 6), generator=draw)
                labels[0, 4:] = -100
                start = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1].clamp(min=0)], 1)
                self.batches.append({"input_ids": ids, "decoder_input_ids": start, "labels": labels})
            elif size == 3:
                mask = torch.ones_like(ids)
                mask[1, -2:] = 0
                self.batches.append({"input_ids": ids, "attention_mask": mask})
            else:
                self.batches.append(ids)

    def analyse(self, **options: Any) -> KnowledgeDistribution:
        options = {"tied": self.tied, "scores": self.scores, "ratios": RATIOS, "loss": self.loss, **options}
        with double_precision():
            return knowledge_distribution(self.graph, self.model, self.batches, **options)

    def naive(self, model: nn.Module) -> tuple[float, list[Tensor]]:
        """The mean loss, and the distributions that go into the mean KL."""
        losses, weight, found = 0.0, 0.0, []
        with torch.no_grad(), double_precision():
            for batch in self.batches:
                if self.loss is not None:
                    count = float(len(batch["targets"]))
                    losses, weight = losses + float(self.loss(model, batch)) * count, weight + count
                    given = {k: v for k, v in batch.items() if k != "targets"}
                    output = model(given["x"]) if "x" in given else model(**given)
                    logits = output if isinstance(output, Tensor) else output.logits
                    found.append(F.log_softmax(logits.flatten(0, -2), -1))
                    continue
                batch = batch if isinstance(batch, dict) else {"input_ids": batch}
                logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
                if "labels" in batch:
                    targets = batch["labels"]
                else:
                    targets, logits = batch["input_ids"][:, 1:], logits[:, :-1]
                    if "attention_mask" in batch:
                        targets = targets.masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
                logits, targets = logits[targets != -100], targets[targets != -100]
                losses += float(F.cross_entropy(logits, targets, reduction="sum"))
                weight += len(targets)
                found.append(F.log_softmax(logits, -1))
        return losses / weight, found


case = functools.cache(Case)


@functools.cache
def analysed(name: str) -> KnowledgeDistribution:
    return case(name).analyse()


def state(model: nn.Module) -> list[Any]:
    found: list[Any] = [(name, t.clone()) for name, t in model.state_dict(keep_vars=False).items()]
    for path, module in model.named_modules():
        own = module.__dict__.get("forward")
        found.append((path, own, module.training, dict(module._forward_hooks), dict(module._forward_pre_hooks)))
    return found


def assert_same(model: nn.Module, before: list[Any]) -> None:
    for old, new in zip(before, state(model), strict=True):
        assert len(old) != 2 or torch.equal(old[1], new[1]), old[0]
        assert len(old) == 2 or old == new
