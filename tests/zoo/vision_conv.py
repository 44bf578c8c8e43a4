"""Convolutional vision models of Hugging Face."""

from __future__ import annotations

from typing import Any

from tests.zoo.huggingface import hf, pixels

_CONV = frozenset({"conv"})
_BLOCK = frozenset({"ffn", "hidden_layernorm"})


def convolutional(name: str, model_class: str, structures: frozenset[str] = _CONV, **config: Any) -> None:
    """Register a model without attention, for images of 32 (and 48) pixels, 13 labels."""
    hf(name, "vision", model_class, structures, pixels(32, 48), attention=False, num_labels=13, **config)


convolutional(
    "convnext",
    "ConvNextForImageClassification",
    _BLOCK,
    num_stages=2,
    hidden_sizes=[12, 20],
    depths=[2, 1],
    patch_size=4,
)
convolutional(
    "convnextv2",
    "ConvNextV2ForImageClassification",
    _BLOCK,
    num_stages=2,
    hidden_sizes=[12, 20],
    depths=[2, 1],
    patch_size=4,
)
convolutional(
    "resnet_hf",
    "ResNetForImageClassification",
    embedding_size=8,
    hidden_sizes=[12, 20],
    depths=[2, 2],
    layer_type="basic",
)
convolutional(
    "resnet_hf_bottleneck",
    "ResNetForImageClassification",
    embedding_size=8,
    hidden_sizes=[24, 40],
    depths=[2, 1],
    layer_type="bottleneck",
)
convolutional(
    "regnet",
    "RegNetForImageClassification",
    embedding_size=8,
    hidden_sizes=[12, 20],
    depths=[2, 1],
    groups_width=4,
    layer_type="y",
)
convolutional("bit", "BitForImageClassification", embedding_size=8, hidden_sizes=[24, 40], depths=[2, 1], num_groups=2)
convolutional("mobilenet_v1", "MobileNetV1ForImageClassification", depth_multiplier=0.1)
convolutional(
    "mobilenet_v2",
    "MobileNetV2ForImageClassification",
    depth_multiplier=0.15,
    depth_divisible_by=4,
    min_depth=4,
    finegrained_output=True,
)
# the width coefficient rounds the channels listed to 8; 16, 24, 40 and the hard-coded 1280 of the head to 320
convolutional(
    "efficientnet",
    "EfficientNetForImageClassification",
    image_size=32,
    width_coefficient=0.25,
    depth_coefficient=1.0,
    depth_divisor=4,
    kernel_sizes=[3, 3, 5],
    in_channels=[32, 64, 96],
    out_channels=[64, 96, 160],
    strides=[1, 2, 2],
    num_block_repeats=[1, 2, 1],
    expand_ratios=[1, 4, 4],
    hidden_dim=320,
)
convolutional(
    "poolformer",
    "PoolFormerForImageClassification",
    _BLOCK,
    num_encoder_blocks=2,
    depths=[2, 1],
    hidden_sizes=[12, 20],
    patch_sizes=[7, 3],
    strides=[4, 2],
    padding=[2, 1],
)
convolutional(
    "focalnet",
    "FocalNetForImageClassification",
    _BLOCK,
    image_size=32,
    embed_dim=12,
    depths=[2, 1],
    focal_levels=[2, 2],
    focal_windows=[3, 3],
    use_layerscale=True,
    mlp_ratio=2.5,
)
