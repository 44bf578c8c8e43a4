"""Feed-forward, recurrent, routed and weight-sharing modules of our own."""

# Calling a module returns Any, so every forward does.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.handmade import TOKENS, custom, sequences
from tests.zoo.huggingface import VOCAB


class FeedForward(nn.Module):
    """Two linears with GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class Mixer(nn.Module):
    """MLP-Mixer over nine patches: one feed-forward over tokens, one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 28, 4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(28) for _ in range(4)])
        self.tokens = nn.ModuleList([FeedForward(9, 20) for _ in range(2)])
        self.channels = nn.ModuleList([FeedForward(28, 44) for _ in range(2)])
        self.head = nn.Linear(28, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i in range(2):
            x = x + self.tokens[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[i](self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """Embedding, recurrent layer, feed-forward, classifier on the last step."""

    def __init__(self, layer: nn.LSTM | nn.GRU, width: int) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(VOCAB, 20), layer
        self.body, self.head = FeedForward(width, 44), nn.Linear(width, 7)

    def forward(self, ids: Tensor) -> Tensor:
        output, _ = self.layer(self.embed(ids))
        last = output[:, -1]
        return self.head(last + self.body(last))


class HandLSTM(nn.Module):
    """An LSTM cell written out, one step after another: four gates chunked from one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gates, self.head = nn.Embedding(VOCAB, 20), nn.Linear(20 + 28, 4 * 28), nn.Linear(28, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        hidden = cell = x.new_zeros(x.shape[0], 28)
        for step in range(5):
            i, f, g, o = self.gates(torch.cat([x[:, step], hidden], -1)).chunk(4, -1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return self.head(hidden)


class DenseMoE(nn.Module):
    """Every expert computes every token; a softmax router weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.router, self.out = nn.Linear(12, 28), nn.Linear(28, 5), nn.Linear(28, 7)
        self.experts = nn.ModuleList([FeedForward(28, 20) for _ in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        weights = torch.softmax(self.router(x.flatten(0, 1)), -1).view(*x.shape[:2], 5)
        y = torch.stack([expert(x) for expert in self.experts], -2)
        return self.out(x + (y * weights.unsqueeze(-1)).sum(-2))


class EinsumMoE(nn.Module):
    """Experts as three-dim parameters, the two best of five, combined by a scattered gate."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.router, self.out = nn.Linear(12, 28), nn.Linear(28, 5), nn.Linear(28, 7)
        self.up_weight = nn.Parameter(torch.empty(5, 20, 28))
        self.down_weight = nn.Parameter(torch.empty(5, 28, 20))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        best, chosen = self.router(x).topk(2, -1)
        gate = torch.zeros_like(self.router(x)).scatter(-1, chosen, best.sigmoid())
        inner = functional.silu(torch.einsum("bnd,efd->bnef", x, self.up_weight))
        return self.out(x + torch.einsum("bnef,edf,bne->bnd", inner, self.down_weight, gate))


class Tied(nn.Module):
    """A language model of feed-forward blocks under RMSNorm; the embedding is the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCAB, 28), nn.RMSNorm(28)
        self.blocks = nn.ModuleList([FeedForward(28, 44) for _ in range(2)])
        self.out = nn.Linear(28, VOCAB, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(self.norm(x))
        return self.out(self.norm(x))


class Twice(nn.Module):
    """One block called twice, then once more under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.block, self.out = nn.Linear(12, 28), FeedForward(28, 44), nn.Linear(28, 7)
        self.alias = self.block

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.block(x)
        x = x + self.block(torch.tanh(x))
        return self.out(x + self.alias(x.relu()))


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 44), nn.Linear(44, 20)
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        code = self.second(torch.relu(self.first(x)))
        return torch.relu(code @ self.second.weight) @ self.first.weight + self.bias


class Gated(nn.Module):
    """Three kinds of gate: SwiGLU of two linears, GLU of one, and a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(12, 44), nn.Linear(12, 44), nn.Linear(44, 20)
        self.fused, self.back = nn.Linear(20, 2 * 36), nn.Linear(36, 20)
        self.left, self.right, self.product = nn.Linear(20, 16), nn.Linear(20, 10), nn.Bilinear(16, 10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(functional.silu(self.gate(x)) * self.up(x))
        x = x + self.back(functional.glu(self.fused(x), -1))
        return self.product(self.left(x), self.right(x))


_FFN = {"ffn"}
custom("mlp_mixer", Mixer, {"ffn", "hidden_layernorm"}, ((2, 3, 12, 12), (4, 3, 12, 12)))
custom("lstm", lambda: Recurrent(nn.LSTM(20, 28, 2, batch_first=True), 28), _FFN, TOKENS, tokens=True)
custom(
    "gru_bidirectional",
    lambda: Recurrent(nn.GRU(20, 14, batch_first=True, bidirectional=True), 28),
    _FFN,
    TOKENS,
    tokens=True,
)
custom("lstm_written_out", HandLSTM, {"ssm"}, TOKENS, tokens=True)
custom("moe_dense", DenseMoE, {"expert"}, sequences(12))
custom("moe_einsum", EinsumMoE, {"expert"}, sequences(12))
custom("tied_embedding", Tied, {"ffn", "hidden_rms"}, TOKENS, tokens=True)
custom("shared_twice", Twice, _FFN, sequences(12))
custom("tied_autoencoder", TiedAutoencoder, _FFN, sequences(12))
custom("gated_mlp", Gated, _FFN, sequences(12))
