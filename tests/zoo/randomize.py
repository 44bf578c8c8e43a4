"""Random values in which errors cannot hide, and attention that is neither uniform nor one-hot.

Freshly initialised models are too tame to test with: zero biases, unit norm weights, a softmax so flat that a wrong
head makes no difference. Matching parameter names is fine here: this is test code, not the compiler.
"""

from __future__ import annotations

import math
import re
import zlib

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from tests.zoo.entry import Model
from tests.zoo.sharpness import FACTORS

#: State-space, decay, temperature and gate parameters with a range of validity: only jittered.
_KEEP_RANGE = re.compile(
    r"(A_log|dt_bias|\.D|dt_proj\.bias|time_decay|time_first|time_mix\w*|recurrent_param|logit_scale|temperature)$"
)
#: Query and key projections (fused ones too), and the norms after them.
_QUERY_KEY = re.compile(
    r"(^|[._])(q|k|q_?proj|k_?proj|query|key|query_proj|key_proj|q_lin|k_lin|qkv|qkv_proj|c_attn|att_proj|Wqkv"
    r"|query_key_value|queries_keys_values|queries|keys|q_b_proj|q_a_layernorm|query_global|key_global"
    r"|in_proj_weight|in_proj_bias|projection_query|projection_key|to_q|to_k|to_qkv)"
    r"(\.(linear|base_layer|weight|bias|dense))*$"
)
_QUERY_KEY_NORM = re.compile(r"(q|k|query|key)_?(layer)?norm(\.norms\.\d+)?\.weight$")


def finish(name: str, model: Model) -> Model:
    """Randomise and sharpen a freshly built model: seeded by its entry's name, with the recorded factor."""
    randomize(model.module, seed=zlib.crc32(name.encode()))
    scale_query_key(model.module, FACTORS.get(name, 1.0))
    model.module.eval()
    return model


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Give every floating parameter and statistic of `module` a random value, in place.

    Norm weights are about 1 +- 0.2 (about 0 where the class adds the 1 itself, seen by its zero initialisation),
    biases about +- 0.2, projections scaled by fan-in so that activations stay O(1), running means random, running
    variances in 0.5..1.5. Rotary frequencies, sinusoidal tables (which need no gradient) and integers stay.
    """
    generator = Generator().manual_seed(seed)
    adapted = hasattr(module, "peft_config")  # PEFT freezes the base: frozen does not mean "a table" there
    seen: set[int] = set()
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            if parameter.requires_grad or adapted:
                parameter.copy_(_values(f"{path}.{name}", owner, parameter, generator))
        for name, buffer in owner.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.copy_(0.3 * _normal(buffer.shape, generator))
            elif name == "running_var":
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
        if isinstance(owner, ParametrizationList) and hasattr(owner, "original1"):
            _weight_norm(owner, generator)


def _normal(shape: torch.Size, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _values(name: str, owner: nn.Module, old: Tensor, generator: Generator) -> Tensor:
    """New values for the parameter `name` (full path) of `owner`, in float64."""
    noise = _normal(old.shape, generator)
    if _KEEP_RANGE.search(name):
        return old.double() + 0.1 * noise * old.double().abs().clamp(max=1.0)
    if name.endswith("bias") and old.ndim == 1:
        return 0.2 * noise
    if old.ndim <= 1 or "norm" in type(owner).__name__.lower():
        if "norm" in type(owner).__name__.lower() and not old.any():
            return 0.2 * noise  # the class computes with 1 + weight
        return 1.0 + 0.2 * noise
    if isinstance(owner, nn.Embedding):
        return 0.6 * noise
    if old.squeeze().ndim <= 1 or re.search(r"bias|pos|token|embed|prob", name.rpartition(".")[2]):
        return 0.5 * noise  # position tables, class tokens, relative biases, layer scales with unit dims
    return noise / math.sqrt(_fan_in(owner, name, old))


def _fan_in(owner: nn.Module, name: str, weight: Tensor) -> float:
    """How many products are summed into one output of the projection `weight`."""
    if type(owner).__name__ == "Conv1D":  # Hugging Face's transposed linear
        return float(weight.shape[0])
    if isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        overlap = math.prod(k / s for k, s in zip(owner.kernel_size, owner.stride, strict=True))
        return owner.in_channels / owner.groups * max(overlap, 1.0)
    projection = isinstance(owner, nn.Bilinear | nn.Conv1d | ParametrizationList)
    if weight.ndim == 3 and not projection:  # experts: (expert, out, in), or (expert, in, out)
        return float(weight.shape[1 if getattr(owner, "is_transposed", False) else 2])
    return float(math.prod(weight.shape[1:]))


def _weight_norm(owner: ParametrizationList, generator: Generator) -> None:
    """`original0` is the norm over all dims but one of `original1`: make the folded weight scaled by fan-in."""
    norm, direction = owner.original0, owner.original1
    assert isinstance(norm, Tensor) and isinstance(direction, Tensor)
    dims = [d for d in range(direction.ndim) if norm.shape[d] == 1]
    length = direction.double().norm(dim=dims, keepdim=True)
    norm.copy_(length * (1.0 + 0.2 * _normal(norm.shape, generator)))


@torch.no_grad()
def scale_query_key(module: nn.Module, factor: float) -> None:
    """Multiply everything that scales attention logits by `factor` (once per parameter)."""
    if factor == 1.0:
        return
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            continue
        if _QUERY_KEY_NORM.search(name):
            offset = 1.0 if parameter.mean().abs() < 0.5 else 0.0  # Gemma's norms compute with 1 + weight
            parameter.copy_((parameter + offset) * factor - offset)
        elif name.endswith("logit_scale") and parameter.ndim == 3:  # cosine attention: exp(logit_scale)
            parameter.add_(math.log(factor))
        elif _QUERY_KEY.search(name):
            parameter.mul_(factor)
