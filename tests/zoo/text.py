"""Causal language models with dense feed-forward blocks."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from tests.zoo.huggingface import VOCAB, hf, tokens

ATTENTION = frozenset({"ffn", "heads", "head_dim", "value_dim"})
GROUPED = ATTENTION | {"query_group"}
RMS = frozenset({"hidden_rms"})
LAYERNORM = frozenset({"hidden_layernorm"})

#: The usual names of the sizes. heads * head_dim is 60, not the hidden 48, where a config can say so.
MHA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = {**MHA, "num_key_value_heads": 3}
WIDE = {**GQA, "head_dim": 10}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 6,
    "n_inner": 88,
    "n_positions": 61,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def causal(name: str, model_class: str, structures: frozenset[str], **config: Any) -> None:
    """Register a causal language model."""
    hf(name, "text", model_class, structures, tokens, causal=True, **config)


def lora(module: nn.Module) -> nn.Module:
    """Wrap every linear layer with LoRA of rank 4 (`randomize` fills B, which starts at zero)."""
    config = LoraConfig(r=4, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(module, config)


causal("llama", "LlamaForCausalLM", GROUPED | RMS, **GQA)
causal("llama_wide", "LlamaForCausalLM", GROUPED | RMS, **WIDE, attention_bias=True, mlp_bias=True)
causal("llama_mha_tied", "LlamaForCausalLM", ATTENTION | RMS, **MHA, tie_word_embeddings=True)
# heads == head_dim == group == 4 and ffn == hidden: every wrong guess about which size is which passes a shape check
causal(
    "llama_square",
    "LlamaForCausalLM",
    GROUPED | RMS,
    **{**GQA, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2},
)
causal("mistral", "MistralForCausalLM", GROUPED | RMS, **WIDE, sliding_window=4)
causal("qwen2", "Qwen2ForCausalLM", GROUPED | RMS, **GQA)
causal("qwen3", "Qwen3ForCausalLM", GROUPED | RMS, **WIDE)
causal(
    "gemma",
    "GemmaForCausalLM",
    frozenset({"ffn", "query_group", "head_dim", "value_dim"}) | RMS,
    **{**WIDE, "num_key_value_heads": 1},
)
causal("gemma2", "Gemma2ForCausalLM", GROUPED | RMS, **WIDE, query_pre_attn_scalar=14, sliding_window=4)
causal(
    "gemma3",
    "Gemma3ForCausalLM",
    GROUPED | RMS,
    **WIDE,
    query_pre_attn_scalar=14,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"],
)
causal("phi", "PhiForCausalLM", ATTENTION | LAYERNORM, **MHA, partial_rotary_factor=0.5)
causal("phi3", "Phi3ForCausalLM", GROUPED | RMS, **GQA)
causal("gpt2", "GPT2LMHeadModel", ATTENTION | LAYERNORM, **GPT2)
# head_dim == heads == 6
causal("gpt2_square", "GPT2LMHeadModel", ATTENTION | LAYERNORM, **{**GPT2, "n_embd": 36, "n_inner": 36})
causal(
    "gpt_neo",
    "GPTNeoForCausalLM",
    ATTENTION | LAYERNORM,
    vocab_size=VOCAB,
    hidden_size=48,
    num_layers=2,
    attention_types=[[["global", "local"], 1]],
    num_heads=6,
    intermediate_size=88,
    window_size=4,
    max_position_embeddings=61,
    bos_token_id=1,
    eos_token_id=2,
)
causal("gpt_neox", "GPTNeoXForCausalLM", ATTENTION | LAYERNORM, **MHA, rotary_pct=0.5)
causal("gpt_neox_sequential", "GPTNeoXForCausalLM", ATTENTION | LAYERNORM, **MHA, use_parallel_residual=False)
causal("gptj", "GPTJForCausalLM", ATTENTION | LAYERNORM, **GPT2, rotary_dim=4)
causal(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    frozenset({"ffn", "query_group", "head_dim", "value_dim"}) | LAYERNORM,
    **GPT2,
)
causal("gpt_bigcode_mha", "GPTBigCodeForCausalLM", ATTENTION | LAYERNORM, **GPT2, multi_query=False)
causal(
    "opt",
    "OPTForCausalLM",
    ATTENTION | LAYERNORM,
    vocab_size=VOCAB,
    hidden_size=48,
    num_hidden_layers=2,
    ffn_dim=88,
    max_position_embeddings=61,
    num_attention_heads=6,
    word_embed_proj_dim=48,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
causal(
    "opt_projected",
    "OPTForCausalLM",
    ATTENTION | LAYERNORM,
    vocab_size=VOCAB,
    hidden_size=48,
    num_hidden_layers=2,
    ffn_dim=88,
    max_position_embeddings=61,
    num_attention_heads=6,
    word_embed_proj_dim=28,
    do_layer_norm_before=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
causal(
    "bloom",
    "BloomForCausalLM",
    ATTENTION | LAYERNORM,
    vocab_size=VOCAB,
    hidden_size=48,
    n_layer=2,
    n_head=6,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
causal(
    "mpt",
    "MptForCausalLM",
    ATTENTION | LAYERNORM,
    vocab_size=VOCAB,
    d_model=48,
    n_heads=6,
    n_layers=2,
    max_seq_len=61,
    bos_token_id=1,
    eos_token_id=2,
)
_FALCON = {**MHA, "ffn_hidden_size": 88, "num_kv_heads": 3}
del _FALCON["intermediate_size"]
causal(
    "falcon_7b",
    "FalconForCausalLM",
    frozenset({"ffn", "query_group", "head_dim", "value_dim"}) | LAYERNORM,
    **_FALCON,
    new_decoder_architecture=False,
    multi_query=True,
    parallel_attn=True,
)
causal("falcon_40b", "FalconForCausalLM", GROUPED | LAYERNORM, **_FALCON, new_decoder_architecture=True)
causal(
    "falcon_rw_alibi",
    "FalconForCausalLM",
    ATTENTION | LAYERNORM,
    **{**_FALCON, "num_kv_heads": 6},
    alibi=True,
    multi_query=False,
    parallel_attn=False,
    bias=True,
)
causal("stablelm", "StableLmForCausalLM", GROUPED | LAYERNORM, **GQA, partial_rotary_factor=0.5, use_qkv_bias=True)
causal(
    "stablelm_qk_layernorm",
    "StableLmForCausalLM",
    frozenset({"ffn", "heads", "query_group", "value_dim"}) | LAYERNORM,
    **GQA,
    qk_layernorm=True,
    use_parallel_residual=True,
)
causal("starcoder2", "Starcoder2ForCausalLM", GROUPED | LAYERNORM, **GQA)
causal("olmo", "OlmoForCausalLM", GROUPED | LAYERNORM, **GQA, clip_qkv=2.0)
causal("olmo2", "Olmo2ForCausalLM", GROUPED | RMS, **GQA)
causal("cohere", "CohereForCausalLM", GROUPED | LAYERNORM, **GQA, logit_scale=0.25)
causal(
    "cohere_qk_norm",
    "CohereForCausalLM",
    frozenset({"ffn", "heads", "query_group", "value_dim"}) | LAYERNORM,
    **GQA,
    logit_scale=0.25,
    use_qk_norm=True,
)
causal(
    "granite",
    "GraniteForCausalLM",
    GROUPED | RMS,
    **GQA,
    embedding_multiplier=1.5,
    logits_scaling=2.0,
    residual_multiplier=0.5,
    attention_multiplier=0.3,
)
causal("smollm3", "SmolLM3ForCausalLM", GROUPED | RMS, **GQA, no_rope_layers=[1, 0])
causal("llama_lora", "LlamaForCausalLM", GROUPED | RMS, **GQA, after=lora)
causal("gpt2_lora", "GPT2LMHeadModel", ATTENTION | LAYERNORM, **GPT2, after=lora)
