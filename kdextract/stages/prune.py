"""`kdx prune`: a smaller classifier, whose channels are some of those of a larger one. Nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, UsageError
from ..methods import live_method
from ..models.external.names import Share
from ..models.queries import TARGETS
from ..options.declare import DataAccess, MethodStageConfig, OptionSet, TeacherConfig, option
from ..storage.artifacts import strongest
from ..storage.run_dir import MODEL_FILE, RunDir
from .inputs.classifiers import ChosenClassifier, find_classifier
from .inputs.image_source import (
    ImageSource,
    LiveImages,
    NoiseImages,
    choose_source,
    chosen_live_method,
    live_method_option,
    live_method_options,
    open_with_probe,
)
from .inputs.method_inputs import find_method_inputs
from .outputs.bars import channel_bars
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..models.pruning.cut import Channels, Cut, Select
    from ..training.sources import Source

MAGNITUDE, BATCH_NORM, TAYLOR, FOLD = "magnitude", "batch-norm", "taylor", "fold"
CRITERIA = [MAGNITUDE, BATCH_NORM, TAYLOR, FOLD]
SHARES = {"macs": "macs", "params": "params", "channels": "width"}
"""Option -> what it is a share of (`models.external.names.Share`)."""
USUAL_SHARE = 0.5
DEFAULT_SOURCE, DEFAULT_POOL = "structured_noise", 2560
"""The live method without --data and --method, and the number of images in its pool."""
TAYLOR_IMAGES, TAYLOR_BATCH = 1024, 32
BATCH_NORM_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class PruneConfig(MethodStageConfig, TeacherConfig, DataAccess):
    """Cut channels out of a classifier.

    The result has a share of its multiply-adds (0.5 by default), parameters or channels; every layer keeps the same
    share of its channels. By --criterion, those stay that have the largest weights (magnitude) or the largest scales of
    batch normalization (batch-norm), or whose removal changes the loss most (taylor); fold merges similar channels.
    Statistics of batch normalization are then estimated on synthetic images, except with fold, which needs none.
    Nothing is trained: `kdx distill --student pruned/NAME` does that.

    Examples:

      kdx prune
      kdx prune --params 0.3 --criterion fold
      kdx prune students/lenet_half --channels 0.5 --criterion taylor --data transfer-sets/all_layers
      kdx prune --macs 0.3 --name small && kdx distill --student pruned/small
    """

    artifact: str | None = option(
        None,
        "Classifier of the run, or a model.safetensors file; default: the teacher.",
        positional=True,
    )
    macs: float | None = option(
        None, "Keep a share N of the multiply-adds.", above=0, maximum=1, panel="Size", otherwise=f"{USUAL_SHARE:g}"
    )
    params: float | None = option(None, "Keep a share N of the parameters.", above=0, maximum=1, panel="Size")
    channels: float | None = option(
        None, "Keep a share N of the channels of each layer.", above=0, maximum=1, panel="Size"
    )
    criterion: str = option(MAGNITUDE, "Which channels stay.", choices=CRITERIA, panel="Size")
    data: str | None = option(
        None,
        "Images: transfer set or generators (name or path), noise:normal, noise:uniform or real data.",
        metavar="SPEC",
        panel="Source",
        otherwise="structured noise; for tables noise:normal",
    )
    method: str | None = live_method_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"--{name}" for name in SHARES if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} both set the size; give one of them")
        for name in ("data", "method"):
            if self.criterion == FOLD and getattr(self, name) is not None:
                raise UsageError(f"--{name} has no effect on --criterion fold, which needs no images")

    @property
    def size(self) -> tuple[str, float]:
        """The option that sets the size, and the share."""
        given = [(name, getattr(self, name)) for name in SHARES if getattr(self, name) is not None]
        return given[0] if given else ("macs", USUAL_SHARE)

    @property
    def share(self) -> Share:
        """What the result has of the classifier."""
        name, value = self.size
        return Share(SHARES[name], value)

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The live method, if one is named, and the class of its options."""
        return chosen_live_method("prune", self.method)

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """The options of every live method, by name."""
        return live_method_options()


@dataclass(frozen=True)
class PruneInputs:
    """The classifier to cut, None for the run's teacher, and the source of images."""

    start: ChosenClassifier | None
    images: ImageSource


def plan(config: PruneConfig, run: RunDir) -> Plan[PruneInputs]:
    """Plan: reads the teacher, the classifier if it is another one, and a source of images."""
    config.method_config()
    teacher = run.artifact(run.teacher())
    start = None if config.artifact is None else find_classifier(config.artifact, run)
    if start is not None and start.artifact is not None and start.artifact.kind == "teacher":
        start = None
    images = _source(config, run)
    size, share = config.size
    parts = [
        *([] if start is None else [start.name]),
        *([] if config.criterion == MAGNITUDE else [config.criterion]),
        f"{size}-{share:g}",
    ]
    place = run.place("pruned", config.name or "-".join(parts))
    inputs = (teacher.input("teacher"), *([] if start is None else [start.input]), *images.inputs)
    before = "" if start is None or start.artifact is None else start.artifact.manifest.needs
    return Plan(place, inputs, strongest("teacher", before, images.needs), PruneInputs(start, images))


def _source(config: PruneConfig, run: RunDir) -> ImageSource:
    """Return the source of the options; without any, structured noise, and normal noise for rows of a table."""
    if config.data is not None or config.method is not None:
        return choose_source(config, config.data, "--data", run)
    from ..models.classifier import read_spec

    if run.artifact(run.teacher()).file(MODEL_FILE).read(read_spec).is_table:
        return NoiseImages.named("noise:normal")
    method = live_method(DEFAULT_SOURCE)
    options: Any = method.config
    return LiveImages.of(method, options(pool=DEFAULT_POOL), find_method_inputs(method, run))


def execute(config: PruneConfig, resolved: PruneInputs, context: StageContext) -> dict[str, Any]:
    """Choose the channels, cut the classifier, estimate batch normalization, write it; return the summary."""
    import torch

    from ..models.classifier import encode_classifier

    torch.manual_seed(config.seed)
    if resolved.images.reason:
        context.reporter.line(f"--method auto: {resolved.images.name}, because {resolved.images.reason}")
    teacher = context.teacher()
    whole = teacher if resolved.start is None else context.classifier(resolved.start.file)
    _require_same_task(whole, teacher, resolved.start)
    source, probe, _ = open_with_probe(resolved.images, config, teacher, context)
    with context.phase("pruning"):
        made, used = _cut(config, whole, teacher, source, context)
    pruned = context.placed(made.classifier)
    if config.criterion != FOLD:
        with context.phase("batch normalization"):
            used += _estimate_batch_norm(pruned, source)
    context.count(images=used)
    context.reporter.line(f"channels cut in {made.summary}")
    kept = [(group.name, len(channels), len(group.channels)) for group, channels in made.kept.items()]
    content, before = encode_classifier(pruned), encode_classifier(whole)
    context.write(MODEL_FILE, content)
    context.write("channels.png", channel_bars(kept))
    return {
        "model": pruned.spec.architecture,
        "criterion": config.criterion,
        "num_parameters": pruned.num_parameters,
        "parameters_before": whole.num_parameters,
        "multiply_adds": pruned.multiply_adds(),
        "multiply_adds_before": whole.multiply_adds(),
        "bytes": len(content),
        "bytes_before": len(before),
        "held_out_agreement": round(probe.agreement(pruned), 6),
        **({} if resolved.start is None else {"held_out_agreement_before": round(probe.agreement(whole), 6)}),
        "source": resolved.images.name,
        "num_images": used,
        "channels_kept": [f"{name} {left} of {total}" for name, left, total in kept],
        "left_whole": [f"{name}: {reason}" for name, reason in made.whole.items()],
    }


def _require_same_task(whole: Classifier, teacher: Classifier, start: ChosenClassifier | None) -> None:
    """Raise `ConfigError` unless the classifier has the input shape and the number of classes of the teacher."""
    ours, theirs = ((one.input_shape, one.num_classes) for one in (whole, teacher))
    if ours != theirs:
        assert start is not None
        raise ConfigError(
            f"{start.input.path} takes images of shape {ours[0]} and has {ours[1]} classes, the run's teacher "
            f"{theirs[0]} and {theirs[1]}; they must be equal"
        )


def _cut(
    config: PruneConfig, whole: Classifier, teacher: Classifier, source: Source, context: StageContext
) -> tuple[Cut, int]:
    """Return the cut classifier and the number of images that the criterion used.

    Raises:
        ConfigError: the criterion does not fit the network, nothing can be cut, or a layer would have no channel left.
    """
    from ..models.pruning.cut import channel_groups, cut_to

    channels = channel_groups(whole)
    unfit = _unfit(config.criterion, channels)
    if len(unfit) == len(channels.groups):
        reason = next(iter(unfit.values()))
        raise ConfigError(f"--criterion {config.criterion} does not fit {whole.spec.architecture}: {reason}")
    channels = channels.without(unfit)
    for group in channels.groups:
        count = len(group.channels) // group.unit
        if config.channels is not None and count * config.channels < 0.5:
            raise ConfigError(
                f"--channels {config.channels:g} leaves no channel of {group.name}, which has {count}; the share is at "
                f"least {0.5 / count:.3g} there"
            )
    select, used = _selection(config, whole, teacher, channels, source, context)
    return cut_to(whole, config.share, select, channels), used


def _unfit(criterion: str, channels: Channels) -> dict[Any, str]:
    """Return the groups of channels that the criterion cannot be used for, with the reason."""
    from ..models.pruning.fold import unfoldable
    from ..models.pruning.importance import scaling_layers

    if criterion == FOLD:
        return unfoldable(channels)
    if criterion == BATCH_NORM:
        plain = [group for group in channels.groups if not scaling_layers(channels.network, group)]
        return dict.fromkeys(plain, "no batch normalization scales its channels")
    return {}


def _selection(
    config: PruneConfig,
    whole: Classifier,
    teacher: Classifier,
    channels: Channels,
    source: Source,
    context: StageContext,
) -> tuple[Select, int]:
    """Return the selection of the criterion, and the number of images that it used."""
    from copy import deepcopy

    from ..models.classifier import Classifier
    from ..models.pruning.cut import most_important
    from ..models.pruning.fold import folding
    from ..models.pruning.importance import batch_norm_scales, magnitude, taylor

    if config.criterion == FOLD:
        return folding(whole, config.seed), 0
    if config.criterion == TAYLOR:
        trained = Classifier(whole.spec, deepcopy(channels.network)).eval().to(context.device)
        return most_important(taylor(trained, channels.groups, _labelled(source, teacher))), TAYLOR_IMAGES
    return most_important(batch_norm_scales if config.criterion == BATCH_NORM else magnitude), 0


def _labelled(source: Source, teacher: Classifier) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of pixels and the classes that the teacher predicts for them."""
    import torch

    for _ in range(TAYLOR_IMAGES // TAYLOR_BATCH):
        batch = source.sample(TAYLOR_BATCH)
        with torch.no_grad(), teacher.queries.purpose(TARGETS):
            logits = teacher(batch.images) if batch.targets is None else batch.targets
        yield batch.images, logits.argmax(1)


def _estimate_batch_norm(pruned: Classifier, source: Source) -> int:
    """Estimate the statistics of batch normalization, in place; return the number of images used, 0 without any."""
    from ..models.hooks import batch_norm_layers
    from ..training.batch_norm import NUM_IMAGES, estimate_batch_norm

    estimate_batch_norm(pruned, source, BATCH_NORM_BATCH)
    return NUM_IMAGES if batch_norm_layers(pruned.network) else 0


STAGE = Stage("prune", PruneConfig, plan, execute)
