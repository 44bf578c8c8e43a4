"""Causal language models with routed experts."""

from __future__ import annotations

from tests.zoo.text import ATTENTION, GQA, GROUPED, MHA, RMS, WIDE, causal

EXPERT = frozenset({"expert"})
#: Routed experts only: no dense feed-forward block.
_ROUTED = GROUPED - {"ffn"} | EXPERT | RMS

causal("mixtral", "MixtralForCausalLM", _ROUTED, **WIDE, num_local_experts=5, num_experts_per_tok=2)
causal(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    GROUPED | EXPERT | RMS,
    **GQA,
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=28,
    shared_expert_intermediate_size=36,
    decoder_sparse_step=2,
)
causal(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    GROUPED | EXPERT | RMS,
    **WIDE,
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=28,
    decoder_sparse_step=2,
    norm_topk_prob=True,
)
causal("olmoe", "OlmoeForCausalLM", _ROUTED, **GQA, num_experts=5, num_experts_per_tok=2)
causal(
    "granitemoe",
    "GraniteMoeForCausalLM",
    _ROUTED,
    **GQA,
    num_local_experts=5,
    num_experts_per_tok=2,
    attention_multiplier=0.3,
)
causal(
    "phimoe",
    "PhimoeForCausalLM",
    GROUPED - {"ffn"} | EXPERT | {"hidden_layernorm"},
    **GQA,
    num_local_experts=5,
    num_experts_per_tok=2,
)
causal(
    "gpt_oss",
    "GptOssForCausalLM",
    _ROUTED,
    **WIDE,
    num_local_experts=5,
    num_experts_per_tok=2,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"],
)
_MLA = {
    **MHA,
    "num_key_value_heads": 6,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 4,
    "v_head_dim": 14,
    "moe_intermediate_size": 28,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
causal("deepseek_v2", "DeepseekV2ForCausalLM", ATTENTION | EXPERT | RMS, **_MLA, q_lora_rank=24, n_routed_experts=5)
causal(
    "deepseek_v2_lite",
    "DeepseekV2ForCausalLM",
    ATTENTION | EXPERT | RMS,
    **_MLA,
    q_lora_rank=None,
    n_routed_experts=6,
    topk_method="group_limited_greedy",
    n_group=3,
    topk_group=2,
)
causal(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    ATTENTION | EXPERT | RMS,
    **_MLA,
    q_lora_rank=24,
    n_routed_experts=6,
    n_group=3,
    topk_group=2,
)
