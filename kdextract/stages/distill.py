"""`kdx distill`: train a student to answer like the teacher. Opens no real data unless `--data` names some."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import read_manifest
from ..budget import Timetable, parse_duration
from ..config import DataAccess, MethodStageConfig, NetworkConfig, OptionSet, TeacherConfig, VerifierConfig, option
from ..errors import UsageError
from ..methods import live_method, live_names
from ..progress import Reporter
from ..queries import ESTIMATE, HELD_OUT, PROBE
from ..run_dir import RunDir
from ..stage_runner import Plan, Stage, StageContext, artifact_input
from .distill_budget import plan_steps
from .distill_settings import CONVOLUTION_RATE, LINEAR_RATE, USUAL_SETTINGS, Settings, fill_in
from .student_source import AUTO, STORED, Choice, choose, inputs_of, open_source
from .student_start import student_start
from .transfer_sets import show_source, verifier_input

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..estimate import TeacherAccuracy
    from ..observer import Probe, Snapshot
    from ..sources import Source
    from ..training import CheckpointSaver, Monitor, Row

WARMUP_SHARE = 0.05


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
        "Wall-clock time for all of it, such as 120s or 2m; a trial of at most 5 % of it turns it into a number of "
        "steps, which is recorded. If they turn out to be slower or faster, fewer or more are taken.",
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
    from ..estimate import why_not
    from ..inheritance import inherit
    from ..observer import Observer

    torch.manual_seed(config.seed)
    choice = choose(config, context.run)
    if choice.reason:
        context.reporter.line(f"--method auto: {choice.name}, because {choice.reason}")
    teacher = context.teacher()
    start = student_start(config.student, context.run)
    student = context.placed(start.build(teacher))
    inherited = config.inherit and not start.is_given and inherit(teacher, student)
    settings = fill_in(config, choice, teacher, student)
    method_config = _method_config(config, choice)
    source, probe, facts = _open(choice, config, method_config, teacher, context)
    accuracy = _teacher_accuracy(config, context)
    reason = why_not(teacher, choice.learned_from(method_config), accuracy)
    loop = Loop(config, settings, teacher, source)
    steps, timetable = _steps_and_timetable(loop, choice, probe, student, not reason, context)
    observer = Observer(probe, steps, config.patience, config.snapshots, timetable)
    with context.phase("distillation"), context.checkpoints.loop():
        rows = loop.run(
            student, steps, context.checkpoints, context.reporter, observer, lambda: context.phase("synthesis")
        )
    taken, num_images = int(rows[-1]["step"]), source.num_images
    context.count(images=num_images, student_steps=taken)
    context.write("model.safetensors", encode_classifier(student))
    context.write_metrics(rows)
    verified = show_source(config, context, teacher, source) if choice.makes_images else {}
    _write_snapshots(observer.snapshots, context)
    estimated: dict[str, float] = {}
    if accuracy is None or reason:
        context.reporter.line(f"no estimate of accuracy: {reason}")
    else:
        estimated = _estimate(teacher, student, accuracy, choice.structured, taken, settings.batch_size, context)
    return {
        "student": student.spec.architecture,
        "num_parameters": student.num_parameters,
        "teacher_parameters": teacher.num_parameters,
        "inherited": inherited,
        "source": Path(choice.name).name if choice.kind in STORED else choice.name,
        "num_images": num_images,
        "steps": taken,
        "stopped_early": taken < steps,
        "loss": rows[-1]["loss"],
        "held_out_agreement": round(probe.agreement(student), 6),
        **({} if probe.stability is None else {"held_out_stability": round(probe.stability, 6)}),
        **verified,
        **estimated,
        "settings": vars(settings),
        **({"source_facts": facts} if facts else {}),
    }


def _open(
    choice: Choice, config: DistillConfig, method_config: Any, teacher: Classifier, context: StageContext
) -> tuple[Source, Probe, dict[str, int]]:
    """Return the source of images, held-out images with the teacher's answers, and what the source decided."""
    from ..observer import HELD_OUT_IMAGES, Probe
    from ..sources import Batched, Described

    with context.phase("source"):
        source = open_source(choice, config, method_config, teacher, context)
        with teacher.queries.purpose(HELD_OUT):
            if isinstance(source, Batched):  # whose images take long to make
                held_out = context.checkpoints.once_tensor("held_out", lambda: source.held_out(HELD_OUT_IMAGES))
            else:
                held_out = source.held_out(HELD_OUT_IMAGES)
        with teacher.queries.purpose(PROBE):
            probe = Probe.of(teacher, held_out)
    facts = source.facts if isinstance(source, Described) else {}
    if facts:
        context.reporter.line(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))
    return source, probe, facts


def _write_snapshots(snapshots: list[Snapshot], context: StageContext) -> None:
    for snapshot in snapshots:
        context.write(snapshot.file_name, snapshot.content)
    context.budget["snapshots"] = [
        {"file": snapshot.file_name, "step": snapshot.step, "seconds": snapshot.seconds} for snapshot in snapshots
    ]


def _teacher_accuracy(config: DistillConfig, context: StageContext) -> TeacherAccuracy | None:
    """Return the teacher's accuracy as it was given or measured, None if it is not known."""
    from ..estimate import TeacherAccuracy

    if config.teacher_accuracy is not None:
        return TeacherAccuracy(config.teacher_accuracy, 0.0)
    measured = read_manifest(context.run.teacher().directory).metrics
    if "validation_accuracy" not in measured:
        return None
    return TeacherAccuracy.measured(measured["validation_accuracy"], measured["validation_images"])


def _estimate(
    teacher: Classifier,
    student: Classifier,
    accuracy: TeacherAccuracy,
    structured: bool,
    steps: int,
    batch_size: int,
    context: StageContext,
) -> dict[str, float]:
    """Return what the student's agreement and accuracy on real images should be, as far as that can be said.

    Args:
        structured: whether the student learned from structured noise.
        steps: that the student has taken, with batches of `batch_size`.
    """
    from ..estimate import estimate, structured_agreement, why_not_student

    with context.phase("estimate"), teacher.queries.purpose(ESTIMATE):
        agreement = structured_agreement(teacher, student, steps * batch_size)
    reason = why_not_student(agreement, steps)
    estimated = None if reason else estimate(agreement, accuracy, structured)
    if reason:
        context.reporter.line(f"no estimate of accuracy: {reason}")
    figures = {} if estimated is None else vars(estimated)
    return {
        "structured_agreement": round(agreement, 6),
        **{f"estimated_{name}": round(figure, 4) for name, figure in figures.items()},
    }


def _steps_and_timetable(
    loop: Loop, choice: Choice, probe: Probe, student: Classifier, estimates: bool, context: StageContext
) -> tuple[int, Timetable | None]:
    """Return the number of steps that was asked for, or the one that the budget allows and how to keep to it."""
    config = loop.config
    if config.budget is None:
        return config.steps or int((USUAL_SETTINGS | choice.settings)["steps"]), None
    budget = parse_duration(config.budget)

    def decide() -> dict[str, float]:
        sizes = loop.settings.batch_size, estimates
        return plan_steps(budget, loop.run, loop.source, loop.teacher, student, probe, *sizes, context)

    with context.phase("trial"):
        planned = context.checkpoints.once("steps", decide)
    steps = int(planned["steps"])
    context.reporter.line(f"--budget {config.budget}: {steps} steps")
    return steps, Timetable(budget, context.elapsed, planned["closing"])


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
        in_source: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[Row]:
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
            in_source,
        )


STAGE = Stage("distill", DistillConfig, plan, execute)
