"""The denoiser's definition in PyTorch.

Offline and non-causal. A sqrt-Hann STFT, a compressed magnitude, residual dilated convolutions, a strided branch with a
forward GRU, and a bounded complex mask applied to the spectrum before the inverse STFT.

The look-ahead is `LOOKAHEAD_FRAMES` spectrum frames (10: dense 1 + separable 2, strided 2 + 2 + 2, dense 1) plus
`WINDOW - 1` samples for the transform itself: 3071 samples, 192 ms.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .constants import BINS, HOP, WINDOW

CHANNELS = 72
HIDDEN = 112
POWER_FLOOR = 1e-8
COMPRESSION = 0.3
NORM_EPSILON = 1e-5
LOOKAHEAD_FRAMES = 10
LOOKAHEAD_SAMPLES = LOOKAHEAD_FRAMES * HOP + WINDOW - 1


def sqrt_hann(length: int = WINDOW) -> Tensor:
    """Periodic square-root Hann window, (length,) float32; its square overlap-adds to one at half-window hops."""
    return torch.hann_window(length, periodic=True, dtype=torch.float64).sqrt().float()


def frame_count(samples: int) -> int:
    """Number of spectrum frames for `samples` input samples: ceil(samples / HOP) + 1."""
    return math.ceil(samples / HOP) + 1


def stft(wave: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Spectrum of a padded signal; frame f covers samples [(f - 1) * HOP, (f + 1) * HOP).

    wave: (batch, samples) float32. Returns the real and imaginary parts, each (batch, BINS, frames) float32.
    """
    padded = F.pad(wave, (HOP, WINDOW - 1))
    frames = padded.unfold(1, WINDOW, HOP) * window
    spectrum = torch.fft.rfft(frames).transpose(1, 2)
    return spectrum.real, spectrum.imag


def istft(re: Tensor, im: Tensor, window: Tensor, samples: int) -> Tensor:
    """Inverse of `stft`, cut to `samples`.

    re, im: (batch, BINS, frames) float32. Returns (batch, samples) float32.
    """
    frames = torch.fft.irfft(torch.complex(re, im).transpose(1, 2), n=WINDOW) * window
    head = F.pad(frames[:, :, :HOP].flatten(1), (0, HOP))
    tail = F.pad(frames[:, :, HOP:].flatten(1), (HOP, 0))
    return (head + tail)[:, HOP : HOP + samples]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each frame, x: (batch, channels, frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[1],)
        return F.layer_norm(x.transpose(1, 2), shape, self.scale, self.shift, NORM_EPSILON).transpose(1, 2)


class DenseBlock(nn.Module):
    """x + PReLU(BatchNorm(Conv(x))) with a k=3 convolution and symmetric zero padding."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(x)))


class SeparableBlock(nn.Module):
    """x + Conv1x1(PReLU(ChannelNorm(depthwise Conv(x)))) with k=3 and symmetric zero padding."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        self.norm = ChannelNorm(channels)
        self.act = nn.PReLU(channels)
        self.pointwise = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(self.act(self.norm(self.depthwise(x))))


class Denoiser(nn.Module):
    """The whole network: noisy (batch, samples) float32 to clean (batch, samples) float32."""

    window: Tensor

    def __init__(self, channels: int = CHANNELS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.register_buffer("window", sqrt_hann(), persistent=False)
        self.encoder = nn.Conv1d(BINS, channels, 1)
        self.encoder_norm = ChannelNorm(channels)
        self.encoder_act = nn.PReLU(channels)
        self.fine1 = DenseBlock(channels, dilation=1)
        self.fine2 = SeparableBlock(channels, dilation=2)
        self.down = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.down_act = nn.PReLU(channels)
        self.coarse1 = SeparableBlock(channels, dilation=1)
        self.gru = nn.GRU(channels, hidden)
        self.gru_out = nn.Linear(hidden, channels)
        self.coarse2 = SeparableBlock(channels, dilation=1)
        self.up = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)
        self.merge = nn.Conv1d(2 * channels, channels, 1)
        self.merge_act = nn.PReLU(channels)
        self.fine3 = DenseBlock(channels, dilation=1)
        self.mask = nn.Conv1d(channels, 2 * BINS, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        re, im = stft(noisy, self.window)
        gain, turn = self.masks(re, im)
        return istft(gain * re - turn * im, gain * im + turn * re, self.window, noisy.shape[1])

    def masks(self, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        """Real (0..1) and imaginary (-1..1) parts of the complex mask, each (batch, BINS, frames)."""
        magnitude = torch.sqrt(re * re + im * im + POWER_FLOOR)
        x = self.encoder_act(self.encoder_norm(self.encoder(magnitude**COMPRESSION)))
        skip = self.fine2(self.fine1(x))
        x = self.coarse1(self.down_act(self.down(skip)))
        memory, _ = self.gru(x.permute(2, 0, 1))
        x = x + self.gru_out(memory).permute(1, 2, 0)
        x = self.up(self.coarse2(x))[:, :, : skip.shape[2]]
        x = self.fine3(self.merge_act(self.merge(torch.cat([x, skip], dim=1))))
        gain, turn = self.mask(x).split(BINS, dim=1)
        return torch.sigmoid(gain), torch.tanh(turn)
