"""`kdx distill`: train a student to answer like the teacher. Opens no real data unless `--data` names some."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import read_manifest
from ..budget import CLOSING_SECONDS, parse_duration, steps_within
from ..config import DataAccess, MethodStageConfig, NetworkConfig, OptionSet, TeacherConfig, VerifierConfig, option
from ..errors import UsageError
from ..methods import live_method, live_names
from ..progress import Reporter
from ..run_dir import RunDir
from ..stage_runner import Plan, Stage, StageContext, artifact_input
from .distill_settings import CONVOLUTION_RATE, LINEAR_RATE, USUAL_SETTINGS, Settings, fill_in
from .student_source import AUTO, STORED, Choice, choose, inputs_of, open_source
from .student_start import student_start
from .transfer_sets import show_source, verifier_input

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..distillation import DistillationResult
    from ..sources import Source
    from ..training import CheckpointSaver, Monitor

WARMUP_SHARE = 0.05
TRIAL_BLOCK = 20


@dataclass(frozen=True, kw_only=True)
class DistillConfig(MethodStageConfig, TeacherConfig, NetworkConfig, VerifierConfig, DataAccess):
    """Train a student to answer like the teacher: on a transfer set, on images made meanwhile, or on what you name.

    Without --data and --method, it takes the run's only transfer set; in a run without one, --method auto picks a
    method that needs nothing but the teacher. The last weights are kept: nothing is selected on real data. The number
    of steps (or --budget) is the same for every source of images, so a student from noise (floor) or from real data
    (ceiling) compares at equal cost. It ends with an estimate of the student's accuracy on real images, none of which
    is opened for it.

    Examples:

      kdx distill --student lenet_half

      kdx distill --student lenet5_half --budget 120s

      kdx distill --method structured_noise --patience 8

      kdx distill --data noise:normal --name floor

      kdx distill --data mnist --name ceiling

      kdx distill --student compressed/tucker
    """

    student: str = option(
        "lenet_half",
        "Network: a name of `kdx models`, half:SPEC, width:0.5 (of the teacher's), torchvision/NAME, timm/NAME, "
        "model.py:build; or what to start from: compressed/NAME of the run, or a model.safetensors file.",
        metavar="SPEC",
    )
    data: str | None = option(
        None,
        "Transfer set of the run, or a path to one, or noise:normal, noise:uniform, or real data (mnist ...).",
        metavar="SPEC",
    )
    method: str | None = option(
        None, "Make images while the student learns; `kdx methods` explains.", choices=lambda: [AUTO, *live_names()]
    )
    budget: str | None = option(
        None,
        "Wall-clock time for all of it, such as 120s or 2m; a short trial turns it into a number of steps, which is "
        "recorded. If they turn out to take longer, the rate falls to zero early.",
        metavar="TIME",
    )
    patience: int | None = option(
        None,
        "Stop when agreement with the teacher on held-out synthetic images has not grown at so many looks in a row "
        "(40 looks in all); the rate then falls to zero.",
        minimum=1,
    )
    snapshots: int = option(0, "Also keep the student as it was at so many moments on the way.", minimum=0)
    steps: int | None = option(None, f"Optimizer steps; the default is {USUAL_SETTINGS['steps']}.", minimum=1)
    batch_size: int | None = option(None, f"Images per step; the default is {USUAL_SETTINGS['batch_size']}.", minimum=2)
    lr: float | None = option(
        None,
        f"First learning rate; the default is {CONVOLUTION_RATE:g}, or {LINEAR_RATE:g} for a student without "
        "convolutions.",
        above=0,
    )
    optimizer: str = option("soap", "What takes the steps; soap learns more per image.", choices=["soap", "adam"])
    schedule: str = option("cosine", "How the rate falls.", choices=["cosine", "constant"])
    loss: str | None = option(
        None,
        f"What to minimize between the two networks' answers; the default is {USUAL_SETTINGS['loss']}.",
        choices=["kl", "ce", "l1", "mse"],
    )
    temperature: float | None = option(
        None,
        f"Divides the logits of both networks in kl and ce; the default is {USUAL_SETTINGS['temperature']:g}, or the "
        "method's own.",
        above=0,
    )
    temperature_scaling: bool = option(True, "Multiply kl and ce by the squared temperature.")
    shift: int | None = option(
        None,
        f"Shift images at random by up to so many pixels; the default is {USUAL_SETTINGS['shift']}, or 0 where every "
        "image is new, and for tables.",
        minimum=0,
    )
    warp: float | None = option(
        None,
        "Turn, scale and shear images at random, 0.1 turns by about 6 degrees; the default is "
        f"{USUAL_SETTINGS['warp']:g}, or 0 where every image is new, and for tables.",
        minimum=0,
    )
    flip: bool = option(False, "Mirror half of the images.")
    remix: bool | None = option(
        None,
        "Make other drawings of the images: join two, change strokes and greys, fade out at a frame; the "
        "default for images of trained generators and of inversion where the teacher's data are bright on black or "
        "dark on white.",
    )
    inherit: bool = option(
        True, "Start with the teacher's strongest units, where the student is a narrower copy of the teacher."
    )
    batch_norm: str | None = option(
        None,
        "Batch normalization of the student: train (default); frozen, its statistics stay as they are; frozen-affine, "
        "its scales and shifts as well.",
        choices=["train", "frozen", "frozen-affine"],
    )
    teacher_accuracy: float | None = option(
        None,
        "The teacher's accuracy on real images, in [0, 1], for an estimate of the student's; the default is what "
        "`kdx train` measured.",
        above=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss in ("l1", "mse") and (self.temperature is not None or not self.temperature_scaling):
            raise UsageError(f"--temperature and --temperature-scaling have no effect on --loss {self.loss}")
        if self.budget is not None:
            parse_duration(self.budget)
            if self.steps is not None:
                raise UsageError("--budget and --steps both say how long to go on; give one of them")

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The live method, if one is named."""
        if self.method in (None, AUTO):
            return ("distill without --method" if self.method is None else "--method auto"), OptionSet
        return f"--method {self.method}", live_method(str(self.method)).config

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """Every live method."""
        return {name: live_method(name).config for name in live_names()}


def plan(config: DistillConfig, run: RunDir) -> Plan:
    """Reads the teacher and one source of images."""
    config.method_config()
    teacher = artifact_input("teacher", run.teacher())
    choice = choose(config, run)
    if config.verifier is not None and not choice.makes_images:
        raise UsageError("--verifier has no effect here: nothing makes images while the student learns")
    more, needs = inputs_of(choice, config, run)
    start = student_start(config.student, run)
    inputs = (teacher, *more, *verifier_input(config, run), *start.inputs)
    return Plan(run.place("student", config.name or start.name), inputs, needs)


def execute(config: DistillConfig, context: StageContext) -> dict[str, Any]:
    """Build the student and its source, distil, write `model.safetensors`."""
    import torch

    from ..classifier import encode_classifier
    from ..inheritance import inherit
    from ..observer import HELD_OUT_IMAGES, Observer, Probe
    from ..sources import Described

    torch.manual_seed(config.seed)
    choice = choose(config, context.run)
    if choice.reason:
        context.reporter.line(f"--method auto: {choice.name}, because {choice.reason}")
    teacher = context.teacher()
    start = student_start(config.student, context.run)
    student = context.placed(start.build(teacher))
    inherited = config.inherit and not start.is_given and inherit(teacher, student)
    settings = fill_in(config, choice, teacher, student)
    with context.phase("source"):
        source = open_source(choice, config, _method_config(config, choice), teacher, context)
        held_out = context.checkpoints.once_tensor("held_out", lambda: source.held_out(HELD_OUT_IMAGES))
        probe = Probe.of(teacher, held_out)
    facts = source.facts if isinstance(source, Described) else {}
    if facts:
        context.reporter.line(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))
    loop = Loop(config, settings, teacher, source)
    steps = _planned_steps(loop, choice, student, context)
    observer = Observer(probe, steps, config.patience, config.snapshots, _seconds_left(config, context))
    with context.phase("distillation"), context.checkpoints.loop():
        result = loop.run(student, steps, context.checkpoints, context.reporter, observer)
    taken = int(result.rows[-1]["step"])
    queries = result.teacher_queries + source.teacher_queries
    num_images = source.num_images
    context.count(images=num_images, teacher_queries=queries, student_steps=taken)
    context.budget["seconds"]["synthesis"] = round(result.source_seconds, 2)
    context.write("model.safetensors", encode_classifier(student))
    context.write_metrics(result.rows)
    verified = show_source(config, context, teacher, source) if choice.makes_images else {}
    for snapshot in observer.snapshots:
        context.write(snapshot.file_name, snapshot.content)
    context.budget["snapshots"] = [
        {"file": snapshot.file_name, "step": snapshot.step, "seconds": snapshot.seconds}
        for snapshot in observer.snapshots
    ]
    return {
        "student": student.spec.architecture,
        "num_parameters": student.num_parameters,
        "teacher_parameters": teacher.num_parameters,
        "inherited": inherited,
        "source": Path(choice.name).name if choice.kind in STORED else choice.name,
        "num_images": num_images,
        "steps": taken,
        "stopped_early": taken < steps,
        "loss": result.rows[-1]["loss"],
        "held_out_agreement": round(probe.agreement(student), 6),
        **({} if probe.stability is None else {"held_out_stability": round(probe.stability, 6)}),
        **verified,
        **_estimate(config, choice, teacher, student, taken * settings.batch_size, context),
        "settings": vars(settings),
        **({"source_facts": facts} if facts else {}),
    }


def _estimate(
    config: DistillConfig,
    choice: Choice,
    teacher: Classifier,
    student: Classifier,
    images_seen: int,
    context: StageContext,
) -> dict[str, float]:
    """Return what the student's agreement and accuracy on real images should be, as far as that can be said.

    The teacher's accuracy has to be known, and the student must be like it on structured noise, which tables lack, and
    have learned from images of a kind that estimates were calibrated on.
    """
    from ..estimate import TeacherAccuracy, estimate, structured_agreement

    if teacher.is_table:
        return {}
    if choice.alike:  # it came out up to 7 points too high for generators, and more for inversion
        context.reporter.line("no estimate of accuracy: it was not calibrated on students of such images")
        return {}
    measured = read_manifest(context.run.teacher().directory).metrics
    if config.teacher_accuracy is not None:
        accuracy = TeacherAccuracy(config.teacher_accuracy, 0.0)
    elif "validation_accuracy" in measured:
        accuracy = TeacherAccuracy.measured(measured["validation_accuracy"], measured["validation_images"])
    else:
        return {}
    with context.phase("estimate"):
        agreement = structured_agreement(teacher, student, images_seen)
    estimated = estimate(agreement, accuracy, choice.structured)
    if estimated is None:
        context.reporter.line("no estimate of accuracy: the student is too unlike its teacher on structured noise")
    figures = {} if estimated is None else vars(estimated)
    return {
        "structured_agreement": round(agreement, 6),
        **{f"estimated_{name}": round(figure, 4) for name, figure in figures.items()},
    }


def _seconds_left(config: DistillConfig, context: StageContext) -> float | None:
    """Return the seconds of the budget that are left for the loop, the stage's end apart; None without a budget."""
    if config.budget is None:
        return None
    return max(0.0, parse_duration(config.budget) - (time.monotonic() - context.started) - CLOSING_SECONDS)


def _planned_steps(loop: Loop, choice: Choice, student: Classifier, context: StageContext) -> int:
    """Return the number of steps that was asked for, or that the budget allows."""
    config = loop.config
    if config.budget is None:
        return config.steps or int((USUAL_SETTINGS | choice.settings)["steps"])
    left = parse_duration(config.budget) - (time.monotonic() - context.started)
    with context.phase("trial"):
        steps = context.checkpoints.once("steps", lambda: loop.steps_within(left, student))
    context.reporter.line(f"--budget {config.budget}: {steps} steps")
    return steps


def _method_config(config: DistillConfig, choice: Choice) -> Any:
    """Return the options of the live method, those of the one that `auto` picked being its defaults."""
    if choice.kind != "live":
        return None
    return live_method(choice.name).config() if config.method in (None, AUTO) else config.method_config()


@dataclass(frozen=True)
class Loop:
    """The distillation that the options describe, but for the student and the number of steps."""

    config: DistillConfig
    settings: Settings
    teacher: Classifier
    source: Source

    def run(
        self,
        student: Classifier,
        steps: int,
        checkpoints: CheckpointSaver,
        reporter: Reporter,
        monitor: Monitor[Classifier] | None = None,
    ) -> DistillationResult:
        """Train the student, in place."""
        from ..distillation import DistillationLossOptions, distill
        from ..training import Schedule

        config, settings = self.config, self.settings
        return distill(
            self.teacher,
            student,
            self.source,
            settings.batch_size,
            Schedule(steps, settings.lr, config.schedule, round(WARMUP_SHARE * steps), optimizer=config.optimizer),
            DistillationLossOptions(settings.loss, settings.temperature, config.temperature_scaling),
            settings.augmenter(config.flip, self.teacher, config.seed + 1),
            checkpoints,
            reporter,
            monitor,
            config.batch_norm or "train",
        )

    def steps_within(self, seconds: float, student: Classifier) -> int:
        """Return how many steps fit into the seconds; leaves student, source and random state as they are."""
        import torch

        trial, state, random_state = student.copy(), self.source.state(), torch.get_rng_state()
        silent = Reporter(quiet=True)

        def take(count: int) -> None:
            self.run(trial, count, NoCheckpoints(), silent)

        steps = steps_within(seconds, take, TRIAL_BLOCK)
        self.source.restore(state)
        torch.set_rng_state(random_state)
        return steps


class NoCheckpoints:
    """A `training.CheckpointSaver` that keeps nothing."""

    def load(self) -> None:
        """There is nothing to go on from."""

    def offer(self, state: Callable[[], Any]) -> None:
        """Forget it."""


STAGE = Stage("distill", DistillConfig, plan, execute)
