"""Names of sources: what losses and reports are told apart by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def distinct(names: Sequence[str], specs: Sequence[str]) -> list[str]:
    """The names, but for those that several sources have: these get the file's, with its folder if need be.

    Args:
        names: of the sources.
        specs: what each was opened by.

    >>> distinct(["train", "train", "notes"], ["a/train.txt", "b/train.jsonl", "notes.txt"])
    ['train.txt', 'train.jsonl', 'notes']
    >>> distinct(["train", "train"], ["a/train.txt", "b/train.txt"])
    ['a/train.txt', 'b/train.txt']
    >>> distinct(["train", "train"], ["train.txt", "train.txt"])
    ['train', 'train (2)']
    """
    often = {name for name, count in Counter(names).items() if count > 1}
    for longer in (lambda path: path.name, lambda path: "/".join(path.parts[-2:])):
        tried = [longer(Path(spec)) if name in often else name for name, spec in zip(names, specs, strict=True)]
        if len(set(tried)) == len(tried):
            return tried
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
