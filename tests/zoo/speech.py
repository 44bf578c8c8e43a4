"""Speech models: recognisers over raw audio or spectrograms."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.zoo.huggingface import BATCH, LENGTH, OTHER_BATCH, VOCAB, Inputs, hf, normal, token_ids
from tests.zoo.text import ATTENTION, LAYERNORM

_STRUCTURES = ATTENTION | LAYERNORM | {"conv"}

#: Three strided convolutions over the waveform, then two layers.
_WAVE: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "conv_dim": [12, 20, 28],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def wave(module: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`input_values`: (batch, samples)."""
    return {"input_values": normal(2, 200)}, [{"input_values": normal(OTHER_BATCH, 260, seed=1)}]


def spectrogram(mels: int, frames: int, other: int, decoder: bool = True, transpose: bool = False) -> Inputs:
    """`input_features`: (batch, mels, frames), or (batch, frames, mels) if `transpose`; decoder tokens beside them."""

    def features(batch: int, length: int, tokens: int, seed: int) -> dict[str, Any]:
        shape = (batch, length, mels) if transpose else (batch, mels, length)
        values = {"input_features" if decoder else "input_values": normal(*shape, seed=seed)}
        return {**values, "decoder_input_ids": token_ids(batch, tokens, seed)} if decoder else values

    def inputs(module: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return features(BATCH, frames, LENGTH, 0), [features(OTHER_BATCH, other, 11, 1)]

    return inputs


def speech(
    name: str, model_class: str, inputs: Inputs = wave, structures: frozenset[str] = _STRUCTURES, **config: Any
) -> None:
    """Register a speech model."""
    hf(name, "speech", model_class, structures, inputs, **config)


_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 88,
    "decoder_ffn_dim": 76,
    "max_target_positions": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}

# the encoder takes spectrograms of one length only
speech(
    "whisper",
    "WhisperForConditionalGeneration",
    spectrogram(14, 36, 36),
    ATTENTION | LAYERNORM,
    **_SEQ2SEQ,
    num_mel_bins=14,
    max_source_positions=18,
)
speech(
    "speech_to_text",
    "Speech2TextForConditionalGeneration",
    spectrogram(14, 36, 44, transpose=True),
    **_SEQ2SEQ,
    input_feat_per_channel=14,
    conv_channels=20,
    max_source_positions=61,
    num_conv_layers=2,
)
speech("wav2vec2", "Wav2Vec2ForCTC", **_WAVE)
speech(
    "wav2vec2_stable", "Wav2Vec2ForCTC", **_WAVE, do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True
)
speech("hubert", "HubertForCTC", **_WAVE)
speech("unispeech", "UniSpeechForCTC", **_WAVE)
# WavLM reads the hidden width a second time as heads (the gate of its position bias): its heads cannot be cut alone.
speech("wavlm", "WavLMForCTC", wave, _STRUCTURES - {"heads"}, **_WAVE, num_buckets=12, max_bucket_distance=9)
speech("sew", "SEWForCTC", **_WAVE, squeeze_factor=2)
speech("data2vec_audio", "Data2VecAudioForCTC", **{**_WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5})
speech(
    "ast",
    "ASTForAudioClassification",
    spectrogram(24, 20, 20, decoder=False, transpose=True),
    ATTENTION | LAYERNORM,
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=2,
    num_attention_heads=6,
    patch_size=8,
    frequency_stride=6,
    time_stride=6,
    max_length=20,
    num_mel_bins=24,
    num_labels=13,
)
