"""Training and saving of the external models, in plain PyTorch without kdx."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from catalogue import ExternalModel
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Data(NamedTuple):
    """Training and test images [N, 1, H, W] in [0, 1], and their labels [N]."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def digits() -> Data:
    """Return scikit-learn's digits, 8x8; every fifth image of each class is a test image."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[(labels == digit).nonzero()[4::5, 0]] = True
    return Data(images[~test], labels[~test], images[test], labels[test])


def even_odd() -> Data:
    """Return scikit-learn's digits with two classes: 0 for even digits, 1 for odd ones."""
    data = digits()
    return data._replace(y_train=data.y_train % 2, y_test=data.y_test % 2)


def three_digits() -> Data:
    """Return images of three digits side by side, 16x48 pixels; no image of a digit is used for training and test."""
    data, rng = digits(), torch.Generator().manual_seed(0)

    def joined(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (count, 3), generator=rng)
        rows = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)[chosen]
        return torch.cat(rows.unbind(1), dim=-1), labels[chosen] @ torch.tensor([100, 10, 1])

    return Data(*joined(data.x_train, data.y_train, 20000), *joined(data.x_test, data.y_test, 2000))


DATA = {"digits": digits, "even_odd": even_odd, "three_digits": three_digits}


def save_npz(data: Data, file: Path) -> None:
    """Write a file that kdx reads as npz:FILE, with pixels as uint8."""
    arrays = {name: (255 * value if name.startswith("x") else value).numpy() for name, value in data._asdict().items()}
    np.savez(file, **{n: a.round().astype(np.uint8) if n.startswith("x") else a for n, a in arrays.items()})


def as_taken(entry: ExternalModel, images: Tensor) -> Tensor:
    """Return images in [0, 1] as input of the model: resized, with its number of channels, normalized."""
    channels, height, width = entry.size
    if images.shape[-2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
    images = images.expand(-1, channels, -1, -1).to(entry.dtype)
    mean, std = (torch.tensor(each, dtype=entry.dtype).view(1, -1, 1, 1) for each in (entry.mean, entry.std))
    return (images - mean) / std


def train(entry: ExternalModel, network: nn.Module, data: Data, seed: int, steps: int | None = None) -> None:
    """Train with AdamW and cross-entropy for `steps` steps; None for the number of steps of the model."""
    torch.manual_seed(seed)
    steps = entry.steps if steps is None else steps
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=entry.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, entry.lr, total_steps=max(steps, 5))
    for step in range(steps):
        if step == int(entry.frozen_from * steps):
            freeze_statistics(network)
        chosen = torch.randint(len(data.x_train), (entry.batch,))
        output = network(as_taken(entry, data.x_train[chosen]))
        loss = F.cross_entropy(entry.logits(output), data.y_train[chosen])
        if entry.second_loss:
            loss = loss + entry.second_loss * F.cross_entropy(output[1], data.y_train[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def freeze_statistics(network: nn.Module) -> None:
    """Stop the updates of the running statistics of batch normalization."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.no_grad()
def logits_of(entry: ExternalModel, network: nn.Module, images: Tensor) -> Tensor:
    """Return the network's logits [B, K] for images in [0, 1], from its output."""
    return torch.cat([entry.logits(network(as_taken(entry, part))) for part in images.split(100)])


def accuracy(entry: ExternalModel, network: nn.Module, data: Data) -> float:
    """Return the share of test images that are classified correctly."""
    return float((logits_of(entry, network, data.x_test).argmax(1) == data.y_test).float().mean())


def save(entry: ExternalModel, network: nn.Module, directory: Path) -> list[str]:
    """Write the file of the model and return the options of kdx that name it.

    If the file has rounded weights, the network gets them as well.
    """
    file = directory / entry.file
    state = {name: value.detach().clone().contiguous() for name, value in network.state_dict().items()}
    prefixed = {f"module.{name.removeprefix('module.')}": value for name, value in state.items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    if entry.form == "program":
        batch = torch.export.Dim("batch", min=1, max=4096)
        example = as_taken(entry, torch.rand(4, 1, 8, 8))
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, file)
        return []
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        held = FORMS[entry.form](state, prefixed, optimizer)
        torch.save(held, file, **LEGACY.get(entry.form, {}))
        if entry.form == "half":
            network.load_state_dict(held)
    return ["--weights", str(file)]


LEGACY: dict[str, dict[str, Any]] = {"imagenet": {"_use_new_zipfile_serialization": False}}
FORMS = {
    "plain": lambda state, prefixed, optimizer: state,
    "half": lambda state, prefixed, optimizer: {
        k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()
    },
    "imagenet": lambda state, prefixed, optimizer: {
        "epoch": 90,
        "arch": "resnet8",
        "state_dict": prefixed,
        "best_prec1": torch.tensor(97.5),
        "optimizer": optimizer.state_dict(),
    },
    "parallel": lambda state, prefixed, optimizer: {"net": prefixed, "acc": 97.5, "epoch": 20},
    "tutorial": lambda state, prefixed, optimizer: {
        "epoch": 5,
        "model_state_dict": state,
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": 0.1,
    },
    "lightning": lambda state, prefixed, optimizer: {
        "epoch": 3,
        "global_step": 900,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"net.{name}": value for name, value in state.items()},
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"lr": 0.001},
    },
    "timm": lambda state, prefixed, optimizer: {
        "epoch": 12,
        "arch": "lcnet_050",
        "state_dict": state,
        "version": 2,
        "args": argparse.Namespace(model="lcnet_050", lr=0.001),
        "metric": 97.0,
    },
}
"""Layout of the file -> its content."""
