"""The commands that read runs: show, runs and verify. They write nothing and take no lock."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, ConfigError
from ..options.declare import OptionSet, RunConfig, option
from ..options.entries import OutputOptions
from ..stages.running.figures import figure, shown_metrics
from ..stages.running.html import Record
from ..storage.artifacts import Manifest
from ..storage.run_dir import PLACES, RUN_FILE, ArtifactRef, RunDir, manifest_of, verified_manifest
from ..training.progress import Reporter
from .command import Command, Json
from .printing import print_line, print_table

MADE_FROM = {"import-model": "a model"}
"""Stage -> origin of its artifacts, where it is not real data."""

HEADLINES = {
    "teacher": ["model", "num_parameters", "train_accuracy", "validation_accuracy"],
    "statistics": ["bytes_handed_over", "smallest_class", "explained_variance"],
    "generator": ["method", "generators", "num_parameters", "teacher_agrees_with_label", "rarest_class_share"],
    "transfer-set": ["num_images", "teacher_agrees_with_label", "mean_confidence"],
    "compressed": ["model", "num_parameters", "multiply_adds"],
    "pruned": ["model", "num_parameters", "multiply_adds", "held_out_agreement"],
    "student": ["student", "num_parameters", "loss", "estimated_accuracy"],
    "extended": ["model", "old_classes", "new_classes", "old_accuracy", "new_accuracy", "accuracy"],
    "quantized": ["model", "bits", "agreement", "bytes"],
    "evaluation": ["data", "accuracy", "agreement"],
    "neighbours": ["data", "space", "distance", "distance_among_real"],
    "export": ["format", "bytes", "largest_difference"],
}


@dataclass(frozen=True, kw_only=True)
class ShowConfig(RunConfig):
    """Show a run, or one artifact in detail.

    The details are options, inputs, real data, budget and metrics.

    Examples:

      kdx show
      kdx show students/lenet_half
    """

    artifact: str | None = option(None, "Artifact of the run; default: the whole run.", positional=True)


@dataclass(frozen=True, kw_only=True)
class RunsConfig(OptionSet):
    """List the run directories in a folder.

    Examples:

      kdx runs
      kdx runs experiments --json
    """

    folder: Path = option(Path("runs"), "Directory that contains run directories.", positional=True)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RunConfig):
    """Check the files of a run and their inputs.

    Every file is compared with its sha256, and every artifact's inputs with those in the run. Exit code 4 if a file
    is missing, changed or renamed.

    Examples:

      kdx verify
      kdx verify --run runs/demo --json
    """


def show(config: ShowConfig, reporter: Reporter) -> Record:
    """Return the artifacts of a run, or the manifest of one artifact."""
    run = _existing_run(config.run)
    if config.artifact is not None:
        manifest = manifest_of(run.find(config.artifact))
        return Record(asdict(manifest), identity=manifest.identity)
    refs = run.artifacts()
    if not refs:
        raise ConfigError(f"{config.run} has no artifacts; start with: kdx train")
    return Record(run=str(config.run), artifacts=[_artifact_record(ref, manifest_of(ref)) for ref in refs])


def print_shown(config: ShowConfig, record: Json, output: OutputOptions) -> None:
    """Print a run, or one artifact."""
    if config.artifact is not None:
        _print_artifact(RunDir(config.run), record, output)
        return
    artifacts = record["artifacts"]
    if output.quiet:
        print_line("\n".join(a["artifact"] for a in artifacts))
        return
    rows = [
        [a["artifact"], _headline(a), a["needs"] or MADE_FROM.get(a["stage"], "data"), _seconds_text(a)]
        for a in artifacts
    ]
    print_table(["artifact", "result", "made from", "seconds"], rows, str(config.run))


def _print_artifact(run: RunDir, record: Json, output: OutputOptions) -> None:
    directory = run.find(record["label"]).directory
    if output.quiet:
        print_line(str(directory))
        return
    print_line(f"{directory}  ({record['kind']}, made by kdx {record['stage']} {record['kdx_version']})")
    for title, entries in (
        ("options", _option_texts(record["config"])),
        ("budget", _option_texts({k: v for k, v in record["budget"].items() if k != "snapshots"})),
        ("result", shown_metrics(record["metrics"])),
        ("environment", _option_texts(record["environment"])),
    ):
        print_line(f"{title}:")
        for name, text in entries:
            print_line(f"  {name:<26} {text}")
    print_line("lineage:")
    for line in _lineage(run, manifest_of(run.find(record["label"]))):
        print_line(f"  {line}")
    print_line("files:")
    for file in record["outputs"]:
        print_line(f"  {file['file']:<26} {file['bytes']:>12,} bytes  sha256 {file['sha256'][:16]}")


def runs(config: RunsConfig, reporter: Reporter) -> Record:
    """Return a record per run directory."""
    folder = config.folder
    found = sorted(p.parent for p in folder.glob(f"*/{RUN_FILE}")) if folder.is_dir() else []
    records: list[dict[str, Any]] = []
    for root in found:
        run = RunDir(root)
        evaluations = {ref.name: manifest_of(ref).metrics for ref in run.artifacts("evaluation")}
        teacher = next((manifest_of(ref) for ref in run.artifacts("teacher")), None)
        records.append(
            {
                "run": str(root),
                "teacher": teacher.metrics.get("model") if teacher else None,
                "data": teacher.config.get("data") if teacher else None,
                "transfer_sets": [ref.name for ref in run.artifacts("transfer-set")],
                "students": [ref.name for ref in run.artifacts("student")],
                "accuracy": {name: m["accuracy"] for name, m in evaluations.items()},
            }
        )
    return Record(runs=records)


def print_runs(config: RunsConfig, record: Json, output: OutputOptions) -> None:
    """Print one row per run directory."""
    records = record["runs"]
    if output.quiet:
        for entry in records:
            print_line(entry["run"])
    elif not records:
        print_line(f"no runs in {config.folder}; start one with: kdx train")
    else:
        rows = [
            [
                str(r["run"]),
                f"{r['teacher'] or '-'} on {r['data'] or '-'}",
                ", ".join(r["transfer_sets"]) or "-",
                ", ".join(_with_accuracy(name, r["accuracy"]) for name in r["students"]) or "-",
            ]
            for r in records
        ]
        print_table(["run", "teacher", "transfer sets", "students"], rows)


def verify(config: VerifyConfig, reporter: Reporter) -> Record:
    """Check every artifact and return the problem of each, None if there is none."""
    run = _existing_run(config.run)
    results: list[dict[str, Any]] = []
    identities: dict[str, str | None] = {}  # None: damaged; artifacts made from it are not reported again
    for ref in run.artifacts():
        try:
            manifest = verified_manifest(ref)
            identities[ref.label] = manifest.identity
            problem = _broken_lineage(ref, manifest, identities)
        except ArtifactError as error:
            problem = str(error)
            identities[ref.label] = None
        results.append({"artifact": ref.label, "ok": problem is None, "problem": problem})
    return Record(run=str(config.run), artifacts=results)


def print_verified(config: VerifyConfig, record: Json, output: OutputOptions) -> None:
    """Print every artifact with its state."""
    if not output.quiet:
        for result in record["artifacts"]:
            print_line(f"{'ok     ' if result['ok'] else 'DAMAGED'}  {result['artifact']}")


def refuse_damage(config: VerifyConfig, record: Json) -> None:
    """Raise `ArtifactError` for the first problem, if there is one."""
    problems = [result["problem"] for result in record["artifacts"] if not result["ok"]]
    if problems:
        raise ArtifactError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))


def _broken_lineage(ref: ArtifactRef, manifest: Manifest, identities: dict[str, str | None]) -> str | None:
    """Return which input was removed or replaced since the artifact was made, None if none was."""
    for entry in manifest.inputs:
        inside = entry.path.split("/")[0] in {place.rstrip("/") for place in PLACES.values()}
        if inside and entry.path not in identities:
            return f"{ref.directory} was made from {entry.path}, which is no longer in the run"
        if identities.get(entry.path) not in (None, entry.sha256):
            return f"{ref.directory} was made from an earlier {entry.path}, which was replaced since"
    return None


def _option_texts(entries: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, figure(name, value)) for name, value in entries.items()]


def _existing_run(root: Path) -> RunDir:
    if not (root / RUN_FILE).is_file():
        raise ArtifactError(f"{root} is not a run directory (it has no {RUN_FILE}); start one with: kdx train")
    return RunDir(root)


def _artifact_record(ref: ArtifactRef, manifest: Manifest) -> dict[str, Any]:
    return {
        "artifact": ref.label,
        "kind": manifest.kind,
        "stage": manifest.stage,
        "needs": manifest.needs,
        "identity": manifest.identity,
        "budget": manifest.budget,
        "metrics": manifest.metrics,
    }


def _headline(artifact: Json) -> str:
    metrics = artifact["metrics"]
    names = [name for name in HEADLINES[artifact["kind"]] if name in metrics]
    return ", ".join(f"{n.replace('num_', '').replace('_', ' ')} {figure(n, metrics[n])}" for n in names)


def _seconds_text(artifact: Json) -> str:
    return f"{artifact['budget'].get('seconds', {}).get('total', 0):.1f}"


def _lineage(run: RunDir, manifest: Manifest) -> list[str]:
    """Return every input, followed by the inputs of that input, indented."""
    lines = []
    by_label = {ref.label: ref for ref in run.artifacts()}
    for entry in manifest.inputs:
        lines.append(f"{entry.role}: {entry.path}  {entry.sha256[:16]}")
        if entry.path in by_label:
            lines += ["  " + line for line in _lineage(run, manifest_of(by_label[entry.path]))]
    return lines


def _with_accuracy(name: str, accuracies: dict[str, float]) -> str:
    return f"{name} {figure('accuracy', accuracies[name])}" if name in accuracies else name


SHOW = Command(ShowConfig, show, print_shown)
RUNS = Command(RunsConfig, runs, print_runs)
VERIFY = Command(VerifyConfig, verify, print_verified, refuse_damage)
