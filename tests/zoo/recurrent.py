"""Language models with state-space or recurrent blocks, alone or between attention."""

from __future__ import annotations

from tests.zoo.huggingface import VOCAB
from tests.zoo.text import GQA, GROUPED, RMS, causal

_SSM = frozenset({"ssm"})

# inner width 96 = 2 * 48, state 10, rank of the time step 4
causal(
    "mamba",
    "MambaForCausalLM",
    _SSM | RMS,
    attention=False,
    vocab_size=VOCAB,
    hidden_size=48,
    state_size=10,
    num_hidden_layers=2,
    time_step_rank=4,
    conv_kernel=3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
causal(
    "mamba2",
    "Mamba2ForCausalLM",
    _SSM | RMS,
    attention=False,
    vocab_size=VOCAB,
    hidden_size=48,
    state_size=10,
    num_hidden_layers=2,
    num_heads=6,
    head_dim=16,
    n_groups=2,
    chunk_size=4,
    conv_kernel=3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
causal(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    _SSM | {"ffn", "query_group", "head_dim", "value_dim"} | RMS,
    **{**GQA, "num_key_value_heads": 1},
    lru_width=60,
    attention_window_size=5,
    block_types=["recurrent", "attention"],
)
causal(
    "jamba",
    "JambaForCausalLM",
    _SSM | GROUPED | {"expert"} | RMS,
    **GQA,
    num_experts=5,
    num_experts_per_tok=2,
    expert_layer_period=2,
    expert_layer_offset=1,
    attn_layer_period=2,
    attn_layer_offset=1,
    use_mamba_kernels=False,
    mamba_d_state=10,
    mamba_dt_rank=4,
    mamba_d_conv=3,
)
causal(
    "bamba",
    "BambaForCausalLM",
    _SSM | GROUPED | RMS,
    **GQA,
    attn_layer_indices=[1],
    mamba_n_heads=6,
    mamba_d_head=16,
    mamba_n_groups=2,
    mamba_d_state=10,
    mamba_d_conv=3,
    mamba_chunk_size=4,
    partial_rotary_factor=0.5,
)
causal(
    "falcon_h1",
    "FalconH1ForCausalLM",
    _SSM | GROUPED | RMS,
    **GQA,
    mamba_d_ssm=60,
    mamba_n_heads=6,
    mamba_d_head=10,
    mamba_n_groups=2,
    mamba_d_state=12,
    mamba_d_conv=3,
    mamba_chunk_size=4,
)
causal(
    "lfm2",
    "Lfm2ForCausalLM",
    GROUPED | {"conv"} | RMS,
    **GQA,
    layer_types=["conv", "full_attention"],
    block_auto_adjust_ff_dim=False,
)
causal(
    "rwkv",
    "RwkvForCausalLM",
    frozenset({"ffn", "ssm", "hidden_layernorm"}),
    attention=False,
    vocab_size=VOCAB,
    hidden_size=48,
    attention_hidden_size=60,
    intermediate_size=88,
    num_hidden_layers=2,
    context_length=61,
    bos_token_id=1,
    eos_token_id=2,
)
