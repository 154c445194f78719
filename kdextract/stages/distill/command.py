"""`kdx distill`: train a student to reproduce the teacher's outputs. Reads no real data unless `--data` names some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...storage.artifacts import strongest
from ...storage.run_dir import MODEL_FILE, InputFile, RunDir
from ...training.budget import MOST_TRIAL, Timetable, parse_duration
from ..inputs.distill_settings import USUAL_SETTINGS, fill_in
from ..inputs.image_source import ImageSource, LiveImages, choose_source, open_with_probe
from ..outputs.transfer_set import find_verifier, verifier_inputs, write_source_pictures
from ..running.runner import Plan, Stage, StageContext
from .blocks import choose_blocks
from .budget import plan_steps
from .config import DistillConfig
from .estimate import estimated_figures, teacher_accuracy
from .loop import Loop
from .student import StudentStart, student_start
from .trial import Trial, choose_by_trial

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...synthesis.estimate import TeacherAccuracy
    from ...training.blocks import BlockOptions
    from ...training.loop import Row
    from ...training.observer import Probe, Snapshot
    from ...training.sources import Source


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
    images = choose_source(config, config.data, "--data", run)
    if config.verifier is not None and not images.makes_images:
        raise UsageError("--verifier has no effect here: no images are made while the student learns")
    verifier = find_verifier(config, run)
    start = student_start(config.student, run)
    if config.dry_run and start.share is not None:
        from ...models.classifier import load_classifier

        whole = run.artifact(run.teacher()).file(MODEL_FILE).read(load_classifier)
        start.build(whole, config.inherit, lambda line: None)  # raises an error if the teacher cannot be cut
    inputs = (teacher, *images.inputs, *verifier_inputs(verifier), *start.inputs)
    place = run.place("student", config.name or start.name)
    needs = strongest(images.needs, start.needs)
    return Plan(place, inputs, needs, DistillInputs(images, start, verifier))


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
        images: where images come from, as `plan` or a trial found it; `loop.source` is this, opened; `facts` are its
            choices.
        tried: what a trial of methods found; {} without one.
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
    facts: dict[str, float]
    accuracy: TeacherAccuracy | None
    no_estimate: str
    tried: dict[str, Any]


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
    from ...training.batch_norm import estimate_batch_norm

    torch.manual_seed(config.seed)
    images, start = resolved.images, resolved.start
    if images.reason:
        # Building a network draws random numbers. This one is built so that the student's random weights, which are
        # drawn next, are the same as in kdx 0.1, which built the teacher here to select the method.
        context.run.artifact(context.run.teacher()).file(MODEL_FILE).read(load_classifier)
    teacher = context.teacher()
    made, kept = start.build(teacher, config.inherit, context.reporter.line)
    student = context.placed(made)
    inherited = config.inherit and (start.share is not None or (start.is_new and inherit(teacher, student)))
    blocks = choose_blocks(config.match_blocks, start.is_from_teacher, kept, teacher, student, context.reporter.line)

    def loop_of(images: ImageSource, source: Source) -> Loop:
        return Loop(config, fill_in(config, images, teacher, student), teacher, source, blocks)

    def adapt(student: Classifier, source: Source) -> None:
        if start.share is not None:
            estimate_batch_norm(student, source, fill_in(config, images, teacher, student).batch_size)

    tried: dict[str, Any] = {}
    if isinstance(images, LiveImages) and images.others and config.budget is not None:
        trial = Trial(config, teacher, student, loop_of, adapt, MOST_TRIAL * parse_duration(config.budget))
        images, tried = choose_by_trial(images, trial, context)
    if images.reason:
        context.reporter.line(f"--method auto: {images.name}, because {images.reason}")
    source, probe, facts = open_with_probe(images, config, teacher, context)
    if start.share is not None and context.checkpoints.load() is None:
        with context.phase("batch normalization"):
            adapt(student, source)
    accuracy = teacher_accuracy(config.teacher_accuracy, context)
    reason = why_not(teacher, images.learned_from, accuracy)
    loop = loop_of(images, source)
    return Prepared(config, loop, images, student, inherited, probe, facts, accuracy, reason, tried)


def train(prepared: Prepared, context: StageContext) -> Trained:
    """Train the student, in place."""
    from ...training.observer import Observer

    loop, config = prepared.loop, prepared.config
    steps, timetable = _steps_and_timetable(prepared, context)
    evaluations = _evaluations(prepared)(steps)
    observer = Observer(prepared.probe, steps, config.patience, config.snapshots, timetable, evaluations)
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
    student, probe, facts, blocks = prepared.student, prepared.probe, prepared.facts, prepared.loop.blocks
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
        **({} if blocks is None else {"matched_blocks": _recorded(blocks)}),
        **({"source_facts": facts} if facts else {}),
        **({"tried_methods": prepared.tried} if prepared.tried else {}),
    }


def _recorded(blocks: BlockOptions) -> dict[str, Any]:
    """Return the weight of block matching, and the names of the blocks in both networks."""
    pairs = blocks.pairs
    return {"weight": blocks.weight, "teacher": [p.teacher for p in pairs], "student": [p.student for p in pairs]}


def _estimated(prepared: Prepared, trained: Trained, context: StageContext) -> dict[str, float]:
    """Return the estimated figures; {}, and one line that says why, if no estimate is possible."""
    if prepared.accuracy is None or prepared.no_estimate:
        context.reporter.line(f"no estimate of accuracy: {prepared.no_estimate}")
        return {}
    loop, structured = prepared.loop, prepared.images.structured
    sizes = trained.steps, loop.settings.batch_size
    return estimated_figures(loop.teacher, prepared.student, prepared.accuracy, structured, *sizes, context)


def _evaluations(prepared: Prepared) -> Callable[[int], int]:
    """Return the function from a number of steps to that of evaluations; `--patience` counts in the usual ones."""
    from ...training.observer import NUM_EVALUATIONS, evaluations_within

    if prepared.config.patience is not None:
        return lambda steps: NUM_EVALUATIONS
    batch_size, held_out = prepared.loop.settings.batch_size, len(prepared.probe.images)
    return lambda steps: evaluations_within(steps, batch_size, held_out)


def _steps_and_timetable(prepared: Prepared, context: StageContext) -> tuple[int, Timetable | None]:
    """Return the number of steps of the options; with `--budget`, the one that fits, and a timetable for it."""
    loop, config = prepared.loop, prepared.config
    if config.budget is None:
        return config.steps or int((USUAL_SETTINGS | prepared.images.settings)["steps"]), None
    budget = parse_duration(config.budget)

    def decide() -> dict[str, float]:
        sizes = loop.settings.batch_size, not prepared.no_estimate, _evaluations(prepared)
        return plan_steps(
            budget, loop.run, loop.source, loop.teacher, prepared.student, prepared.probe, *sizes, context
        )

    with context.phase("trial"):
        planned = context.checkpoints.once("steps", decide)
    steps = int(planned["steps"])
    context.reporter.line(f"--budget {config.budget}: {steps} steps")
    return steps, Timetable(budget, context.elapsed, planned["closing"])


STAGE = Stage("distill", DistillConfig, plan, execute)
