"""Convolutional modules of our own."""

# Calling a module returns Any, so every forward does.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.handmade import custom, images


def conv_norm(inner: int, outer: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch norm."""
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer))


class Head(nn.Module):
    """Global average pool and classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean((-2, -1)))


def plain() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 20),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv_norm(20, 28),
        nn.ReLU(),
        conv_norm(28, 36),
        nn.GELU(),
        Head(36),
    )


def flattened() -> nn.Module:
    """A linear over channel * height * width: the channel is one factor of a flat dim."""
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(20, 12, 3, 2, 1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12 * 16, 40),
        nn.ReLU(),
        nn.Linear(40, 7),
    )


class Block(nn.Module):
    """Residual block; a 1x1 projection on the shortcut where the width changes."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first, self.second = conv_norm(inner, outer), conv_norm(outer, outer)
        self.shortcut = nn.Identity() if inner == outer else conv_norm(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


def resnet() -> nn.Module:
    return nn.Sequential(conv_norm(3, 12), nn.ReLU(), Block(12, 12), Block(12, 20), Block(20, 20), Head(20))


class PaddedShortcut(nn.Module):
    """The shortcut without parameters of the CIFAR ResNets: strided slice, then zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv_norm(3, 12), conv_norm(12, 20, stride=2), conv_norm(20, 20)
        self.head = Head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(functional.relu(self.second(functional.relu(self.first(x))) + shortcut))


def separable() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 20),
        nn.ReLU6(),
        conv_norm(20, 20, groups=20),
        nn.ReLU6(),
        conv_norm(20, 28, 1),
        nn.Hardswish(),
        conv_norm(28, 28, groups=28),
        nn.SiLU(),
        conv_norm(28, 36, 1),
        Head(36),
    )


def grouped() -> nn.Module:
    """Grouped convolutions; the statistics of group norm mix channels within a group."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 1, 1),
        nn.GroupNorm(4, 24),
        nn.ReLU(),
        nn.Conv2d(24, 36, 3, 1, 1, groups=3),
        nn.ReLU(),
        nn.Conv2d(36, 20, 1),
        nn.InstanceNorm2d(20, affine=True),
        nn.ReLU(),
        nn.Conv2d(20, 28, 3, 1, 1),
        nn.ReLU(),
        Head(28),
    )


class UNet(nn.Module):
    """Down, up by transposed convolutions, skips concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_norm(3, 12), conv_norm(12, 20), conv_norm(20, 28)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(28, 16, 2, 2), nn.ConvTranspose2d(22, 10, 2, 2)])
        self.mix = nn.ModuleList([conv_norm(16 + 20, 22), conv_norm(10 + 12, 14)])
        self.out = nn.Conv2d(14, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.down[0](x))
        second = functional.relu(self.down[1](functional.max_pool2d(first, 2)))
        x = functional.relu(self.down[2](functional.max_pool2d(second, 2)))
        x = functional.relu(self.mix[0](torch.cat([self.up[0](x), second], 1)))
        return self.out(functional.relu(self.mix[1](torch.cat([self.up[1](x), first], 1))))


class DenseBlock(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 1, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(12 + 8 * i) for i in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(12 + 8 * i, 8, 3, 1, 1) for i in range(3)])
        self.head = Head(36)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(functional.relu(norm(torch.cat(features, 1)))))
        return self.head(functional.relu(self.norms[3](torch.cat(features, 1))))


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate computed from their own means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_norm(3, 28), conv_norm(28, 28), Head(28)
        self.reduce, self.expand = nn.Conv2d(28, 10, 1), nn.Conv2d(10, 28, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        y = functional.relu(self.body(x))
        gate = torch.sigmoid(self.expand(functional.relu(self.reduce(functional.adaptive_avg_pool2d(y, 1)))))
        return self.head(x + y * gate)


class Inception(nn.Module):
    """Parallel branches of different kernels, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm(3, 12, 1), conv_norm(3, 16, 3), conv_norm(3, 20, 5)])
        self.merge, self.head = conv_norm(48, 28, 1), Head(28)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([functional.relu(branch(x)) for branch in self.branches], 1)
        return self.head(functional.relu(self.merge(y)))


class Shuffle(nn.Module):
    """ShuffleNet: split the channels, transform one half, concatenate, shuffle by view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_norm(3, 24), nn.Sequential(conv_norm(12, 20, 1), nn.ReLU(), conv_norm(20, 12))
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        left, right = functional.relu(self.stem(x)).chunk(2, 1)
        y = torch.cat([left, self.body(right)], 1)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(y)


def upsampler() -> nn.Module:
    """Sub-pixel convolution: channels become space."""
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, 1, 1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(20, 28, 3, 1, 1),
        nn.PReLU(28),
        nn.Conv2d(28, 24, 1),
        nn.PixelShuffle(2),
        nn.Conv2d(6, 2, 1),
    )


class TemporalBlock(nn.Module):
    """Dilated causal convolution with weight norm: pad left, crop nothing."""

    def __init__(self, inner: int, outer: int, dilation: int) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(inner, outer, 3, dilation=dilation))
        self.shortcut = nn.Conv1d(inner, outer, 1)
        self.padding = 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(functional.pad(x, (self.padding, 0)))) + self.shortcut(x)


class TemporalNetwork(nn.Module):
    """Convolutions over time without weight norm, causal by cropping."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(6, 20, 3, padding=2), nn.Conv1d(20, 28, 3, padding=4, dilation=2)])
        self.out = nn.Linear(28, 7)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        for conv in self.convs:
            x = functional.gelu(conv(x)[..., :length])
        return self.out(x.transpose(1, 2))


def volumetric() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 12, 3, 1, 1),
        nn.BatchNorm3d(12),
        nn.ReLU(),
        nn.Conv3d(12, 20, 3, 1, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(20, 7),
    )


_CONV = {"conv"}
_WAVES = ((5, 6, 15), (4, 6, 21))
custom("cnn", plain, _CONV, images(16, 24))
custom("cnn_flatten", flattened, {"conv", "ffn"}, images(16, 16))
custom("cnn_resnet", resnet, _CONV, images(8, 12))
custom("cnn_padded_shortcut", PaddedShortcut, _CONV, images(8, 12))
custom("cnn_separable", separable, _CONV, images(8, 12))
custom("cnn_grouped", grouped, _CONV, images(8, 12))
custom("unet", UNet, _CONV, images(16, 24))
custom("densenet", DenseBlock, _CONV, images(8, 12))
custom("squeeze_excite", SqueezeExcite, _CONV, images(8, 12))
custom("inception", Inception, _CONV, images(8, 12))
custom("shuffle", Shuffle, _CONV, images(8, 12))
custom("upsampler", upsampler, _CONV, images(8, 12))
custom("tcn", TemporalNetwork, _CONV, _WAVES)
custom(
    "tcn_weight_norm",
    lambda: nn.Sequential(TemporalBlock(6, 20, 1), TemporalBlock(20, 28, 2), nn.Conv1d(28, 7, 1)),
    _CONV,
    _WAVES,
)
custom("cnn_3d", volumetric, _CONV, ((2, 2, 6, 6, 6), (4, 2, 8, 8, 8)))
