"""Bidirectional text encoders with a masked-language-model head (so that the residual width is not an output)."""

from __future__ import annotations

from typing import Any

from tests.zoo.huggingface import VOCAB, hf, tokens
from tests.zoo.text import ATTENTION, LAYERNORM, MHA

_STRUCTURES = ATTENTION | LAYERNORM


def encoder(name: str, model_class: str, structures: frozenset[str] = _STRUCTURES, **config: Any) -> None:
    """Register a bidirectional encoder."""
    hf(name, "text", model_class, structures, tokens, **config)


encoder("bert", "BertForMaskedLM", **MHA)
# heads == head_dim == 8, and ffn == hidden
encoder(
    "bert_square", "BertForMaskedLM", **{**MHA, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8}
)
encoder("roberta", "RobertaForMaskedLM", **MHA)
encoder(
    "distilbert",
    "DistilBertForMaskedLM",
    vocab_size=VOCAB,
    dim=48,
    hidden_dim=88,
    n_layers=2,
    n_heads=6,
    max_position_embeddings=61,
    pad_token_id=0,
)
# one set of layer weights, used twice
encoder("albert", "AlbertForMaskedLM", **MHA, embedding_size=20)
encoder("electra", "ElectraForMaskedLM", **MHA, embedding_size=20)
encoder(
    "deberta_v2",
    "DebertaV2ForMaskedLM",
    **MHA,
    relative_attention=True,
    pos_att_type=["c2p", "p2c"],
    position_biased_input=False,
    share_att_key=True,
    position_buckets=5,
    norm_rel_ebd="layer_norm",
)
encoder("mpnet", "MPNetForMaskedLM", **MHA)
encoder(
    "xlnet",
    "XLNetLMHeadModel",
    vocab_size=VOCAB,
    d_model=48,
    n_layer=2,
    n_head=6,
    d_inner=88,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    use_mems_eval=False,
)
encoder(
    "modernbert",
    "ModernBertForMaskedLM",
    **MHA,
    local_attention=6,
    cls_token_id=1,
    sep_token_id=2,
    layer_types=["full_attention", "sliding_attention"],
)
encoder(
    "squeezebert",
    "SqueezeBertForMaskedLM",
    **MHA,
    embedding_size=48,
    q_groups=2,
    k_groups=2,
    v_groups=2,
    post_attention_groups=1,
    intermediate_groups=2,
    output_groups=2,
)
# does not export: branches on whether the mask holds any global token (`is_global_attn = ....any().item()`)
encoder("longformer", "LongformerForMaskedLM", **MHA, attention_window=[4, 4], exports=False)
encoder("big_bird", "BigBirdForMaskedLM", **MHA, attention_type="original_full")
encoder("clip_text", "CLIPTextModelWithProjection", **MHA, projection_dim=20)
encoder("siglip_text", "SiglipTextModel", **MHA, projection_size=20)
# Fourier transform over the hidden dim instead of attention: the residual width is a transform axis
encoder(
    "fnet",
    "FNetForMaskedLM",
    frozenset({"ffn"}),
    attention=False,
    **{k: v for k, v in MHA.items() if k != "num_attention_heads"},
)
