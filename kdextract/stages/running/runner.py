"""Runs a stage: lock, plan, cache decision, checkpoints, signals, publication."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...errors import ConfigError, OutOfMemoryError, UsageError, from_os_error
from ...models.queries import SYNTHESIS, Queries
from ...options.declare import (
    MethodStageConfig,
    StageConfig,
    difference,
    option_fields,
    spelling,
    to_record,
)
from ...storage.artifacts import Manifest, Output, file_sha256, partial_path, publish, read_manifest, write_file
from ...storage.run_dir import MODEL_FILE, InputFile, RunDir
from ...storage.version import __version__
from ...training.progress import Reporter
from .attempts import Attempts, peak_memory, reset_peak_memory
from .checkpoints import CHECKPOINT_FILE, CHECKPOINT_FORMAT, Checkpoints
from .outcome import Outcome as Outcome
from .outcome import Plan as Plan
from .outcome import ResolvedT
from .process_state import process_as_it_was
from .torch_settings import how_networks_run, import_what_is_set, set_up_torch

if TYPE_CHECKING:
    import torch

    from ...models.classifier import Classifier

ConfigT = TypeVar("ConfigT", bound=StageConfig)
KEY_FILE = "key.json"
METRICS_FILE = "metrics.jsonl"
_TAKE_MEMORY = ("batch_size", "generator_batch", "pool_batch", "max_units", "covariance_rank")
"""Options of stages and methods that take less memory with a smaller value; errors name them in this order."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Stage(Generic[ConfigT, ResolvedT]):
    """A command that writes an artifact.

    `plan` finds and hashes the inputs; it must be quick and may raise any `KdxError`. `execute` gets what `plan` found
    (`Plan.resolved`), does the work and returns summary metrics. With `replaces_stale`, a result whose inputs or
    options changed is made again without `--force`. `check` is called after the outcome was reported, cached or not,
    and may raise an error. `before` is called before the plan, for work that the stage needs and does not do itself.
    """

    name: str
    config: type[ConfigT]
    plan: Callable[[ConfigT, RunDir], Plan[ResolvedT]]
    execute: Callable[[ConfigT, ResolvedT, StageContext], Json]
    replaces_stale: bool = False
    check: Callable[[ConfigT, Outcome], None] = lambda config, outcome: None
    before: Callable[[ConfigT, Reporter], None] = lambda config, reporter: None


@dataclass
class StageContext:
    """What a running stage uses: its run, its output files, checkpoints, progress, and the counters of its budget.

    `started` is the `time.monotonic()` at which the stage was called; `earlier` has the costs of earlier attempts.
    `precision` and `compiled` apply to all networks; see `Classifier.placed`.
    """

    run: RunDir
    reporter: Reporter
    checkpoints: Checkpoints
    device: torch.device
    started: float
    earlier: Attempts = field(default_factory=Attempts)
    precision: torch.dtype | None = None
    compiled: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    budget: Json = field(default_factory=dict)
    real_data: list[Json] = field(default_factory=list)
    _seconds: dict[str, float] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)
    _queries: list[Queries] = field(default_factory=list)

    def teacher(self, purpose: str = SYNTHESIS, file: InputFile | None = None) -> Classifier:
        """Return the teacher on the stage's device, frozen and in evaluation mode; the images it gets are counted.

        Args:
            purpose: the purpose of its queries outside of blocks that set another one; see `models.queries`.
            file: the teacher's file; None for the run's teacher.
        """
        classifier = self._load(file or self.run.artifact(self.run.teacher()).file(MODEL_FILE))
        classifier.queries.usual = purpose
        self._queries.append(classifier.queries)
        return self.placed(classifier)

    def classifier(self, file: InputFile) -> Classifier:
        """Return the classifier of a file on the stage's device, frozen and in evaluation mode.

        Raises:
            ArtifactError: the file is malformed, or was changed since it was hashed.
        """
        return self.placed(self._load(file))

    def _load(self, file: InputFile) -> Classifier:
        from ...models.classifier import load_classifier

        return file.read(load_classifier).frozen()

    def placed(self, classifier: Classifier) -> Classifier:
        """Move a classifier to the stage's device, with the precision and compilation of the options, and return it."""
        return classifier.placed(self.device, self.precision, self.compiled)

    def write(self, name: str, content: bytes) -> None:
        """Add a payload file, which is written at the end of the stage."""
        self.files[name] = content

    def write_metrics(self, rows: list[Json]) -> None:
        """Add `metrics.jsonl`: one JSON object per line, without times, so that equal runs write equal bytes."""
        self.write(METRICS_FILE, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of `name` in the budget."""
        self._running[name] = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - self._running.pop(name)

    @property
    def elapsed(self) -> float:
        """Seconds of the stage so far, those of earlier attempts included."""
        return self.earlier.seconds.get("total", 0.0) + time.monotonic() - self.started

    def costs(self) -> Attempts:
        """Return the costs of the stage so far, earlier attempts included."""
        now = time.monotonic()
        seconds = dict(self._seconds)
        for name, began in self._running.items():
            seconds[name] = seconds.get(name, 0.0) + now - began
        queries: dict[str, int] = {}
        for one in self._queries:
            queries |= {name: queries.get(name, 0) + count for name, count in one.counts.items()}
        return self.earlier.with_one_more(seconds | {"total": now - self.started}, queries, peak_memory(self.device))

    def count(self, **amounts: int) -> None:
        """Add to the budget's counters (images, student_steps)."""
        for name, amount in amounts.items():
            self.budget[name] = self.budget.get(name, 0) + amount


def run_stage(stage: Stage[ConfigT, ResolvedT], config: ConfigT, reporter: Reporter) -> Outcome:
    """Run a stage, unless its result exists (`cached`) or it is only to be planned (`dry_run`).

    Settings and random states of the process are restored; stages of several threads run one after the other.

    Raises:
        KdxError: any error that the user can correct; see `errors`.
    """
    try:
        with process_as_it_was():
            stage.before(config, reporter)
            return _plan_and_execute(stage, config, reporter, time.monotonic())
    except MemoryError as error:
        raise OutOfMemoryError(f"the machine ran out of memory; {what_takes_less(config)}") from error
    except OSError as error:
        raise from_os_error(error) from error
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise OutOfMemoryError(f"the device ran out of memory; {what_takes_less(config)}") from error
        raise


def what_takes_less(config: StageConfig) -> str:
    """Return advice for an out-of-memory error: the options of the stage and its method that take less memory."""
    known = [*option_fields(config)]
    if isinstance(config, MethodStageConfig):
        known += option_fields(config.chosen_method()[1])
    names = {declared.name for declared in known}
    options = [spelling(name) for name in _TAKE_MEMORY if name in names]
    if not options:
        return "no option of this command reduces it; use a machine or a --device with more memory"
    return f"try a smaller {' or '.join(options)}"


def _plan_and_execute(stage: Stage[ConfigT, ResolvedT], config: ConfigT, reporter: Reporter, started: float) -> Outcome:
    run = RunDir(config.run)
    plan: Plan[ResolvedT] | None = None
    if config.dry_run or not run.root.exists():
        plan = stage.plan(config, run)  # a command that cannot work creates no directory
        if config.dry_run:
            return Outcome("planned", plan.target.directory, None, plan)
    with run.lock():
        plan = plan or stage.plan(config, run)
        record = to_record(config)
        force = config.force or (stage.replaces_stale and _is_stale(plan, record))
        if run.is_done(plan.target, record, plan.inputs, force):
            return Outcome("cached", plan.target.directory, read_manifest(plan.target.directory), plan)
        return _execute(stage, config, run, plan, record, reporter, started)


def _is_stale(plan: Plan[Any], record: Json) -> bool:
    directory = plan.target.directory
    if not directory.exists():
        return False
    manifest = read_manifest(directory)
    return bool(difference(manifest.config, record)) or {i.sha256 for i in manifest.inputs} != {
        i.sha256 for i in plan.inputs
    }


def _execute(
    stage: Stage[ConfigT, ResolvedT],
    config: ConfigT,
    run: RunDir,
    plan: Plan[ResolvedT],
    record: Json,
    reporter: Reporter,
    started: float,
) -> Outcome:
    partial = _prepare_partial(stage.name, plan, record, reporter)
    checkpoints = Checkpoints(partial)
    import_what_is_set(config)
    with process_as_it_was(), signals_to(checkpoints.stop):
        device = set_up_torch(config)
        how = how_networks_run(config, device)
        context = StageContext(run, reporter, checkpoints, device, started, Attempts.read(partial), *how)
        reset_peak_memory(device)
        metrics = _execute_and_count(stage, config, plan.resolved, context, partial)
        context.budget |= context.costs().record(context.earlier)
        metrics_manifest = publish(
            plan.target.directory, lambda staged: _write_payload(staged, stage.name, plan, record, context, metrics)
        )
    shutil.rmtree(partial, ignore_errors=True)
    return Outcome("made", plan.target.directory, metrics_manifest, plan)


def _execute_and_count(
    stage: Stage[ConfigT, ResolvedT], config: ConfigT, resolved: ResolvedT, context: StageContext, partial: Path
) -> Json:
    """Execute the stage; store the costs of this attempt at its start, at each checkpoint, and if it fails."""

    def write() -> None:
        context.costs().write(partial)

    context.checkpoints.saved = write
    write()
    try:
        return stage.execute(config, resolved, context)
    except BaseException as error:
        if isinstance(error, UsageError | ConfigError) and not (partial / CHECKPOINT_FILE).exists():
            _remove_empty(partial)
        else:
            write()
        raise


def _remove_empty(partial: Path) -> None:
    """Remove the directory of a checkpoint that was never written, and the directory of its kind if nothing is left."""
    shutil.rmtree(partial, ignore_errors=True)
    with suppress(OSError):
        partial.parent.rmdir()


def _prepare_partial(stage: str, plan: Plan[Any], record: Json, reporter: Reporter) -> Path:
    """Return the directory of the stage's checkpoint, emptied unless it is of the same options and inputs."""
    partial = partial_path(plan.target.directory)
    key = json.dumps(
        {
            "stage": stage,
            "kdx_version": __version__,
            "checkpoint_format": CHECKPOINT_FORMAT,
            "config": record,
            "inputs": [[i.role, i.sha256] for i in plan.inputs],
        },
        sort_keys=True,
    ).encode()
    if partial.exists() and (not (partial / KEY_FILE).exists() or (partial / KEY_FILE).read_bytes() != key):
        shutil.rmtree(partial)
    if (partial / CHECKPOINT_FILE).exists():
        reporter.line(f"{stage}: continues from the checkpoint of an interrupted run")
    partial.mkdir(parents=True, exist_ok=True)
    write_file(partial / KEY_FILE, key)
    return partial


def _write_payload(
    staged: Path, stage: str, plan: Plan[Any], record: Json, context: StageContext, metrics: Json
) -> Manifest:
    outputs = []
    for name, content in context.files.items():
        write_file(staged / name, content)
        outputs.append(Output(name, file_sha256(staged / name), len(content)))
    return Manifest(
        kind=plan.target.kind,
        label=plan.target.label,
        stage=stage,
        kdx_version=__version__,
        config=record,
        inputs=plan.inputs,
        outputs=tuple(outputs),
        needs=plan.needs,
        real_data=tuple(context.real_data),
        environment=_environment(context),
        budget=context.budget,
        metrics=metrics,
    )


def _environment(context: StageContext) -> Json:
    import numpy
    import safetensors
    import torch
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "safetensors": safetensors.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send SIGINT and SIGTERM to `handler` while the block runs; in other threads than the main one, do nothing."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]  # None: not set by Python
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
