"""Fourier transforms: every frequency mixes all positions, so what is transformed is pinned; the rest passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.rules.registry import Dims, Site, rule
from shearfx.values import Value

aten = torch.ops.aten
TRANSFORMED = "a Fourier transform goes over it"


def _samples() -> Iterable[tuple[Any, ...]]:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    spectrum = torch.fft.rfft(x)
    yield aten.fft_fft.default, (x,), {}
    yield aten.fft_fft.default, (x.to(torch.complex128), None, 1), {}
    yield aten.fft_ifft.default, (spectrum, None, -2), {}
    yield aten.fft_rfft.default, (x, 6), {}
    yield aten.fft_irfft.default, (spectrum,), {}
    yield aten.fft_hfft.default, (spectrum,), {}
    yield aten.fft_ihfft.default, (x,), {}
    for name in ("fft2", "fftn"):
        yield getattr(aten, f"fft_{name}").default, (x,), {}
        yield getattr(aten, f"fft_i{name}").default, (spectrum, None, [0, 2]), {}
        yield getattr(aten, f"fft_r{name}").default, (x, None, [0, 1]), {}
        yield getattr(aten, f"fft_ir{name}").default, (spectrum,), {}
    yield aten.fft_fftshift.default, (x, [1]), {}
    yield aten.fft_ifftshift.default, (x,), {}


@rule(
    aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default, aten.fft_hfft.default,
    aten.fft_ihfft.default, aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default,
    aten.fft_irfft2.default, aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default,
    aten.fft_irfftn.default, aten.fft_fftshift.default, aten.fft_ifftshift.default, samples=_samples,
)  # fmt: skip
def fourier(site: Site) -> Dims:
    """Along some dims, which are pinned; linear in everything else."""
    dims = site.dims("self")
    axes = site.axes("dim", len(dims))
    out = tuple(site.fresh(size) if i in axes else dims[i] for i, size in enumerate(site.shape()))
    site.pin([d for i in axes for d in (dims[i], out[i])], TRANSFORMED)
    site.operands(site.arg("self"), transfer=_linear)
    return out


def _linear(values: list[Value]) -> Value:
    if max(values) > Value.FINITE:
        return Value.UNKNOWN
    return Value.ZERO if values[0] is Value.ZERO else Value.FINITE


def _stft_samples() -> Iterable[tuple[Any, ...]]:
    x = torch.randn(2, 24, dtype=torch.float64)
    window = torch.hann_window(8, dtype=torch.float64)
    yield aten.stft.default, (x, 8, 4, 8, window, False, None, True), {}


@rule(aten.stft.default, samples=_stft_samples)
def stft(site: Site) -> Dims:
    """``n t, [w] -> n f t'``: frames of the last dim; batches pass."""
    dims, shape = site.dims("self"), site.shape()
    out = tuple(site.fresh(s) for s in shape[len(dims) - 1 :])
    site.pin((dims[-1], *site.dims("window"), *out), TRANSFORMED)
    site.operands(site.arg("self"), transfer=_linear)
    return (*dims[:-1], *out)
