"""Coupling layers of flows, which transform half of the values by functions of the other half, and their networks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn


class Step(nn.Module, ABC):
    """An invertible map between tensors of equal shape; `forward` is the direction from noise to pixels.

    Both directions take values [batch, ...] and a condition [batch, classes], the one-hot labels. They return the new
    values, and log |det| of the Jacobian of this direction, [batch].
    """

    @abstractmethod
    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values after this step towards pixels, and the log-determinant."""

    @abstractmethod
    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values after this step towards noise, and the log-determinant."""


class DenseNetwork(nn.Module):
    """Two hidden layers of `width` with leaky ReLU and a bias per label; at initialization, the output is zero.

    Values [batch, inputs] and condition [batch, classes] -> [batch, outputs].
    """

    def __init__(self, inputs: int, outputs: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.enter, self.enter_label = nn.Linear(inputs, width), _label_bias(num_classes, width)
        self.middle, self.middle_label = nn.Linear(width, width), _label_bias(num_classes, width)
        self.leave = _zeroed(nn.Linear(width, outputs))

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return [batch, outputs]."""
        hidden = F.leaky_relu(self.enter(values) + self.enter_label(condition))
        hidden = F.leaky_relu(self.middle(hidden) + self.middle_label(condition))
        return self.leave(hidden)


class ResidualNetwork(nn.Module):
    """RealNVP's network without normalization: a convolution, `blocks` residual blocks, a 1x1 convolution set to zero.

    Values [batch, inputs, height, width] and condition [batch, classes] -> [batch, outputs, height, width].
    """

    def __init__(self, inputs: int, outputs: int, num_classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.enter, self.enter_label = nn.Conv2d(inputs, width, 3, padding=1), _label_bias(num_classes, width)
        self.blocks = nn.ModuleList(ResidualBlock(num_classes, width) for _ in range(blocks))
        self.leave = _zeroed(nn.Conv2d(width, outputs, 1))

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return [batch, outputs, height, width]."""
        hidden = self.enter(values) + _per_channel(self.enter_label(condition))
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.leave(F.leaky_relu(hidden))


class ResidualBlock(nn.Module):
    """A residual block of two 3x3 convolutions (He et al. 2016), with a bias per label between them."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.first, self.label = nn.Conv2d(width, width, 3, padding=1), _label_bias(num_classes, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the shape of `hidden`, [batch, width, height, width of the image]."""
        inner = self.first(F.leaky_relu(hidden)) + _per_channel(self.label(condition))
        return hidden + self.second(F.leaky_relu(inner))


class PlainNetwork(nn.Module):
    """Glow's network without normalization (section 3.3): convolutions of 3x3, 1x1, and 3x3, the last set to zero.

    Values [batch, inputs, height, width] and condition [batch, classes] -> [batch, outputs, height, width].
    """

    def __init__(self, inputs: int, outputs: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.enter, self.enter_label = nn.Conv2d(inputs, width, 3, padding=1), _label_bias(num_classes, width)
        self.middle, self.middle_label = nn.Conv2d(width, width, 1), _label_bias(num_classes, width)
        self.leave = _zeroed(nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return [batch, outputs, height, width]."""
        hidden = F.leaky_relu(self.enter(values) + _per_channel(self.enter_label(condition)))
        hidden = F.leaky_relu(self.middle(hidden) + _per_channel(self.middle_label(condition)))
        return self.leave(hidden)


class Coupling(Step):
    """A coupling: one part of the values is kept; the other is scaled and shifted by functions of the kept part.

    RealNVP's affine coupling (Dinh et al. 2017, section 3.2), with log-scale `factor` * tanh(.), which bounds it, and a
    trained factor that starts at 1; or, without factor, NICE's additive coupling (Dinh et al. 2014, section 3.2).

    Args:
        network: (kept values, condition) -> shifts or, with a factor, log-scales and shifts, concatenated.
        factor_shape: shape of the factor of one image, or None for an additive coupling.
    """

    def __init__(self, network: nn.Module, factor_shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.network = network
        self.factor = None if factor_shape is None else nn.Parameter(torch.ones(factor_shape))

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values * exp(log-scale) + shift, and the sum of the log-scales."""
        log_scale, shift = self._scale_and_shift(values, condition)
        return values * log_scale.exp() + shift, log_scale.flatten(1).sum(dim=1)

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (values - shift) * exp(-log-scale), and minus the sum of the log-scales."""
        log_scale, shift = self._scale_and_shift(values, condition)
        return (values - shift) * (-log_scale).exp(), -log_scale.flatten(1).sum(dim=1)

    def _scale_and_shift(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-scales and shifts in the shape of `values`, zero for the kept values."""
        output = self.network(self._network_values(values), condition)
        if self.factor is None:
            return torch.zeros_like(values), self._placed(output, values)
        raw, shift = output.chunk(2, dim=1)
        return self._placed(self.factor * raw.tanh(), values), self._placed(shift, values)

    @abstractmethod
    def _network_values(self, values: torch.Tensor) -> torch.Tensor:
        """Return the input of the network: the kept values."""

    @abstractmethod
    def _placed(self, part: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return one number per changed value in the shape of `values`, zero for the kept values."""


class InterleavedCoupling(Coupling):
    """Values [batch, size], size >= 2: the odd ones change, the even ones are kept (`turn` 0), or the reverse (1)."""

    def __init__(self, size: int, num_classes: int, width: int, turn: int, affine: bool) -> None:
        kept = (size + 1 - turn) // 2
        moved = size - kept
        super().__init__(
            DenseNetwork(kept, 2 * moved if affine else moved, num_classes, width), (moved,) if affine else None
        )
        self._turn = turn

    def _network_values(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, self._turn :: 2]

    def _placed(self, part: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        placed = torch.zeros_like(values)
        placed[:, 1 - self._turn :: 2] = part
        return placed


class CheckerboardCoupling(Coupling):
    """Images: pixels change where row + column + `turn` is odd (Dinh et al. 2017, section 3.4).

    Args:
        network: from C channels to 2 * C.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], turn: int) -> None:
        channels, height, width = shape
        super().__init__(network, (channels, 1, 1))
        moved = (torch.arange(height)[:, None] + torch.arange(width) + turn) % 2
        self.register_buffer("moved", moved.to(torch.get_default_dtype()), persistent=False)
        self.moved: torch.Tensor

    def _network_values(self, values: torch.Tensor) -> torch.Tensor:
        return values * (1 - self.moved)

    def _placed(self, part: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return part * self.moved


class ChannelCoupling(Coupling):
    """Images of an even number of channels: the second half changes, the first is kept (`turn` 0), or the reverse (1).

    Args:
        network: from `channels` / 2 to `channels` channels.
    """

    def __init__(self, network: nn.Module, channels: int, turn: int) -> None:
        super().__init__(network, (channels // 2, 1, 1))
        self._turn = turn

    def _network_values(self, values: torch.Tensor) -> torch.Tensor:
        return values.chunk(2, dim=1)[self._turn]

    def _placed(self, part: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros_like(part)
        return torch.cat([part, nothing] if self._turn else [nothing, part], dim=1)


def _label_bias(num_classes: int, width: int) -> nn.Linear:
    """Return a layer from one-hot labels to one bias per hidden unit."""
    return nn.Linear(num_classes, width, bias=False)


def _per_channel(bias: torch.Tensor) -> torch.Tensor:
    """Return biases [batch, channels] as [batch, channels, 1, 1]."""
    return bias[:, :, None, None]


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Set the weights and the bias of a layer to zero, and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
