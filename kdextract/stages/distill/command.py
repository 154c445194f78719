"""`kdx distill`: train a student to reproduce the teacher's outputs. Reads no real data unless `--data` names some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...methods import live_method, live_names
from ...models.queries import HELD_OUT, PROBE
from ...options.declare import (
    DataAccess,
    MethodStageConfig,
    NetworkConfig,
    OptionSet,
    TeacherConfig,
    VerifierConfig,
    option,
)
from ...storage.run_dir import MODEL_FILE, InputFile, RunDir
from ...training.budget import Timetable, parse_duration
from ..outputs.transfer_set import find_verifier, verifier_inputs, write_source_pictures
from ..running.runner import Plan, Stage, StageContext
from .budget import plan_steps
from .estimate import estimated_figures, teacher_accuracy
from .loop import Loop
from .settings import CONVOLUTION_RATE, LINEAR_RATE, USUAL_SETTINGS, fill_in
from .source import AUTO, ImageSource, choose_source
from .student import StudentStart, student_start

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...synthesis.estimate import TeacherAccuracy
    from ...training.loop import Row
    from ...training.observer import Probe, Snapshot
    from ...training.sources import Source


@dataclass(frozen=True, kw_only=True)
class DistillConfig(MethodStageConfig, TeacherConfig, NetworkConfig, VerifierConfig, DataAccess):
    """Train a student to reproduce the teacher's outputs.

    It learns from a transfer set, images made during training, real data or noise. Without --data and --method, the
    run's only transfer set or generators are used; in a run without any, --method auto selects a method that needs only
    the teacher. The weights after the last step are kept: nothing is selected on real data. The number of steps does
    not depend on the source of images, so that a student from noise (floor) or from real data (ceiling) is comparable.
    At the end, the student's accuracy on real images is estimated without real images.

    --student takes a name of `kdx models`, half:SPEC, width:N, torchvision/NAME, timm/NAME or FILE.py:NAME, or weights
    to start from: compressed/NAME or FILE.safetensors.

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
        "Network, or weights to start from, as described above.",
        metavar="SPEC",
        panel="Student",
    )
    data: str | None = option(
        None,
        "Images: transfer set or generators (name or path), noise:normal, noise:uniform or real data.",
        metavar="SPEC",
        panel="Source",
    )
    method: str | None = option(
        None,
        "Method that makes images; `kdx methods` lists them.",
        choices=lambda: [AUTO, *live_names()],
        metavar="NAME",
        panel="Source",
    )
    budget: str | None = option(
        None,
        "Wall-clock time of the stage, such as 120s or 2m.",
        metavar="TIME",
        panel="Schedule",
    )
    patience: int | None = option(
        None,
        "Stop early after N evaluations without improvement.",
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
        "Peak learning rate.",
        above=0,
        panel="Schedule",
        otherwise=f"{CONVOLUTION_RATE:g}; MLPs: {LINEAR_RATE:g}",
    )
    optimizer: str = option("soap", "Optimizer; soap needs fewer images.", choices=["soap", "adam"], panel="Schedule")
    loss: str | None = option(
        None,
        "Loss between the outputs.",
        choices=["kl", "ce", "l1", "mse"],
        panel="Loss",
        otherwise=f"{USUAL_SETTINGS['loss']}, or by method",
    )
    temperature: float | None = option(
        None,
        "Temperature of kl and ce.",
        above=0,
        panel="Loss",
        otherwise=f"{USUAL_SETTINGS['temperature']:g}, or by method",
    )
    shift: int | None = option(
        None,
        "Shift up to N pixels.",
        minimum=0,
        panel="Augmentation",
        otherwise=f"{USUAL_SETTINGS['shift']}, or by method",
    )
    warp: float | None = option(
        None,
        "Rotate, scale and shear.",
        minimum=0,
        panel="Augmentation",
        otherwise=f"{USUAL_SETTINGS['warp']:g}, or by method",
    )
    flip: bool = option(False, "Mirror half of the images.", panel="Augmentation")
    redraw: bool | None = option(
        None,
        "Augment drawings.",
        panel="Augmentation",
        otherwise="on for generated drawings",
    )
    inherit: bool = option(
        True,
        "Copy the teacher's strongest units.",
        panel="Student",
    )
    batch_norm: str | None = option(
        None,
        "Batch norm: train, frozen (statistics) or frozen-affine (scale and shift too).",
        choices=["train", "frozen", "frozen-affine"],
        panel="Student",
        otherwise="train",
    )
    teacher_accuracy: float | None = option(
        None,
        "Accuracy of the teacher, to estimate the student's.",
        above=0,
        maximum=1,
        panel="Output",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss in ("l1", "mse") and self.temperature is not None:
            raise UsageError(f"--temperature has no effect on --loss {self.loss}")
        if self.budget is not None:
            parse_duration(self.budget)
            if self.steps is not None:
                raise UsageError("--budget and --steps both set the number of steps; give one of them")

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The live method, if one is named, and the class of its options."""
        if self.method in (None, AUTO):
            return ("distill without --method" if self.method is None else "--method auto"), OptionSet
        return f"--method {self.method}", live_method(str(self.method)).config

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """The options of every live method, by name."""
        return {name: live_method(name).config for name in live_names()}

    @classmethod
    def method_defaults(cls, name: str) -> dict[str, Any]:
        """The defaults of `distill` that the live method changes; none for `auto`."""
        return {} if name == AUTO else live_method(name).settings


@dataclass(frozen=True)
class DistillInputs:
    """The source of images, the initial student, and the verifier."""

    images: ImageSource
    start: StudentStart
    verifier: InputFile | None


def plan(config: DistillConfig, run: RunDir) -> Plan[DistillInputs]:
    """Plan: reads the teacher, one source of images, and the files of the initial student and of the verifier."""
    config.method_config()
    teacher = run.artifact(run.teacher()).input("teacher")
    images = choose_source(config, run)
    if config.verifier is not None and not images.makes_images:
        raise UsageError("--verifier has no effect here: no images are made while the student learns")
    verifier = find_verifier(config, run)
    start = student_start(config.student, run)
    inputs = (teacher, *images.inputs, *verifier_inputs(verifier), *start.inputs)
    place = run.place("student", config.name or start.name)
    return Plan(place, inputs, images.needs, DistillInputs(images, start, verifier))


def execute(config: DistillConfig, resolved: DistillInputs, context: StageContext) -> dict[str, Any]:
    """Distil a student and write it; return the summary."""
    prepared = prepare(config, resolved, context)
    trained = train(prepared, context)
    verified = write(prepared, trained, resolved.verifier, context)
    return summarize(prepared, trained, verified, context)


@dataclass(frozen=True)
class Prepared:
    """The state at the start of a distillation.

    Attributes:
        images: where images come from, as `plan` found it; `loop.source` is this, opened; `facts` are its choices.
        inherited: whether the student starts with units of its teacher.
        probe: held-out images with the teacher's classes.
        accuracy: the teacher's on real images, None if it is not known.
        no_estimate: why the student's accuracy cannot be estimated; '' if nothing known before training prevents it.
    """

    config: DistillConfig
    loop: Loop
    images: ImageSource
    student: Classifier
    inherited: bool
    probe: Probe
    facts: dict[str, int]
    accuracy: TeacherAccuracy | None
    no_estimate: str


@dataclass(frozen=True)
class Trained:
    """Results of the loop: metric rows, the numbers of steps planned and taken, images used, intermediate students."""

    rows: list[Row]
    planned_steps: int
    steps: int
    num_images: int
    snapshots: list[Snapshot]


def prepare(config: DistillConfig, resolved: DistillInputs, context: StageContext) -> Prepared:
    """Build the student, open the source of images, and check whether an estimate is possible."""
    import torch

    from ...models.classifier import load_classifier
    from ...models.inherit_units import inherit
    from ...synthesis.estimate import why_not

    torch.manual_seed(config.seed)
    images, start = resolved.images, resolved.start
    if images.reason:
        context.reporter.line(f"--method auto: {images.name}, because {images.reason}")
        # Building a network draws random numbers. This one is built so that the student's random weights, which are
        # drawn next, are the same as in kdx 0.1, which built the teacher here to select the method.
        context.run.artifact(context.run.teacher()).file(MODEL_FILE).read(load_classifier)
    teacher = context.teacher()
    student = context.placed(start.build(teacher))
    inherited = config.inherit and not start.is_given and inherit(teacher, student)
    settings = fill_in(config, images, teacher, student)
    source, probe, facts = _open_source(images, config, teacher, context)
    accuracy = teacher_accuracy(config.teacher_accuracy, context)
    reason = why_not(teacher, images.learned_from, accuracy)
    loop = Loop(config, settings, teacher, source)
    return Prepared(config, loop, images, student, inherited, probe, facts, accuracy, reason)


def train(prepared: Prepared, context: StageContext) -> Trained:
    """Train the student, in place."""
    from ...training.observer import Observer

    loop, config = prepared.loop, prepared.config
    steps, timetable = _steps_and_timetable(prepared, context)
    observer = Observer(prepared.probe, steps, config.patience, config.snapshots, timetable)
    with context.phase("distillation"), context.checkpoints.loop():
        rows = loop.run(
            prepared.student,
            steps,
            context.checkpoints,
            context.reporter,
            observer,
            lambda: context.phase("synthesis"),
        )
    return Trained(rows, steps, int(rows[-1]["step"]), loop.source.num_images, observer.snapshots)


def write(prepared: Prepared, trained: Trained, verifier: InputFile | None, context: StageContext) -> dict[str, float]:
    """Write the student, its snapshots, metric rows and, where images were made, pictures of some.

    Returns:
        The verifier's agreement on these images, by name; {} without a verifier.
    """
    from ...models.classifier import encode_classifier

    context.count(images=trained.num_images, student_steps=trained.steps)
    context.write(MODEL_FILE, encode_classifier(prepared.student))
    context.write_metrics(trained.rows)
    verified = {}
    if prepared.images.makes_images:
        verified = write_source_pictures(verifier, context, prepared.loop.teacher, prepared.loop.source)
    for snapshot in trained.snapshots:
        context.write(snapshot.file_name, snapshot.content)
    context.budget["snapshots"] = [
        {"file": snapshot.file_name, "step": snapshot.step, "seconds": snapshot.seconds}
        for snapshot in trained.snapshots
    ]
    return verified


def summarize(
    prepared: Prepared, trained: Trained, verified: dict[str, float], context: StageContext
) -> dict[str, Any]:
    """Estimate the student's accuracy, if that is possible, and return the summary metrics."""
    student, probe, facts = prepared.student, prepared.probe, prepared.facts
    estimated = _estimated(prepared, trained, context)
    return {
        "student": student.spec.architecture,
        "num_parameters": student.num_parameters,
        "teacher_parameters": prepared.loop.teacher.num_parameters,
        "inherited": prepared.inherited,
        "source": prepared.images.name,
        "num_images": trained.num_images,
        "steps": trained.steps,
        "stopped_early": trained.steps < trained.planned_steps,
        "loss": trained.rows[-1]["loss"],
        "held_out_agreement": round(probe.agreement(student), 6),
        **({} if probe.stability is None else {"held_out_stability": round(probe.stability, 6)}),
        **verified,
        **estimated,
        "settings": vars(prepared.loop.settings),
        **({"source_facts": facts} if facts else {}),
    }


def _open_source(
    images: ImageSource, config: DistillConfig, teacher: Classifier, context: StageContext
) -> tuple[Source, Probe, dict[str, int]]:
    """Return the source of images, held-out images with the teacher's classes, and the choices of the source."""
    from ...training.observer import HELD_OUT_IMAGES, Probe
    from ...training.sources import Batched, Described

    with context.phase("source"):
        source = images.open(config, teacher, context)
        with teacher.queries.purpose(HELD_OUT):
            if isinstance(source, Batched):  # its images take long to make
                held_out = context.checkpoints.once_tensor("held_out", lambda: source.held_out(HELD_OUT_IMAGES))
            else:
                held_out = source.held_out(HELD_OUT_IMAGES)
        with teacher.queries.purpose(PROBE):
            probe = Probe.of(teacher, held_out)
    facts = source.facts if isinstance(source, Described) else {}
    if facts:
        context.reporter.line(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))
    return source, probe, facts


def _estimated(prepared: Prepared, trained: Trained, context: StageContext) -> dict[str, float]:
    """Return the estimated figures; {}, and one line that says why, if no estimate is possible."""
    if prepared.accuracy is None or prepared.no_estimate:
        context.reporter.line(f"no estimate of accuracy: {prepared.no_estimate}")
        return {}
    loop, structured = prepared.loop, prepared.images.structured
    sizes = trained.steps, loop.settings.batch_size
    return estimated_figures(loop.teacher, prepared.student, prepared.accuracy, structured, *sizes, context)


def _steps_and_timetable(prepared: Prepared, context: StageContext) -> tuple[int, Timetable | None]:
    """Return the number of steps of the options; with `--budget`, the one that fits, and a timetable for it."""
    loop, config = prepared.loop, prepared.config
    if config.budget is None:
        return config.steps or int((USUAL_SETTINGS | prepared.images.settings)["steps"]), None
    budget = parse_duration(config.budget)

    def decide() -> dict[str, float]:
        sizes = loop.settings.batch_size, not prepared.no_estimate
        return plan_steps(
            budget, loop.run, loop.source, loop.teacher, prepared.student, prepared.probe, *sizes, context
        )

    with context.phase("trial"):
        planned = context.checkpoints.once("steps", decide)
    steps = int(planned["steps"])
    context.reporter.line(f"--budget {config.budget}: {steps} steps")
    return steps, Timetable(budget, context.elapsed, planned["closing"])


STAGE = Stage("distill", DistillConfig, plan, execute)
