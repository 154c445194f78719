"""`kdx prune`: a smaller classifier, whose channels are some of those of a larger one.

Nothing is trained, except between the cuts of `--rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, UsageError
from ..models.external.names import Share
from ..models.pruning.names import CRITERIA, FOLD, MAGNITUDE, TAYLOR
from ..models.queries import TARGETS
from ..options.declare import DataAccess, MethodStageConfig, OptionSet, TeacherConfig, option
from ..storage.artifacts import strongest
from ..storage.run_dir import MODEL_FILE, RunDir
from .inputs.classifiers import ChosenClassifier, find_classifier
from .inputs.distill_settings import fill_in
from .inputs.image_source import (
    ImageSource,
    choose_source,
    chosen_live_method,
    images_from_formulas,
    live_method_option,
    live_method_options,
    open_with_probe,
)
from .outputs.bars import channel_bars
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..models.pruning.cut import Channels, Select, Sizing
    from ..models.pruning.groups import Group
    from ..models.pruning.latency import TimedSizes
    from ..models.pruning.rounds import Rounds
    from ..training.rounds import RoundOptions
    from ..training.sources import Source

SHARES = {"macs": "macs", "params": "params", "channels": "width", "latency": "latency"}
"""Option -> what it is a share of (`models.external.names.Share`)."""
USUAL_SHARE = 0.5
DEFAULT_POOL = 2560
"""Number of images in the pool without --data and --method."""
TAYLOR_IMAGES, TAYLOR_BATCH = 1024, 32
BATCH_NORM_BATCH = 128
ROUND_STEPS = 200
"""Usual number of steps between two rounds."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig(MethodStageConfig, TeacherConfig, DataAccess):
    """Cut channels out of a classifier.

    The result has a share of its multiply-adds (0.5 by default), parameters or channels; every layer keeps the same
    share of its channels. With --latency, it takes a share of the time of a batch: layers whose channels take longer
    keep fewer. The times are measured on this machine, so that the result is not the same in each run. By --criterion,
    those channels stay that have the largest weights (magnitude) or the largest scales of batch normalization
    (batch-norm), or whose removal changes the loss most (taylor); fold merges similar channels. Statistics of batch
    normalization are then estimated on synthetic images, except with fold, which needs none. Nothing is trained:
    `kdx distill --student pruned/NAME` does that. With --rounds, the channels are cut in several steps, and the
    classifier is trained on the teacher's outputs between them.

    Examples:

      kdx prune
      kdx prune --params 0.3 --criterion fold
      kdx prune students/lenet_half --channels 0.5 --criterion taylor --data transfer-sets/all_layers
      kdx prune --latency 0.7
      kdx prune --macs 0.3 --rounds 3 --name small && kdx distill --student pruned/small
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
    latency: float | None = option(
        None, "Keep a share N of the time of a batch, measured on this device.", above=0, maximum=1, panel="Size"
    )
    criterion: str = option(MAGNITUDE, "Which channels stay.", choices=CRITERIA, panel="Size")
    data: str | None = option(
        None,
        "Images: transfer set or generators (name or path), noise:normal, noise:uniform or real data.",
        metavar="SPEC",
        panel="Source",
        otherwise="structured or natural noise; for tables noise:normal",
    )
    method: str | None = live_method_option()
    rounds: int | None = option(
        None,
        "Cut in N rounds, and train on the teacher's outputs between them.",
        minimum=1,
        panel="Schedule",
        otherwise="1",
    )
    round_steps: int | None = option(
        None, "Optimizer steps between two rounds.", minimum=1, panel="Schedule", otherwise=str(ROUND_STEPS)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"--{name}" for name in SHARES if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} both set the size; give one of them")
        for name in ("data", "method"):
            if self.criterion == FOLD and self.num_rounds == 1 and getattr(self, name) is not None:
                raise UsageError(f"--{name} has no effect on --criterion fold, which needs no images")
        if self.round_steps is not None and self.num_rounds == 1:
            raise UsageError("--round-steps has no effect without --rounds above 1: nothing is trained")

    @property
    def num_rounds(self) -> int:
        """`--rounds`, or 1."""
        return self.rounds or 1

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
        *([] if config.num_rounds == 1 else [f"rounds-{config.num_rounds}"]),
    ]
    place = run.place("pruned", config.name or "-".join(parts))
    inputs = (teacher.input("teacher"), *([] if start is None else [start.input]), *images.inputs)
    before = "" if start is None or start.artifact is None else start.artifact.manifest.needs
    if config.dry_run:
        _try(config, start, run)
    return Plan(place, inputs, strongest("teacher", before, images.needs), PruneInputs(start, images))


def _try(config: PruneConfig, start: ChosenClassifier | None, run: RunDir) -> None:
    """Raise `ConfigError` if the classifier cannot be cut to the size of the options; no time is measured."""
    from ..models.classifier import load_classifier
    from ..models.pruning.cut import width_for

    teacher = run.artifact(run.teacher()).file(MODEL_FILE).read(load_classifier)
    whole = teacher if start is None else start.file.read(load_classifier)
    _require_same_task(whole, teacher, start)
    channels = _channels(config, whole)
    if config.latency is None:
        width_for(whole, channels, config.share)


def _source(config: PruneConfig, run: RunDir) -> ImageSource:
    """Return the source of the options; without any, one that needs nothing but the teacher."""
    if config.data is not None or config.method is not None:
        return choose_source(config, config.data, "--data", run)
    return images_from_formulas(run.artifact(run.teacher()).file(MODEL_FILE), pool=DEFAULT_POOL)


def execute(config: PruneConfig, resolved: PruneInputs, context: StageContext) -> dict[str, Any]:
    """Choose the channels, cut the classifier, write it; return the summary."""
    import torch

    from ..models.classifier import encode_classifier
    from ..models.pruning.rounds import Rounds
    from ..training.rounds import CutsInRounds

    torch.manual_seed(config.seed)
    if resolved.images.reason:
        context.reporter.line(f"--method auto: {resolved.images.name}, because {resolved.images.reason}")
    teacher = context.teacher()
    whole = teacher if resolved.start is None else context.classifier(resolved.start.file)
    _require_same_task(whole, teacher, resolved.start)
    source, probe, _ = open_with_probe(resolved.images, config, teacher, context)
    with context.phase("pruning"):
        channels = _channels(config, whole)
    options = _round_options(config, resolved.images, teacher, whole)
    rounds, timed = Rounds(whole, channels), _timed(whole, channels, context)
    choose, phase = _choose(config, rounds, timed, teacher, source), _phase(context)
    cuts = CutsInRounds(rounds, choose, options, teacher, source, probe, context.placed, context.reporter, phase)
    made, rows = cuts.run(context.checkpoints)
    pruned = made.classifier
    images, steps = _images_used(config, options, pruned), options.steps * (options.rounds - 1)
    context.count(images=images, **({"student_steps": steps} if steps else {}))
    context.reporter.line(f"channels cut in {made.summary}")
    kept = [(group.name, len(channels), len(group.channels)) for group, channels in made.kept.items()]
    content, before = encode_classifier(pruned), encode_classifier(whole)
    context.write(MODEL_FILE, content)
    context.write("channels.png", channel_bars(kept))
    if config.num_rounds > 1:
        context.write_metrics(rows)
    return {
        "model": pruned.spec.architecture,
        "criterion": config.criterion,
        **_sizes(pruned, whole),
        "bytes": len(content),
        "bytes_before": len(before),
        **timed.figures,
        "held_out_agreement": round(probe.agreement(pruned), 6),
        **({} if resolved.start is None else {"held_out_agreement_before": round(probe.agreement(whole), 6)}),
        "source": resolved.images.name,
        "num_images": images,
        **({"rounds": options.rounds, "steps": steps} if steps else {}),
        "channels_kept": [f"{name} {left} of {total}" for name, left, total in kept],
        "left_whole": [f"{name}: {reason}" for name, reason in made.whole.items()],
    }


def _sizes(pruned: Classifier, whole: Classifier) -> dict[str, int]:
    return {
        "num_parameters": pruned.num_parameters,
        "parameters_before": whole.num_parameters,
        "multiply_adds": pruned.multiply_adds(),
        "multiply_adds_before": whole.multiply_adds(),
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


def _channels(config: PruneConfig, whole: Classifier) -> Channels:
    """Return the channels that the options allow to cut.

    Raises:
        ConfigError: the criterion does not fit the network, nothing can be cut, or a layer would have no channel left.
    """
    from ..models.pruning.criteria import unfit
    from ..models.pruning.cut import channel_groups

    channels = channel_groups(whole)
    reasons = unfit(config.criterion, channels)
    if len(reasons) == len(channels.groups):
        reason = next(iter(reasons.values()))
        raise ConfigError(f"--criterion {config.criterion} does not fit {whole.spec.architecture}: {reason}")
    channels = channels.without(reasons)
    for group in channels.groups:
        count = len(group.channels) // group.unit
        if config.channels is not None and count * config.channels < 0.5:
            raise ConfigError(
                f"--channels {config.channels:g} leaves no channel of {group.name}, which has {count}; the share is at "
                f"least {0.5 / count:.3g} there"
            )
    return channels


def _round_options(config: PruneConfig, images: ImageSource, teacher: Classifier, whole: Classifier) -> RoundOptions:
    from ..training.rounds import RoundOptions

    batch = None if config.criterion == FOLD else BATCH_NORM_BATCH
    if config.num_rounds == 1:
        return RoundOptions(1, None, batch)
    settings = fill_in(None, images, teacher, whole)
    training = settings.loop_options(config.round_steps or ROUND_STEPS, teacher, config.seed)
    return RoundOptions(config.num_rounds, training, batch)


def _images_used(config: PruneConfig, options: RoundOptions, pruned: Classifier) -> int:
    """Return the number of images that were drawn: for the criterion, for batch normalization, and for training."""
    from ..models.hooks import batch_norm_layers
    from ..training.batch_norm import NUM_IMAGES

    estimated = options.batch_norm_batch is not None and bool(batch_norm_layers(pruned.network))
    each = TAYLOR_IMAGES * (config.criterion == TAYLOR) + NUM_IMAGES * estimated
    trained = 0 if options.distillation is None else options.steps * options.distillation.batch_size
    return options.rounds * each + (options.rounds - 1) * trained


def _choose(
    config: PruneConfig, rounds: Rounds, timed: TimedSizes, teacher: Classifier, source: Source
) -> Callable[[int, Channels, Mapping[Group, Group]], tuple[Sizing, Select]]:
    """Return the function that says which channels a round cuts (`training.rounds.Choose`)."""
    from ..models.pruning.criteria import selection
    from ..models.pruning.rounds import share_of_round

    def choose(number: int, channels: Channels, origins: Mapping[Group, Group]) -> tuple[Sizing, Select]:
        present, share = rounds.classifier, share_of_round(config.share, number, config.num_rounds)
        importance, select = selection(config.criterion, present, channels, config.seed, _labelled(source, teacher))
        if config.latency is None:
            return rounds.sized(share, config.share, origins), select
        return timed.sized(number, share.value, present, importance, origins), select

    return choose


def _timed(whole: Classifier, channels: Channels, context: StageContext) -> TimedSizes:
    """Return the sizes by time. What is measured is stored, so that a resumed run uses it."""
    from ..models.pruning.latency import TimedSizes

    def once(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with context.phase("timing"):
            return context.checkpoints.once(name, measure)

    return TimedSizes(whole, channels, context.device, once)


def _phase(context: StageContext) -> Callable[[str], AbstractContextManager[None]]:
    """Return the phases of the context; in that of the training, a signal has its effect at the next checkpoint."""

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with context.phase(name), context.checkpoints.loop() if name == "distillation" else nullcontext():
            yield

    return phase


def _labelled(source: Source, teacher: Classifier) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of pixels and the classes that the teacher predicts for them."""
    import torch

    for _ in range(TAYLOR_IMAGES // TAYLOR_BATCH):
        batch = source.sample(TAYLOR_BATCH)
        with torch.no_grad(), teacher.queries.purpose(TARGETS):
            logits = teacher(batch.images) if batch.targets is None else batch.targets
        yield batch.images, logits.argmax(1)


STAGE = Stage("prune", PruneConfig, plan, execute)
