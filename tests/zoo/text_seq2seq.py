"""Encoder-decoder language models."""

from __future__ import annotations

from typing import Any

from tests.zoo.huggingface import VOCAB, encoder_decoder_tokens, hf
from tests.zoo.text import ATTENTION, LAYERNORM

_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 88,
    "num_layers": 2,
    "num_heads": 6,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 9,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 88,
    "decoder_ffn_dim": 76,
    "max_position_embeddings": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": 2,
}


def seq2seq(name: str, model_class: str, structures: frozenset[str], **config: Any) -> None:
    """Register an encoder-decoder."""
    hf(name, "text", model_class, structures, encoder_decoder_tokens, **config)


# The hidden width is that of the encoder's output, which the model returns: it cannot be cut.
seq2seq("t5", "T5ForConditionalGeneration", ATTENTION, **_T5)
seq2seq(
    "t5_gated_untied",
    "T5ForConditionalGeneration",
    ATTENTION,
    **_T5,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
seq2seq("mt5", "MT5ForConditionalGeneration", ATTENTION, **_T5)
seq2seq("umt5", "UMT5ForConditionalGeneration", ATTENTION, **_T5)
seq2seq("bart", "BartForConditionalGeneration", ATTENTION | LAYERNORM, **_BART)
seq2seq("pegasus", "PegasusForConditionalGeneration", ATTENTION | LAYERNORM, **_BART)
seq2seq("marian", "MarianMTModel", ATTENTION | LAYERNORM, **_BART, decoder_vocab_size=VOCAB)
