"""The external models: how each is built, trained and saved, and the options with which kdx imports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import answers
import attention
import networks
import torch
from lab.densenet import DenseNet
from torch import Tensor, nn

HERE = Path(__file__).parent
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def as_is(output: Any) -> Tensor:
    """Return the output, which is the logits."""
    return output


def first(output: Any) -> Tensor:
    """Return the first element of a tuple, or the output itself."""
    return output[0] if isinstance(output, tuple) else output


def from_probabilities(output: Tensor) -> Tensor:
    """Return the logarithm of probabilities: the logits, up to a constant per image."""
    return output.clamp_min(1e-12).log()


def from_one_logit(output: Tensor) -> Tensor:
    """Return logits of two classes, [B, 2]: 0 for the first class, the output for the second one."""
    return torch.cat([torch.zeros_like(output), output], 1)


@dataclass(frozen=True)
class ExternalModel:
    """One network, its training and its file; `model` and `options` are the arguments of `kdx import-model`."""

    name: str
    what: str
    model: str
    build: Callable[[], nn.Module]
    size: tuple[int, int, int]
    file: str = "model.pth"
    form: str = "plain"
    """Layout of the file; see `training.FORMS`."""
    options: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    logits: Callable[[Any], Tensor] = as_is
    shifted: bool = False
    """Whether the output gives the logits only up to a constant per image."""
    data: str = "digits"
    dtype: torch.dtype = torch.float32
    steps: int = 300
    batch: int = 64
    second_loss: float = 0.0
    """Weight of the loss of a second output in training."""
    lr: float = 3e-3
    frozen_from: float = 1.0
    """Share of the training steps after which the running statistics of batch normalization are no longer updated."""
    has_batch_norm: bool = True

    @property
    def classes(self) -> int:
        """The number of classes."""
        return {"digits": 10, "even_odd": 2, "three_digits": 1000}[self.data]


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that builds a network of timm with random weights."""

    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return build


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    """Return a function that builds a network of torchvision for ten classes, with random weights."""

    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=10)

    return build


def typed(size: str, mean: str | None = None, std: str | None = None, *more: str) -> tuple[str, ...]:
    """Return the options of `kdx import-model`."""
    given = ("--input-size", size) if size else ()
    given += ("--mean", mean) if mean else ()
    return (*given, *(("--std", std) if std else ()), *more)


EXTERNAL_MODELS = [
    ExternalModel(
        "lenet", "LeNet of a lecture, ReLU, no batch norm", "networks.py:LeNet", networks.LeNet, (1, 28, 28),
        options=typed("1x28x28", "0.1307", "0.3081"), mean=(0.1307,), std=(0.3081,), has_batch_norm=False,
    ),
    ExternalModel(
        "mlp", "perceptron of 8x8 images, options in brackets", "networks.py:mlp(hidden=128, depth=3)",
        lambda: networks.mlp(hidden=128, depth=3), (1, 8, 8), "mlp.pt", "tutorial", typed("1x8x8"),
        has_batch_norm=False, steps=600,
    ),
    ExternalModel(
        "vgg_parallel", "VGG returned in DataParallel, {'net', 'acc'}", "networks.py:vgg_bn", networks.vgg_bn,
        (3, 32, 32), "ckpt.pth", "parallel", typed("3x32x32", "half", "half"), (0.5,), (0.5,), steps=80, lr=2e-3,
    ),
    ExternalModel(
        "resnet_tar", "ResNet-8, legacy .pth.tar with 'module.'", "networks.py:resnet8", networks.resnet8, (3, 32, 32),
        "model_best.pth.tar", "imagenet", typed("3x32x32", "imagenet", "imagenet"), *IMAGENET, steps=150,
    ),
    ExternalModel(
        "resnet_gn", "ResNet-8 with GroupNorm, Lightning's .ckpt", "networks.py:resnet8_gn(groups=4)",
        lambda: networks.resnet8_gn(groups=4), (3, 32, 32), "epoch=3.ckpt", "lightning",
        typed("3x32x32", "0.5,0.5,0.5", "0.25,0.25,0.25"), (0.5,) * 3, (0.25,) * 3, has_batch_norm=False, steps=200,
        lr=6e-3,
    ),
    ExternalModel(
        "squeezenet", "convolutional head, ReLU and pooling at the end", "networks.py:SqueezeNet",
        networks.SqueezeNet, (3, 32, 32), options=typed("3x32x32"), has_batch_norm=False, steps=350, lr=3e-3,
    ),
    ExternalModel(
        "all_conv", "returns [B, 10, 1, 1], ELU, no batch norm", "networks.py:AllConv", networks.AllConv, (1, 16, 16),
        options=typed("1x16x16"), logits=lambda output: output.flatten(1), has_batch_norm=False,
    ),
    ExternalModel(
        "weight_norm", "weight_norm parametrizations, InstanceNorm, PReLU", "networks.py:WeightNormed",
        networks.WeightNormed, (1, 28, 28), options=typed("1x28x28", "0.5", "0.5"), mean=(0.5,), std=(0.5,),
        has_batch_norm=False,
    ),
    ExternalModel(
        "compiled", "returned by torch.compile, tanh", "networks.py:compiled", networks.Compiled, (1, 16, 16),
        "weights.pth", options=typed("1x16x16"), steps=400,
    ),
    ExternalModel(
        "lazy", "LazyLinear, normalizes inside, no batch norm", "networks.py:Lazy", networks.Lazy, (1, 16, 16),
        options=typed("1x16x16"), has_batch_norm=False,
    ),
    ExternalModel(
        "bytes", "takes pixels 0..255, n_classes has no default", "networks.py:Bytes",
        lambda: networks.Bytes(n_classes=10), (3, 32, 32),
        options=typed("3x32x32", None, "bytes", "--num-classes", "10"), std=(1 / 255,),
    ),
    ExternalModel(
        "thousand", "1000 classes: three digits side by side", "networks.py:ThreeDigits", networks.ThreeDigits,
        (1, 16, 48), options=typed("1x16x48", "0.3", "0.35"), mean=(0.3,), std=(0.35,), data="three_digits", steps=400,
    ),
    ExternalModel(
        "notebook", "a network made where the file is read", "networks.py:model", lambda: networks.model,
        (1, 28, 28), options=typed("1x28x28"), steps=120,
    ),
    ExternalModel(
        "vit", "ViT of nn.TransformerEncoder, class token", "attention.py:ViT", attention.ViT, (1, 16, 16),
        options=typed("1x16x16", "0.5", "0.5"), mean=(0.5,), std=(0.5,), has_batch_norm=False, lr=2e-3,
    ),
    ExternalModel(
        "timm_vit", "timm's vit_tiny, 32x32, patches of 8, depth 3",
        "timm/vit_tiny_patch16_224(img_size=32, patch_size=8, depth=3)",
        timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=10), (3, 32, 32),
        options=typed("", None, None, "--num-classes", "10"), mean=(0.5,), std=(0.5,), has_batch_norm=False, steps=150,
        lr=1e-3,
    ),
    ExternalModel(
        "convnext", "ConvNeXt-like, LayerNorm", "attention.py:ConvNeXt", attention.ConvNeXt, (3, 32, 32),
        options=typed("3x32x32", "imagenet", "imagenet"), mean=IMAGENET[0], std=IMAGENET[1], has_batch_norm=False,
    ),
    ExternalModel(
        "mixer", "MLP-Mixer, LayerNorm, bfloat16 file",
        "attention.py:Mixer(image_size=16, channels=1, patch_size=4, dim=64, depth=3, classes=10)",
        lambda: attention.Mixer(image_size=16, channels=1, patch_size=4, dim=64, depth=3, classes=10), (1, 16, 16),
        form="half", has_batch_norm=False,
    ),
    ExternalModel(
        "gru", "bidirectional GRU over rows", "attention.py:RowGRU", attention.RowGRU, (1, 16, 16),
        options=typed("1x16x16"), has_batch_norm=False, steps=800, lr=6e-3,
    ),
    ExternalModel(
        "dictionary", "returns {'embedding', 'logits'}", "answers.py:DictAnswer", answers.DictAnswer, (1, 28, 28),
        options=typed("1x28x28"), logits=lambda output: output["logits"], steps=200,
    ),
    ExternalModel(
        "object", "forward(pixel_values, labels=None) -> object with .logits", "answers.py:ForImageClassification",
        answers.ForImageClassification, (3, 32, 32), "pytorch_model.bin", options=typed("3x32x32", "half", "half"),
        mean=(0.5,), std=(0.5,), logits=lambda output: output.logits, steps=300, lr=6e-3,
    ),
    ExternalModel(
        "recursive", "(logits, features); one conv and one batch norm used twice", "answers.py:Recursive",
        answers.Recursive, (1, 16, 16), options=typed("1x16x16"), logits=first, steps=500, frozen_from=0.4,
    ),
    ExternalModel(
        "softmax", "returns probabilities", "answers.py:Probabilities", answers.Probabilities, (1, 28, 28),
        options=typed("1x28x28"), logits=from_probabilities, shifted=True, has_batch_norm=False,
    ),
    ExternalModel(
        "log_softmax", "PyTorch's MNIST example", "answers.py:Net", answers.Net, (1, 28, 28), "mnist_cnn.pt",
        options=typed("1x28x28", "0.1307", "0.3081"), mean=(0.1307,), std=(0.3081,), has_batch_norm=False,
        steps=100, lr=2e-3,
    ),
    ExternalModel(
        "even_odd", "one raw logit [B, 1] for two classes", "answers.py:EvenOdd", answers.EvenOdd, (1, 16, 16),
        options=typed("1x16x16", None, None, "--class-names", "even,odd"), logits=from_one_logit, shifted=True,
        data="even_odd", steps=500,
    ),
    ExternalModel(
        "double", "double precision", "answers.py:Double", answers.Double, (1, 8, 8), options=typed("1x8x8"),
        dtype=torch.float64, steps=500,
    ),
    ExternalModel(
        "prototypes", "minus the squared distance to prototypes", "answers.py:Prototypes", answers.Prototypes,
        (1, 28, 28), options=typed("1x28x28"), steps=300,
    ),
    ExternalModel(
        "auxiliary", "two outputs in training, one in eval mode", "answers.py:Auxiliary", answers.Auxiliary,
        (3, 32, 32), options=typed("3x32x32"), logits=first, steps=200, second_loss=0.3,
    ),
    ExternalModel(
        "densenet", "DenseNet of a package with relative imports", "lab.densenet:DenseNet(growth_rate=8)",
        lambda: DenseNet(growth_rate=8), (3, 32, 32), options=typed("3x32x32", "0.2", "0.3"), mean=(0.2,), std=(0.3,),
        steps=200,
    ),
    ExternalModel(
        "timm_lcnet", "timm's lcnet_050, its checkpoint with args", "timm/lcnet_050(in_chans=1)",
        timm_model("lcnet_050", in_chans=1, num_classes=10), (1, 32, 32), "last.pth.tar", "timm",
        typed("1x32x32", "0.5", "0.25"), (0.5,), (0.25,), steps=250, lr=6e-3,
    ),
    ExternalModel(
        "resnet18", "torchvision's resnet18 at 3x32x32, .safetensors", "torchvision/resnet18",
        torchvision_model("resnet18"), (3, 32, 32), "resnet18.safetensors", options=typed("3x32x32"),
        mean=IMAGENET[0], std=IMAGENET[1], steps=60, lr=2e-3,
    ),
    ExternalModel(
        "shufflenet_224", "torchvision's shufflenet at 3x224x224", "torchvision/shufflenet_v2_x0_5",
        torchvision_model("shufflenet_v2_x0_5"), (3, 224, 224), options=(), mean=IMAGENET[0], std=IMAGENET[1],
        steps=150, batch=16, lr=5e-3,
    ),
    ExternalModel(
        "program", "a .pt2 of torch.export, dynamic batch, batch norm", "program.pt2", networks.Compiled,
        (1, 16, 16), "program.pt2", "program", typed("", "0.5", "0.5", "--trust-code"), (0.5,), (0.5,), steps=400,
    ),
]  # fmt: skip
"""All external models; names are unique."""
