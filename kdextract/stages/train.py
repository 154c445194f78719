"""`kdx train`: train a teacher on real data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..data.tables import is_table
from ..errors import ConfigError, UsageError
from ..models.external.names import parse_input_size
from ..options.declare import DataAccess, NetworkConfig, StageConfig, option, spelling
from ..storage.run_dir import RunDir
from .inputs.image_artifacts import ImageArtifact, find_image_artifact, read_labels, read_transfer_set
from .inputs.real_data import few_images, images_for, open_real_data, real_data_input
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..data.real_data import RealData
    from ..models.architectures import InputShape
    from ..models.classifier import Classifier
    from ..training.augmentation import Augmenter
    from ..training.sources import ImagePool, Mixture

MIN_STEPS = 1500
SMOOTHING, WHITENED = 0.2, 5000
"""Label smoothing of the recipe `fast`, and number of images from which its whitening is computed (Jordan 2024)."""
MAX_ACCURACY_IMAGES = 10_000
"""The accuracy on training images is measured on at most so many of them, drawn at random."""


@dataclass(frozen=True)
class Recipe:
    """Defaults of optimizer, schedule and augmentation.

    Attributes:
        warmup: share of the steps in which the learning rate rises.
        fast: what Jordan 2024 adds (arXiv 2404.00498): a whitening convolution is computed from training images, if the
            network has one (section 3.2); label smoothing; mirrored images alternate (section 3.6); and the rate falls
            linearly.
    """

    optimizer: str
    lr: float
    weight_decay: float
    shift: int
    warp: float
    epochs: int
    warmup: float
    fast: bool = False


RECIPES = {
    "adam": Recipe("adam", 3e-3, 0.0, shift=2, warp=0.1, epochs=12, warmup=0.1),
    "sgd": Recipe("sgd", 0.1, 5e-4, shift=4, warp=0.0, epochs=200, warmup=0.02),
    "fast": Recipe("sgd", 0.15, 1e-3, shift=2, warp=0.0, epochs=10, warmup=0.2, fast=True),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StageConfig, NetworkConfig, DataAccess):
    """Train a teacher on real data.

    The learning rate rises, then falls to 0; images are shifted at random. The weights after the last step are kept.
    Some training images are used only to measure the accuracy at the end; test images are not read.

    Examples:

      kdx train
      kdx train --model hinton1200 --data mnist --data-dir ~/data
      kdx train --data folder:photos --epochs 30 --run runs/photos
      kdx train --model resnet18 --data cifar10 --recipe sgd --data-dir ~/data
      kdx train --model airbench --data cifar10 --recipe fast --precision bf16 --data-dir ~/data
      kdx train --data mnist --shots 10 --augment runs/default/transfer-sets/all_layers --run runs/few
    """

    model: str = option("lenet", "Network; `kdx models` lists them.", metavar="NAME", panel="Model")
    data: str = option(
        "digits",
        "Real data: digits, mnist, iris, 2d:moons, folder:DIR, npz:FILE, hf:NAME ...",
        metavar="SPEC",
        panel="Source",
    )
    input_size: str | None = option(
        None, "Image size of the model.", metavar="CxHxW", panel="Model", otherwise="the model's own"
    )
    recipe: str = option(
        "adam",
        "Defaults of this panel and of augmentation: for small networks (adam), CIFAR's (sgd), or few epochs (fast).",
        choices=list(RECIPES),
        panel="Schedule",
    )
    epochs: int | None = option(
        None,
        "Passes over the data.",
        minimum=1,
        panel="Schedule",
        otherwise="12; sgd 200; fast 10; more for small data sets",
    )
    batch_size: int = option(128, "Images per step.", minimum=2, panel="Schedule")
    lr: float | None = option(
        None,
        "Peak learning rate.",
        above=0,
        panel="Schedule",
        otherwise="0.003; sgd 0.1; fast 0.15",
    )
    weight_decay: float | None = option(
        None,
        "Weight decay.",
        minimum=0,
        panel="Schedule",
        otherwise="0; sgd 0.0005; fast 0.001",
    )
    shift: int | None = option(
        None,
        "Shift images by up to N pixels, at random.",
        minimum=0,
        panel="Augmentation",
        otherwise="2; sgd 4; fast 2; tables: 0",
    )
    warp: float | None = option(
        None,
        "Rotate, scale and shear images at random; 0.1 is about 6 degrees.",
        minimum=0,
        panel="Augmentation",
        otherwise="0.1; sgd, fast, tables: 0",
    )
    flip: bool | None = option(
        None, "Mirror half of the images.", panel="Augmentation", otherwise="on where the class stays the same"
    )
    validation: float = option(
        0.05,
        "Share held out to measure accuracy.",
        minimum=0,
        maximum=0.9,
        panel="Source",
    )
    shots: int | None = option(None, "Images per class, drawn by the seed.", minimum=1, panel="Source", otherwise="all")
    augment: str | None = option(
        None,
        "Transfer set (name or path) to add to the images.",
        metavar="ARTIFACT",
        panel="Source",
    )
    augment_share: float | None = option(
        None, "Share of --augment in a batch.", above=0, maximum=1, panel="Source", otherwise="0.5"
    )
    augment_labels: str | None = option(
        None,
        "Labels of --augment: soft (probabilities) or hard (classes).",
        choices=["soft", "hard"],
        panel="Source",
        otherwise="soft",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("augment_share", "augment_labels"):
            if self.augment is None and getattr(self, name) is not None:
                raise UsageError(f"{spelling(name)} has no effect without --augment")


def plan(config: TrainConfig, run: RunDir) -> Plan[ImageArtifact | None]:
    """Plan: writes the run's teacher; reads real data, and the transfer set of `--augment` if there is one."""
    from ..models.architectures import architecture

    architecture(config.model)
    if config.input_size is not None:
        parse_input_size(config.input_size)
    inputs = [real_data_input(config, config.data, "train")]
    added = None
    if config.augment is not None:
        added = find_image_artifact(config.augment, run, "--augment", ["transfer-set"])
        inputs.append(added.input("transfer-set"))
    return Plan(run.place("teacher"), tuple(inputs), "", added)


def execute(config: TrainConfig, added: ImageArtifact | None, context: StageContext) -> dict[str, Any]:
    """Load the data, train the teacher, measure its accuracy, and write `model.safetensors`."""
    import torch

    from ..models.classifier import Classifier, ClassifierSpec, encode_classifier
    from ..training.loop import Schedule
    from ..training.supervised import fit, predict

    torch.manual_seed(config.seed)
    with context.phase("data"):
        images, labels, class_names = _read_images(config, context)
    trained_on, set_aside = _split(len(images), config.validation, config.seed)
    aside = images[set_aside], labels[set_aside]
    images, labels = images[trained_on], labels[trained_on]
    mean, std = _channel_statistics(images)
    channels, height, width = images.shape[1:]
    teacher = Classifier(ClassifierSpec(config.model, (channels, height, width), class_names, mean, std))
    teacher = context.placed(teacher)
    steps_per_epoch = max(1, len(images) // config.batch_size)
    recipe = chosen_recipe(config)
    epochs = config.epochs or max(recipe.epochs, math.ceil(MIN_STEPS / steps_per_epoch))
    steps = epochs * steps_per_epoch
    pool = _pool(config, images, labels, added, teacher, context)
    with context.phase("train"), context.checkpoints.loop():
        rows = fit(
            teacher,
            pool,
            config.batch_size,
            Schedule(
                steps,
                recipe.lr,
                warmup=int(steps * recipe.warmup),
                optimizer=recipe.optimizer,
                weight_decay=recipe.weight_decay,
                linear=recipe.fast,
            ),
            _augmenter(config, teacher),
            context.checkpoints,
            context.reporter,
            SMOOTHING if recipe.fast else 0.0,
            _whiten(teacher, images, config.seed) if recipe.fast else (),
        )
    context.write("model.safetensors", encode_classifier(teacher))
    context.write_metrics(rows)

    def accuracy(images: torch.Tensor, labels: torch.Tensor) -> float:
        return round(float((predict(teacher, images).argmax(1) == labels).float().mean()), 6)

    measured = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))[:MAX_ACCURACY_IMAGES]
    return {
        "model": config.model,
        "num_parameters": teacher.num_parameters,
        "num_images": len(images),
        "epochs": epochs,
        "steps": steps,
        "train_accuracy": accuracy(images[measured], labels[measured]),
        **({"validation_accuracy": accuracy(*aside), "validation_images": len(set_aside)} if len(set_aside) else {}),
    }


def chosen_recipe(config: TrainConfig) -> Recipe:
    """Return the recipe of the options, with the values that the user has given in place of its defaults."""
    names = [field.name for field in fields(Recipe) if hasattr(config, field.name) and field.name != "epochs"]
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return replace(RECIPES[config.recipe], **given)


def _chosen_input_shape(config: TrainConfig, data: RealData) -> InputShape:
    from ..models.architectures import architecture

    if config.input_size is not None:
        return parse_input_size(config.input_size)
    channels, height, width = data.images.shape[1:]
    own = architecture(config.model).input_shape
    if is_table((channels, height, width)):
        return 1, 1, width
    if is_table(own):
        raise ConfigError(
            f"{config.model} is for tables; for images, give a size: --input-size {channels}x{height}x{width}"
        )
    return channels, *own[1:]


def _augmenter(config: TrainConfig, teacher: Classifier) -> Augmenter:
    """Return the random augmentation of images; it changes no rows of a table."""
    from ..training.augmentation import Augmenter

    if teacher.is_table:
        return Augmenter(0, False, 0.0, config.seed + 1)
    recipe = chosen_recipe(config)
    return Augmenter(recipe.shift, _mirrors(config) and not recipe.fast, recipe.warp, config.seed + 1)


def _mirrors(config: TrainConfig) -> bool:
    """Return whether images are mirrored."""
    from ..data.load import mirrors_make_sense

    return mirrors_make_sense(config.data) if config.flip is None else config.flip


def _whiten(teacher: Classifier, images: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Compute the whitening convolution of the teacher, if it has one, from training images; return its weights."""
    import torch

    from ..models.architectures.airbench import Whitening
    from ..models.pixels import to_pixels

    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    pixels = to_pixels(images[shuffled[:WHITENED]].to(teacher.device))
    layers = [layer for layer in teacher.network.modules() if isinstance(layer, Whitening)]
    for layer in layers:
        layer.fit((pixels - teacher.mean) / teacher.std)
    return [layer.weight for layer in layers]


def _read_images(config: TrainConfig, context: StageContext) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Return images at the model's input size, uint8 [N, channels, height, width], labels [N], and class names."""
    data = open_real_data(config, config.data, "train", "training", context)
    shape = _chosen_input_shape(config, data)
    if config.shots is None:
        return images_for(shape, None, data, config.data, context), data.labels, data.class_names
    chosen = few_images(data, config.shots * len(data.class_names), config.seed)
    return images_for(shape, None, data, config.data, context, chosen), data.labels[chosen], data.class_names


def _pool(
    config: TrainConfig,
    images: torch.Tensor,
    labels: torch.Tensor,
    added: ImageArtifact | None,
    teacher: Classifier,
    context: StageContext,
) -> ImagePool | Mixture:
    """Return the pool for batches: the real images, mixed with those of the transfer set `added` if there is one."""
    import torch.nn.functional as F

    from ..training.sources import ImagePool, MirroringPool, Mixture

    alternates = chosen_recipe(config).fast and not teacher.is_table and _mirrors(config)
    real_pool = MirroringPool if alternates else ImagePool
    if added is None:
        return real_pool(images, labels, config.seed, context.device)
    made, logits = read_transfer_set(added, teacher.input_shape, teacher.num_classes)
    soft = F.one_hot(read_labels(added), teacher.num_classes).float()
    if config.augment_labels != "hard":
        soft = logits.softmax(1)
    real = real_pool(images, F.one_hot(labels, teacher.num_classes).float(), config.seed, context.device)
    share = 0.5 if config.augment_share is None else config.augment_share
    return Mixture(real, ImagePool(made, soft, config.seed + 2, context.device), share)


def _split(num_images: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the images to train on and of those to set aside, both in ascending order."""
    import torch

    shuffled = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    count = round(share * num_images)
    return shuffled[count:].sort().values, shuffled[:count].sort().values


def _channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 images [N, channels, height, width], in pixel units."""
    import torch

    sums = torch.stack([chunk.sum((0, 2, 3), dtype=torch.float64) for chunk in images.split(4096)]).sum(0)
    squares = torch.stack([chunk.double().square().sum((0, 2, 3)) for chunk in images.split(4096)]).sum(0)
    count = images[:, 0].numel()
    mean = sums / count / 255
    std = (squares / count / 255**2 - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())


STAGE = Stage("train", TrainConfig, plan, execute)
