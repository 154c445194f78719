"""Classifiers with special outputs: dictionaries, objects, tuples, probabilities, one logit, distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalization, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Encoder(nn.Module):
    """The layers that several of these classifiers share: [B, C, H, W] -> [B, 64]."""

    def __init__(self, in_ch: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv_bn(in_ch, 16), conv_bn(16, 32, 2), conv_bn(32, 64, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.layers(x), 1)[:, :, 0, 0]


class DictAnswer(nn.Module):
    """Returns a dictionary with an embedding and logits."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.backbone = Encoder(in_channels)
        self.embed = nn.Linear(64, 32)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.backbone(x)
        return {"embedding": F.normalize(self.embed(h), dim=1), "logits": self.classifier(h)}


@dataclass
class ImageClassifierOutput:
    """The output type of the image classifiers of Hugging Face transformers."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ForImageClassification(nn.Module):
    """Takes `pixel_values` and optional `labels`; returns an `ImageClassifierOutput`."""

    def __init__(self, num_labels: int = 10, num_channels: int = 3) -> None:
        super().__init__()
        self.encoder = Encoder(num_channels)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(64, num_labels)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        hidden = self.encoder(pixel_values)
        logits = self.classifier(self.dropout(hidden))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=(hidden,))


class Recursive(nn.Module):
    """One convolution and one batch normalization, each used twice; returns (logits, features)."""

    def __init__(self, nb_classes: int = 10) -> None:
        super().__init__()
        self.inc = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32 * 4 * 4, nb_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.inc(x))
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.bn(self.conv(x)) + x)
        features = F.avg_pool2d(x, 2).flatten(1)
        return self.fc(features), features


class Probabilities(nn.Module):
    """Ends in nn.Softmax: returns probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 10), nn.Softmax(dim=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Net(nn.Module):
    """The network of PyTorch's own MNIST example: ends in log_softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = self.dropout2(x)
        return F.log_softmax(self.fc2(x), dim=1)


class EvenOdd(nn.Module):
    """Two classes; returns the logit of the second one, [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Encoder(1)
        self.out = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class Double(nn.Module):
    """Weights and images in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, dtype=torch.float64)
        self.bn = nn.BatchNorm2d(16, dtype=torch.float64)
        self.hidden = nn.Linear(16 * 8 * 8, 64, dtype=torch.float64)
        self.out = nn.Linear(64, 10, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.bn(self.conv(x)))
        return self.out(torch.sigmoid(self.hidden(x.flatten(1))))


class Prototypes(nn.Module):
    """Returns minus the squared distance to one prototype per class."""

    def __init__(self, num_classes: int = 10, feat_dim: int = 16) -> None:
        super().__init__()
        self.encoder = Encoder(1)
        self.project = nn.Linear(64, feat_dim)
        self.centers = nn.Parameter(torch.randn(num_classes, feat_dim))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.project(self.encoder(x)), self.centers).pow(2)


class Auxiliary(nn.Module):
    """Returns (logits, auxiliary logits) in training, and logits alone in eval mode."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 24, 2), conv_bn(24, 48, 2)
        self.aux = nn.Linear(24, num_classes)
        self.fc = nn.Linear(48 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle = self.first(x)
        logits = self.fc(F.adaptive_avg_pool2d(self.second(middle), 4).flatten(1))
        return (logits, self.aux(middle.mean((2, 3)))) if self.training else logits
