"""Leave a model as it was, whatever its code keeps for itself while it runs.

Some models cache in ``forward`` (``self.cache[device] = bias``). What they cache while they are traced are symbols,
with which they cannot compute afterwards. Others install hooks when they first run, and keep a note that they did
(transformers, to collect hidden states): without the note, the hooks have to go as well.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore every attribute of every submodule afterwards, the contents of dicts, lists and sets included."""
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    contents = [(value, value.copy()) for _, attributes in before for value in attributes.values()
                if type(value) in (dict, OrderedDict, list, set)]  # fmt: skip
    try:
        yield
    finally:
        for module, attributes in before:
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)
        for holder, content in contents:
            holder.clear()
            (holder.extend if isinstance(holder, list) else holder.update)(content)
