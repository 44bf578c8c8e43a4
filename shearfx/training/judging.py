"""How well a language model predicts held-out windows, source by source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from shearfx.data import IGNORED, Examples
from shearfx.inference import device_of, evaluating
from shearfx.training.losses import token_loss


def losses_of(
    model: nn.Module,
    sources: Sequence[Examples],
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """The mean loss of every source in nats per token that counts; perplexity is its exponential.

    Args:
        model: a causal language model that returns ``logits``; its mode is restored.
        sources: held-out windows.
        batch_size: windows at a time.
        progress: called with (windows done, windows in all).
    """
    found: dict[str, float] = {}
    total = sum(len(source) for source in sources)
    done = 0
    device = device_of(model)
    with evaluating(model):
        for source in sources:
            loss, count = 0.0, 0
            for ids, labels in zip(source.ids.split(batch_size), source.labels.split(batch_size), strict=True):
                ids, labels = ids.to(device), labels.to(device)
                logits = model(input_ids=ids, use_cache=False).logits
                loss += float(token_loss(logits, labels, normalizer=1.0))
                count += int((labels[:, 1:] != IGNORED).sum())
                done += len(ids)
                if progress is not None:
                    progress(done, total)
            found[source.name] = loss / max(count, 1)
    return found
