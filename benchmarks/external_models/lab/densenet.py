"""A DenseNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import DenseLayer, Transition


class DenseNet(nn.Module):
    """Two dense blocks, for images of 3x32x32."""

    def __init__(self, growth_rate: int = 12, layers: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        width = 2 * growth_rate
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)]
        for last in (False, True):
            blocks += [DenseLayer(width + i * growth_rate, growth_rate) for i in range(layers)]
            width += layers * growth_rate
            if not last:
                blocks.append(Transition(width))
                width //= 2
        self.features = nn.Sequential(*blocks, nn.BatchNorm2d(width))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x))
        return self.classifier(F.adaptive_avg_pool2d(out, (1, 1)).view(out.size(0), -1))
