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
    """Train a student to reproduce the teacher's outputs.

    It learns from a transfer set, images made during training, real data or noise. Without --data and --method, the
    run's only transfer set or generators are used; in a run without any, --method auto selects a method that needs only
    the teacher. The weights after the last step are kept: nothing is selected on real data. The number of steps does
    not depend on the source of images, so that a student from noise (floor) or from real data (ceiling) is comparable.
    At the end, the student's accuracy on real images is estimated without real images.

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
        "Network (`kdx models`, half:SPEC, width:N, torchvision/NAME, timm/NAME, FILE.py:NAME) or initial weights "
        "(compressed/NAME, FILE.safetensors).",
        metavar="SPEC",
        panel="Student",
    )
    data: str | None = option(
        None,
        "Transfer set or generators (name or path), noise:normal, noise:uniform, or real data (mnist ...).",
        metavar="SPEC",
        panel="Source",
    )
    method: str | None = option(
        None,
        "Make images during training with a live method.",
        choices=lambda: [AUTO, *live_names()],
        metavar="NAME",
        panel="Source",
    )
    budget: str | None = option(
        None,
        "Wall-clock time (120s, 2m); a trial of at most 5 % of it sets the number of steps.",
        metavar="TIME",
        panel="Schedule",
    )
    patience: int | None = option(
        None,
        "Early stopping: after N of 40 evaluations without improvement on held-out synthetic images, decay the "
        "learning rate to 0 and stop.",
        minimum=1,
        panel="Schedule",
    )
    snapshots: int = option(0, "Also store N intermediate students.", minimum=0, panel="Output")
    steps: int | None = option(
        None, "Optimizer steps.", minimum=1, panel="Schedule", otherwise=str(USUAL_SETTINGS["steps"])
    )
    batch_size: int | None = option(
        None, "Images per step.", minimum=2, panel="Schedule", otherwise=str(USUAL_SETTINGS["batch_size"])
    )
    lr: float | None = option(
        None,
        "Highest learning rate.",
        above=0,
        panel="Schedule",
        otherwise=f"{CONVOLUTION_RATE:g}; without convolutions {LINEAR_RATE:g}",
    )
    optimizer: str = option("soap", "Optimizer; soap needs fewer images.", choices=["soap", "adam"], panel="Schedule")
    loss: str | None = option(
        None,
        "Loss between both networks' outputs.",
        choices=["kl", "ce", "l1", "mse"],
        panel="Loss",
        otherwise=f"{USUAL_SETTINGS['loss']}, or the method's own",
    )
    temperature: float | None = option(
        None,
        "Divisor T of both networks' logits in kl and ce; the loss is multiplied by T^2.",
        above=0,
        panel="Loss",
        otherwise=f"{USUAL_SETTINGS['temperature']:g}, or the method's own",
    )
    shift: int | None = option(
        None,
        "Shift images by up to N pixels, at random.",
        minimum=0,
        panel="Augmentation",
        otherwise=f"{USUAL_SETTINGS['shift']}, or the method's own; tables: 0",
    )
    warp: float | None = option(
        None,
        "Rotate, scale and shear images at random; 0.1 is about 6 degrees.",
        minimum=0,
        panel="Augmentation",
        otherwise=f"{USUAL_SETTINGS['warp']:g}, or the method's own; tables: 0",
    )
    flip: bool = option(False, "Mirror half of the images.", panel="Augmentation")
    redraw: bool | None = option(
        None,
        "Augment drawings: blend two images, vary contrast and stroke width, fade the borders.",
        panel="Augmentation",
        otherwise="on for drawings from generators or inversion",
    )
    inherit: bool = option(
        True,
        "Initialize a narrower copy of the teacher with its strongest units.",
        panel="Student",
    )
    batch_norm: str | None = option(
        None,
        "Batch normalization (BN) of the student: train; frozen, with fixed statistics; frozen-affine, with fixed "
        "scales and shifts as well.",
        choices=["train", "frozen", "frozen-affine"],
        panel="Student",
        otherwise="train",
    )
    teacher_accuracy: float | None = option(
        None,
        "The teacher's accuracy on real images, in [0, 1]; the student's is estimated from it.",
        above=0,
        maximum=1,
        panel="Output",
        otherwise="as `kdx train` measured",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss in ("l1", "mse") and self.temperature is not None:
            raise UsageError(f"--temperature has no effect on --loss {self.loss}")
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

    @classmethod
    def method_defaults(cls, name: str) -> dict[str, Any]:
        """What the live method asks for; none for `auto`."""
        return {} if name == AUTO else live_method(name).settings


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
            Schedule(steps, settings.lr, warmup=round(WARMUP_SHARE * steps), optimizer=config.optimizer),
            DistillationLossOptions(settings.loss, settings.temperature, scale=True),
            settings.augmenter(config.flip, self.teacher, config.seed + 1),
            checkpoints,
            reporter,
            monitor,
            config.batch_norm or "train",
            in_source,
        )


STAGE = Stage("distill", DistillConfig, plan, execute)
