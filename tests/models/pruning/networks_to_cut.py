"""Networks that a user could bring, each with something that makes cutting harder."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Block(nn.Module):
    """A residual block; where it changes the number of channels, the shortcut adds channels of zeros in a lambda."""

    def __init__(self, inputs: int, outputs: int, both_sides: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1 if inputs == outputs else 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        more = outputs - inputs
        pad = (0, 0, 0, 0, more // 2, more // 2) if both_sides else (0, 0, 0, 0, 0, more)
        self.shortcut: Callable[[Tensor], Tensor] = lambda x: F.pad(x[:, :, ::2, ::2], pad) if more else x

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Padded(nn.Module):
    """A residual network with option A of He et al."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, both_sides: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, both_sides), Block(8, 16, both_sides), Block(16, 16, both_sides))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


class Depthwise(nn.Module):
    """Depthwise convolutions, a grouped one, and squeeze-and-excitation."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point = nn.Conv2d(8, 16, 1)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.grouped = nn.Conv2d(16, 24, 3, 1, 1, groups=4)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.point(F.relu6(self.depthwise(torch.relu(self.stem(x))))))
        gate = self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return self.fc(torch.relu(self.grouped(x * torch.sigmoid(gate))).mean((2, 3)))


class Grouped(nn.Module):
    """GroupNorm in a residual block."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 12, 3, 2, 1)
        self.norm1 = nn.GroupNorm(3, 12)
        self.conv2 = nn.Conv2d(12, 12, 3, 1, 1)
        self.norm2 = nn.GroupNorm(3, 12)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.fc(torch.relu(self.norm2(self.conv2(x)) + x).mean((2, 3)))


class Layered(nn.Module):
    """LayerNorm over channels, a layer scale that belongs to no layer, GELU."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 12, 2, 2)
        self.depthwise = nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.norm = nn.LayerNorm(12)
        self.wide = nn.Linear(12, 24)
        self.narrow = nn.Linear(24, 12)
        self.scale = nn.Parameter(0.3 * torch.ones(12))
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        hidden = self.scale * self.narrow(F.gelu(self.wide(hidden)))
        return self.fc((x + hidden.permute(0, 3, 1, 2)).mean((2, 3)))


class Dense(nn.Module):
    """Each convolution reads the outputs of all those before it."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * index) for index in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * index, 6, 3, 1, 1, bias=False) for index in range(3))
        self.fc = nn.Linear(8 + 18, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(torch.relu(x), 1).flatten(1))


class Attention(nn.Module):
    """A transformer of PyTorch's layers, with a class token."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(0.1 * torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.encoder(tokens)[:, 0])


class OwnAttention(nn.Module):
    """Attention by hand, whose heads have a fixed size; the layers after it can be cut."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 16, 4, 4)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.wide = nn.Linear(16, 32)
        self.narrow = nn.Linear(32, 16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), -1, 16))
        return self.head((x + self.narrow(torch.relu(self.wide(x)))).mean(1))


class FixedView(nn.Module):
    """The number of features is in the code of `forward`."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, 2, 1)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1)
        self.drop = nn.Dropout(0.3)
        self.fc1 = nn.Linear(256, 20)
        self.norm = nn.BatchNorm1d(20)
        self.fc2 = nn.Linear(20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc2(self.norm(torch.relu(self.fc1(self.drop(x.view(-1, 256))))))


class Notebook(nn.Sequential):
    """Dropout between a convolution and batch normalization."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        first = [nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten()]
        super().__init__(*first, nn.Linear(8 * 49, 10), nn.ReLU(), nn.BatchNorm1d(10), nn.Linear(10, num_classes))


class Shuffled(nn.Module):
    """Channels change places between two convolutions."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 12, 3, 2, 1)
        self.conv2 = nn.Conv2d(12, 12, 3, 1, 1)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)).flip(1))).mean((2, 3)))


class Normed(nn.Module):
    """Weight normalization, PReLU per channel, dropout, and an output for training alone."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = weight_norm(nn.Conv2d(in_channels, 8, 3, 2, 1))
        self.slope = nn.PReLU(8)
        self.conv2 = weight_norm(nn.Conv2d(8, 10, 3, 2, 1))
        self.drop = nn.Dropout(0.2)
        self.second = nn.Linear(8, num_classes)
        self.fc = nn.Linear(10, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.slope(self.conv1(x))
        answers = {"logits": self.fc(self.drop(torch.relu(self.conv2(x)).mean((2, 3))))}
        return {**answers, "second": self.second(x.mean((2, 3)))} if self.training else answers


class Twice(nn.Module):
    """One convolution and its normalization are used twice, in double precision."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, 2, 1)
        self.conv = nn.Conv2d(8, 8, 3, 1, 1)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(torch.relu(self.bn(self.conv(x)) + x).mean((2, 3)))


class Recurrent(nn.Module):
    """Nothing but a recurrent layer before the last one."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.gru = nn.GRU(16 * in_channels, 12, batch_first=True)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x.transpose(1, 2).flatten(2))[0][:, -1])


class OneLayer(nn.Module):
    """A linear classifier."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(256 * in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Small(nn.Sequential):
    """Two convolutions, with batch normalization or without."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, batch_norm: bool = True) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 6, 3, stride=2),
            nn.BatchNorm2d(6) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.BatchNorm2d(8) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, num_classes),
        )


class ReadTwice(nn.Module):
    """The outputs of a convolution are read by batch normalization and, with `also`, by the next layer as well."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, also: bool = True) -> None:
        super().__init__()
        self.also = also
        self.conv, self.bn, self.fc = nn.Conv2d(in_channels, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        normalized = torch.relu(self.bn(x))
        return self.fc((normalized + torch.relu(x) if self.also else normalized).mean((2, 3)))


class Auxiliary(nn.Module):
    """Returns a tensor in evaluation mode, and a tuple in training mode."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, 2, 1)
        self.conv2 = nn.Conv2d(8, 12, 3, 2, 1)
        self.second = nn.Linear(8, num_classes)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.relu(self.conv1(x))
        answers = self.fc(torch.relu(self.conv2(x)).mean((2, 3)))
        return (answers, self.second(x.mean((2, 3)))) if self.training else answers
