"""Certificates of small modules: what they must be, and that cutting by them is sound."""

# Calling a module returns Any, so every forward does.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import shearfx
from shearfx.pruning_plan import of_cuts
from shearfx.testing import assert_sound


class FrozenNorm(nn.Module):
    """Batch norm of which everything is a buffer, written out, as detectors have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "variance"):
            self.register_buffer(name, torch.rand(width, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("weight") * (self.get_buffer("variance") + 1e-5).rsqrt()
        return x * scale + (self.get_buffer("bias") - self.get_buffer("mean") * scale)


class Quotient(nn.Module):
    """Hidden features divided by a sum over other ones, or by one of their own."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 10), nn.Linear(6, 8), nn.Linear(10, 5)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        divisor = hidden.abs() if self.own else self.gate(x).sum(-1, keepdim=True)
        return self.down(hidden / divisor)


class Recurrent(nn.Module):
    """A recurrent layer between two linears."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.inp, self.layer, self.out = nn.Linear(6, 7), layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.inp(x))[0])


class Shared(nn.Module):
    """One RMSNorm with its epsilon left open, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.inner, self.out = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 5)
        self.norm = nn.RMSNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(self.norm(x + self.inner(self.norm(x))))


def sequence(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules).eval()


TOKENS, IMAGES = (2, 3, 6), (2, 3, 8, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "frozen batch norm": (
        lambda: sequence(nn.Conv2d(3, 6, 3), FrozenNorm(6), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        IMAGES, {"0.weight:0": "exact"},
    ),
    "quotient by others": (lambda: Quotient(own=False), TOKENS, {"down.weight:1": "exact", "gate.bias:0": "exact"}),
    "quotient by itself": (lambda: Quotient(own=True), TOKENS, {"down.weight:1": "approximate"}),
    "weight norm": (
        lambda: sequence(nn.Linear(6, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 7)), nn.Linear(7, 5)),
        TOKENS, {"0.bias:0": "exact", "1.bias:0": "approximate"},
    ),
    "lstm": (lambda: Recurrent(nn.LSTM(7, 4, 2, batch_first=True), 4), TOKENS,
             {"out.weight:1": "exact", "inp.bias:0": "exact"}),
    "gru": (lambda: Recurrent(nn.GRU(7, 4, bidirectional=True, batch_first=True), 8), TOKENS, {"inp.bias:0": "exact"}),
    "rnn": (lambda: Recurrent(nn.RNN(7, 4, nonlinearity="relu", batch_first=True), 4), TOKENS,
            {"out.weight:1": "exact"}),
    "norm used twice": (Shared, TOKENS, {"inner.bias:0": "compensated"}),
    "gated linear unit": (lambda: sequence(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 5)), TOKENS,
                          {"2.weight:1": "exact"}),
    "slopes": (lambda: sequence(nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 4, 3)), IMAGES, {"0.bias:0": "exact"}),
    "pixel shuffle": (lambda: sequence(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.Conv2d(2, 4, 3)), IMAGES,
                      {"2.weight:1": "exact"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_certificates(name: str) -> None:
    make, shape, expected = CASES[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    graph = shearfx.trace(model, x)
    found = {f"{m.name}:{m.dim}": group.certificate for group in graph.groups for m in group.members}
    assert expected.items() <= found.items(), found
    if {"exact", "compensated"} & set(found.values()):
        assert_sound(model, x, plans=4)


class Spectrum(nn.Module):
    """Returns complex numbers, or whole ones, and nothing else."""

    def __init__(self, places: bool) -> None:
        super().__init__()
        self.places = places
        self.up, self.norm, self.down = nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(self.norm(self.up(x)))
        return y.argmax(-1) if self.places else torch.fft.rfft(y)


@pytest.mark.parametrize("places", [False, True])
def test_outputs_that_are_not_real_are_compared_too(places: bool) -> None:
    torch.manual_seed(0)
    model, x = Spectrum(places).eval(), torch.randn(64, 4)
    graph = shearfx.trace(model, x)
    width = next(g for g in graph.groups if g.size == 16)
    assert width.certificate == "approximate"
    with pytest.raises(shearfx.SoundnessError):
        shearfx.verify(model, of_cuts(graph, {width.name: range(4)}, options={"form": "fx"}), x, graph=graph)


def test_verifying_on_wrong_inputs_says_so() -> None:
    model, x = Spectrum(places=False).eval(), torch.randn(2, 4)
    graph = shearfx.trace(model, x)
    plan = of_cuts(graph, {g.name: range(4) for g in graph.groups if g.size == 16}, options={"form": "fx"})
    with pytest.raises(shearfx.TraceError, match=r"does not run|cannot be exported"):
        shearfx.verify(model, plan, torch.randn(2, 9), graph=graph)
