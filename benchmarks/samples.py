"""The pictures of dependency graphs that the README shows: tiny models of the tests, as SVG.

python -m benchmarks.samples
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import shearfx
from shearfx.viz.build import scene_of
from shearfx.viz.dot import to_svg
from tests import zoo

PLACE = Path(__file__).parent.parent / "viz" / "samples"
NAMES = {"llama": "llama", "gpt2": "gpt2", "resnet_hf": "resnet", "llama_lora": "llama-lora", "mixtral": "mixtral",
         "t5": "t5"}  # fmt: skip
"""Of the zoo, and of the files."""
SHORTER = {
    "t5": {"num_layers": 1, "num_decoder_layers": 1},
    "resnet_hf": {"hidden_sizes": [12, 20], "depths": [1, 1], "out_features": ["stage2"], "out_indices": [2]},
}
"""What is left out of them, so that pictures stay small."""


def main() -> None:
    """Draw them all."""
    for name, file in NAMES.items():
        model = zoo.get(name).build()
        module: Any = model.module
        if name in SHORTER:
            module = type(module)(type(module.config).from_dict(module.config.to_dict() | SHORTER[name])).eval()
        scene = scene_of(shearfx.trace(module, *model.args, **model.kwargs))
        (PLACE / f"{file}.svg").write_text(to_svg(scene), encoding="utf-8")


if __name__ == "__main__":
    main()
