"""Vision transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.zoo.entry import Family
from tests.zoo.huggingface import Inputs, hf, normal, pixels
from tests.zoo.text import ATTENTION, LAYERNORM

_STRUCTURES = ATTENTION | LAYERNORM
_VISION: Family = "vision"

#: Nine patches and a class token; three labels.
VIT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "image_size": 24,
    "patch_size": 8,
    "num_labels": 13,
}


def vision(
    name: str, model_class: str, inputs: Inputs, structures: frozenset[str] = _STRUCTURES, **config: Any
) -> None:
    """Register a vision model."""
    hf(name, _VISION, model_class, structures, inputs, **config)


def masked_pixels(module: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images of 24 pixels, and the noise that decides which of nine patches are masked (random otherwise)."""

    def call(batch: int, seed: int) -> dict[str, Any]:
        return {"pixel_values": normal(batch, 3, 24, 24, seed=seed), "noise": normal(batch, 9, seed=seed).sigmoid()}

    return call(2, 0), [call(4, 1)]


vision("vit", "ViTForImageClassification", pixels(24), **VIT)
# heads == head_dim == 8, and ffn == hidden
vision(
    "vit_square",
    "ViTForImageClassification",
    pixels(24),
    **{**VIT, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8},
)
vision("deit", "DeiTForImageClassificationWithTeacher", pixels(24), **VIT)
vision("beit", "BeitForImageClassification", pixels(24), **VIT, use_relative_position_bias=True)
vision(
    "dinov2",
    "Dinov2ForImageClassification",
    pixels(24),
    mlp_ratio=2,
    **{k: v for k, v in VIT.items() if k != "intermediate_size"},
)
vision(
    "dinov2_swiglu",
    "Dinov2ForImageClassification",
    pixels(24),
    mlp_ratio=2,
    use_swiglu_ffn=True,
    **{k: v for k, v in VIT.items() if k != "intermediate_size"},
)
vision("clip_vision", "CLIPVisionModelWithProjection", pixels(24), **VIT, projection_dim=20)
vision("siglip_vision", "SiglipForImageClassification", pixels(24), vision_config=VIT, num_labels=13)
vision(
    "vit_mae",
    "ViTMAEForPreTraining",
    masked_pixels,
    **VIT,
    decoder_hidden_size=36,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=4,
    decoder_intermediate_size=56,
    mask_ratio=0.5,
)
vision(
    "swin",
    "SwinForImageClassification",
    pixels(32),
    image_size=32,
    patch_size=4,
    embed_dim=24,
    depths=[2, 1],
    num_heads=[3, 4],
    window_size=4,
    mlp_ratio=1.5,
    num_labels=13,
)
vision(
    "swinv2",
    "Swinv2ForImageClassification",
    pixels(32),
    image_size=32,
    patch_size=4,
    embed_dim=24,
    depths=[2, 1],
    num_heads=[3, 4],
    window_size=4,
    mlp_ratio=1.5,
    num_labels=13,
)
vision(
    "segformer",
    "SegformerForImageClassification",
    pixels(32, 40),
    num_encoder_blocks=2,
    depths=[2, 1],
    sr_ratios=[2, 1],
    hidden_sizes=[24, 40],
    patch_sizes=[7, 3],
    strides=[4, 2],
    num_attention_heads=[3, 5],
    mlp_ratios=[2, 2],
    num_labels=13,
)
vision(
    "segformer_segmentation",
    "SegformerForSemanticSegmentation",
    pixels(32),
    num_encoder_blocks=2,
    depths=[1, 1],
    sr_ratios=[2, 1],
    hidden_sizes=[24, 40],
    patch_sizes=[7, 3],
    strides=[4, 2],
    num_attention_heads=[3, 5],
    mlp_ratios=[2, 2],
    decoder_hidden_size=28,
    num_labels=13,
)
vision(
    "pvt",
    "PvtForImageClassification",
    pixels(32),
    image_size=32,
    num_encoder_blocks=2,
    depths=[2, 1],
    sequence_reduction_ratios=[2, 1],
    hidden_sizes=[24, 40],
    patch_sizes=[4, 2],
    strides=[4, 2],
    num_attention_heads=[3, 5],
    mlp_ratios=[2, 3],
    num_labels=13,
)
vision(
    "levit",
    "LevitForImageClassification",
    pixels(64),
    ATTENTION | {"conv"},
    image_size=64,
    hidden_sizes=[24, 36, 48],
    num_attention_heads=[3, 4, 6],
    depths=[1, 1, 1],
    key_dim=[10, 10, 10],
    num_labels=13,
)
vision(
    "hiera",
    "HieraForImageClassification",
    pixels(32),
    image_size=[32, 32],
    embed_dim=20,
    depths=[1, 2],
    num_heads=[2, 4],
    mlp_ratio=2.2,
    num_query_pool=1,
    masked_unit_size=[4, 4],
    masked_unit_attention=[True, False],
    patch_stride=[4, 4],
    num_labels=13,
)
vision(
    "cvt",
    "CvtForImageClassification",
    pixels(32),
    ATTENTION | LAYERNORM,
    patch_sizes=[7, 3],
    patch_stride=[4, 2],
    patch_padding=[2, 1],
    embed_dim=[24, 40],
    num_heads=[3, 5],
    depth=[1, 2],
    mlp_ratio=[2.0, 2.0],
    attention_drop_rate=[0.0, 0.0],
    drop_rate=[0.0, 0.0],
    drop_path_rate=[0.0, 0.0],
    qkv_bias=[True, True],
    cls_token=[False, True],
    qkv_projection_method=["dw_bn", "dw_bn"],
    kernel_qkv=[3, 3],
    padding_kv=[1, 1],
    stride_kv=[2, 2],
    padding_q=[1, 1],
    stride_q=[1, 1],
    num_labels=13,
)
vision(
    "mobilevit",
    "MobileViTForImageClassification",
    pixels(32, 64),
    ATTENTION | {"conv"},
    image_size=32,
    hidden_sizes=[24, 32, 40],
    neck_hidden_sizes=[8, 12, 16, 20, 28, 36, 44],
    num_attention_heads=4,
    mlp_ratio=2.5,
    expand_ratio=2.0,
    num_labels=13,
)
vision(
    "detr",
    "DetrForObjectDetection",
    pixels(64, 96),
    ATTENTION | LAYERNORM | {"conv"},
    use_timm_backbone=False,
    use_pretrained_backbone=False,
    backbone=None,
    backbone_config={
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [12, 20],
        "depths": [1, 1],
        "layer_type": "basic",
        "out_features": ["stage2"],
    },
    d_model=48,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=6,
    decoder_attention_heads=4,
    encoder_ffn_dim=88,
    decoder_ffn_dim=76,
    num_queries=9,
    num_labels=13,
)
