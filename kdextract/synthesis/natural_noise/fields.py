"""Random fields with power-law spectra, and random colours in which the channels are correlated as in photographs."""

from __future__ import annotations

from functools import cache

import torch

MARGIN = 1.25
"""Fields are made larger by this factor and cropped: the discrete Fourier transform gives periodic fields."""
ANISOTROPY = 0.25
"""Standard deviation of the logarithm of the ratio of the scales along rows and along columns."""
PALETTE = 6
"""Largest number of main colours in one image."""
BLUE_YELLOW, RED_GREEN = 1.0, 0.5
"""Standard deviations of the two opponent colours, which are multiplied by the saturation; that of the luminance is 1.
In photographs, the principal axes of colour are luminance, blue against yellow, and red against green, with falling
variance (Ruderman, Cronin and Chiao 1998)."""


@cache
def _log_frequencies(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log squared frequencies in cycles per pixel, of rows [height, 1] and of columns [1, width // 2 + 1].

    Frequency 0 is replaced by a hundredth of the next one.
    """
    rows = torch.fft.fftfreq(height, device=device).abs().clamp_min(0.01 / height)
    columns = torch.fft.rfftfreq(width, device=device).clamp_min(0.01 / width)
    return rows.square().log().view(height, 1), columns.square().log().view(1, -1)


def power_law_fields(exponents: torch.Tensor, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return normal random fields whose amplitude at frequency f is 1 / f^a, [images, fields, height, width].

    Each has mean 0 and standard deviation 1. Photographs have an exponent a of about 1 (Field 1987). Fields are
    stretched by a random factor along rows or columns.

    Args:
        exponents: a of each field, [images, fields], on the device of the result.
        rng: on the CPU.
    """
    tall, wide = (2 * round(MARGIN * side / 2) for side in (height, width))
    device = exponents.device
    rows, columns = _log_frequencies(tall, wide, device)
    stretch = torch.randn((*exponents.shape, 1, 1), generator=rng).mul_(2 * ANISOTROPY).to(device)
    gains = torch.logaddexp(rows + stretch, columns - stretch).mul_(-0.5 * exponents[..., None, None]).exp_()
    gains[..., 0, 0] = 0
    waves = torch.randn((*gains.shape, 2), generator=rng).to(device).mul_(gains.unsqueeze(-1))
    fields = torch.fft.irfft2(torch.view_as_complex(waves), (tall, wide))[..., :height, :width]
    variance, mean = torch.var_mean(fields, (2, 3), correction=0, keepdim=True)
    return (fields - mean).mul_(variance.clamp_min_(1e-12).rsqrt_())


@cache
def _axes(channels: int, device: torch.device) -> torch.Tensor:
    """Return the axes of colour, [axes, channels]: luminance, then the others in the size of their deviations."""
    if channels == 1:
        return torch.ones((1, 1), device=device)
    if channels == 3:
        blue_yellow = [BLUE_YELLOW, 0.0, -BLUE_YELLOW]
        red_green = [RED_GREEN, -2 * RED_GREEN, RED_GREEN]
        return torch.tensor([[1.0, 1.0, 1.0], blue_yellow, red_green], device=device)
    return torch.cat([torch.ones((1, channels), device=device), torch.eye(channels, device=device)])


def colours(count: int, saturation: torch.Tensor, channels: int, rng: torch.Generator) -> torch.Tensor:
    """Return normal random colours around 0, [images, count, channels]; the luminance has deviation 1.

    Args:
        count: colours per image.
        saturation: deviation of the other axes of colour relative to the luminance, [images]; grey images have none.
    """
    axes = _axes(channels, saturation.device)
    drawn = torch.randn((len(saturation), count, len(axes)), generator=rng).to(saturation.device)
    drawn[..., 1:] *= saturation.view(-1, 1, 1)
    return drawn @ axes


def palette_colours(count: int, saturation: torch.Tensor, channels: int, rng: torch.Generator) -> torch.Tensor:
    """Return colours as `colours` does, those of an image near one of its 2 to `PALETTE` main colours."""
    main = colours(PALETTE, saturation, channels, rng)
    num_main = torch.randint(2, PALETTE + 1, (len(saturation), 1), generator=rng)
    choice = (torch.rand((len(saturation), count), generator=rng) * num_main).long().to(main.device)
    near = main.gather(1, choice.unsqueeze(2).expand(-1, -1, channels))
    return near + colours(count, 0.5 * saturation, channels, rng).mul_(0.35)
