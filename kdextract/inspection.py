"""The commands that only look: show, runs, verify, models, methods. None of them takes the lock or writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .artifacts import Manifest
from .config import OptionSet, RunConfig, option
from .errors import ArtifactError, ConfigError
from .methods import (
    Method,
    generator_method,
    generator_names,
    live_method,
    live_names,
    objective,
    objective_names,
)
from .options import OutputOptions
from .report.tables import figure, print_line, print_table, shown_metrics
from .run_dir import PLACES, RUN_FILE, ArtifactRef, RunDir, in_its_place, verified

HEADLINES = {
    "teacher": ["model", "num_parameters", "train_accuracy", "validation_accuracy"],
    "statistics": ["bytes_handed_over", "smallest_class", "explained_variance"],
    "generator": ["method", "generators", "num_parameters", "teacher_agrees_with_label", "rarest_class_share"],
    "transfer-set": ["num_images", "teacher_agrees_with_label", "mean_confidence"],
    "compressed": ["model", "num_parameters", "multiply_adds"],
    "student": ["student", "num_parameters", "loss", "estimated_accuracy"],
    "evaluation": ["data", "accuracy", "agreement"],
    "neighbours": ["data", "space", "distance", "distance_among_real"],
}


@dataclass(frozen=True, kw_only=True)
class ShowConfig(RunConfig):
    """Show what a run holds, or one artifact with its options, lineage and budget.

    Examples:

      kdx show

      kdx show students/lenet_half
    """

    artifact: str | None = option(None, "Artifact of the run; without one, the whole run.", positional=True)


@dataclass(frozen=True, kw_only=True)
class RunsConfig(OptionSet):
    """List the run directories below a folder.

    Examples:

      kdx runs

      kdx runs experiments --json
    """

    folder: Path = option(Path("runs"), "Folder that holds run directories; runs if none is named.", positional=True)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RunConfig):
    """Check every file of a run against its sha256, and that each artifact was made from the inputs beside it.

    Exit code 4 when anything is missing, changed or renamed.

    Examples:

      kdx verify

      kdx verify --run runs/demo --json
    """


@dataclass(frozen=True, kw_only=True)
class ListConfig(OptionSet):
    """List the network architectures: parameters and multiply-adds at their own input size and ten classes.

    Examples:

      kdx models

      kdx models --json
    """


@dataclass(frozen=True, kw_only=True)
class MethodsConfig(RunConfig):
    """List the synthesis methods: what each matches, what it needs, where it comes from.

    Where there is a run, it says as well what each method lacks in it.

    Examples:

      kdx methods

      kdx methods --run runs/photos

      kdx methods --json
    """


def show(config: ShowConfig, output: OutputOptions) -> None:
    """Print a run, or one artifact."""
    run = _existing_run(config.run)
    if config.artifact is None:
        refs = run.artifacts()
        if not refs:
            raise ConfigError(f"{config.run} holds nothing yet; start with: kdx train")
        manifests = [in_its_place(ref) for ref in refs]
        if output.json:
            print(
                json.dumps(
                    {"run": str(config.run), "artifacts": [_brief(*pair) for pair in _zip(refs, manifests)]}, indent=2
                )
            )
            return
        if output.quiet:
            print_line("\n".join(ref.label for ref in refs))
            return
        rows = [[ref.label, _headline(m), m.needs or "data", _seconds(m)] for ref, m in _zip(refs, manifests)]
        print_table(["artifact", "result", "made from", "seconds"], rows, str(config.run))
        return
    ref = run.find(config.artifact)
    manifest = in_its_place(ref)
    if output.json:
        print(json.dumps({**asdict(manifest), "identity": manifest.identity}, indent=2))
        return
    if output.quiet:
        print_line(str(ref.directory))
        return
    print_line(f"{ref.directory}  ({manifest.kind}, made by kdx {manifest.stage} {manifest.kdx_version})")
    for title, entries in (
        ("options", _figures(manifest.config)),
        ("budget", _figures({k: v for k, v in manifest.budget.items() if k != "snapshots"})),
        ("result", shown_metrics(manifest.metrics)),
        ("environment", _figures(manifest.environment)),
    ):
        print_line(f"{title}:")
        for name, text in entries:
            print_line(f"  {name:<26} {text}")
    print_line("lineage:")
    for line in _lineage(run, manifest):
        print_line(f"  {line}")
    print_line("files:")
    for file in manifest.outputs:
        print_line(f"  {file.file:<26} {file.bytes:>12,} bytes  sha256 {file.sha256[:16]}")


def runs(config: RunsConfig, output: OutputOptions) -> None:
    """Print one row per run directory."""
    folder = config.folder
    found = sorted(p.parent for p in folder.glob(f"*/{RUN_FILE}")) if folder.is_dir() else []
    records: list[dict[str, Any]] = []
    for root in found:
        run = RunDir(root)
        evaluations = {ref.name: in_its_place(ref).metrics for ref in run.artifacts("evaluation")}
        teacher = next((in_its_place(ref) for ref in run.artifacts("teacher")), None)
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
    if output.json:
        print(json.dumps({"runs": records}, indent=2))
    elif output.quiet:
        for record in records:
            print_line(record["run"])
    elif not records:
        print_line(f"no runs in {folder}; start one with: kdx train")
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


def verify(config: VerifyConfig, output: OutputOptions) -> None:
    """Check everything and raise `ArtifactError` for the first problem after listing them all."""
    run = _existing_run(config.run)
    results, problems = [], []
    identities: dict[str, str | None] = {}  # None: damaged, which is said once and not again of what was made from it
    for ref in run.artifacts():
        try:
            manifest = verified(ref)
            identities[ref.label] = manifest.identity
            problem = _broken_lineage(ref, manifest, identities)
        except ArtifactError as error:
            problem = str(error)
            identities[ref.label] = None
        results.append({"artifact": ref.label, "ok": problem is None, "problem": problem})
        problems += [problem] if problem else []
    if output.json and not problems:
        print(json.dumps({"run": str(config.run), "artifacts": results}, indent=2))
    elif not output.quiet and not output.json:
        for result in results:
            print_line(f"{'ok     ' if result['ok'] else 'DAMAGED'}  {result['artifact']}")
    if problems:
        raise ArtifactError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))


def _broken_lineage(ref: ArtifactRef, manifest: Manifest, identities: dict[str, str | None]) -> str | None:
    """Say which input of the run is gone or is another one than when the artifact was made; None if all is well."""
    for entry in manifest.inputs:
        inside = entry.path.split("/")[0] in {place.rstrip("/") for place in PLACES.values()}
        if inside and entry.path not in identities:
            return f"{ref.directory} was made from {entry.path}, which is gone"
        if identities.get(entry.path) not in (None, entry.sha256):
            return f"{ref.directory} was made from another {entry.path} than the one in the run"
    return None


def models(config: ListConfig, output: OutputOptions) -> None:
    """Print every architecture with its size."""
    import torch

    from .hooks import count_multiply_adds
    from .models import architecture, model_names

    rows = []
    for name in model_names():
        entry = architecture(name)
        with torch.device("meta"):
            network = entry.build(entry.input_shape, 10)
            multiply_adds = count_multiply_adds(network, torch.zeros(1, *entry.input_shape))
        rows.append(
            {
                "model": name,
                "input": "x".join(map(str, entry.input_shape)),
                "num_parameters": sum(p.numel() for p in network.parameters()),
                "multiply_adds": multiply_adds,
                "source": entry.source,
            }
        )
    if output.json:
        print(json.dumps({"models": rows}, indent=2))
    elif output.quiet:
        print_line("\n".join(model_names()))
    else:
        print_table(list(rows[0]), [[figure(k, v) for k, v in row.items()] for row in rows])


def methods(config: MethodsConfig, output: OutputOptions) -> None:
    """Print every method with the option that chooses it and, where there is a run, what it lacks there."""
    from .stages.materials import lacking

    used: list[tuple[str, Method]] = [("optimize-dataset --objective", objective(name)) for name in objective_names()]
    used += [("train-generator", generator_method(name)) for name in generator_names()]
    used += [("distill --method", live_method(name)) for name in live_names()]
    rows = [
        {"command": command, "method": m.name, "does": m.summary, "needs": m.needs, "source": m.source}
        for command, m in used
    ]
    if (config.run / RUN_FILE).is_file():
        run = RunDir(config.run)
        rows = [{**row, "lacks": lacking(m, run)} for row, (_, m) in zip(rows, used, strict=True)]
    if output.json:
        print(json.dumps({"methods": rows}, indent=2))
    elif output.quiet:
        print_line("\n".join(dict.fromkeys(row["method"] for row in rows)))
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


def _figures(entries: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, figure(name, value)) for name, value in entries.items()]


def _existing_run(root: Path) -> RunDir:
    if not (root / RUN_FILE).is_file():
        raise ArtifactError(f"{root} is not a run directory (it has no {RUN_FILE}); start one with: kdx train")
    return RunDir(root)


def _zip(refs: list[ArtifactRef], manifests: list[Manifest]) -> list[tuple[ArtifactRef, Manifest]]:
    return list(zip(refs, manifests, strict=True))


def _brief(ref: ArtifactRef, manifest: Manifest) -> dict[str, Any]:
    return {
        "artifact": ref.label,
        "kind": manifest.kind,
        "needs": manifest.needs,
        "identity": manifest.identity,
        "budget": manifest.budget,
        "metrics": manifest.metrics,
    }


def _headline(manifest: Manifest) -> str:
    names = [name for name in HEADLINES[manifest.kind] if name in manifest.metrics]
    parts = [f"{n.replace('num_', '').replace('_', ' ')} {figure(n, manifest.metrics[n])}" for n in names]
    return ", ".join(parts)


def _seconds(manifest: Manifest) -> str:
    return f"{manifest.budget.get('seconds', {}).get('total', 0):.1f}"


def _lineage(run: RunDir, manifest: Manifest) -> list[str]:
    """Return every input, and under it, indented, what it was made from."""
    lines = []
    by_label = {ref.label: ref for ref in run.artifacts()}
    for entry in manifest.inputs:
        lines.append(f"{entry.role}: {entry.path}  {entry.sha256[:16]}")
        if entry.path in by_label:
            lines += ["  " + line for line in _lineage(run, in_its_place(by_label[entry.path]))]
    return lines


def _with_accuracy(name: str, accuracies: dict[str, float]) -> str:
    return f"{name} {figure('accuracy', accuracies[name])}" if name in accuracies else name


COMMANDS: dict[str, tuple[type[OptionSet], Callable[[Any, OutputOptions], None]]] = {
    "show": (ShowConfig, show),
    "runs": (RunsConfig, runs),
    "verify": (VerifyConfig, verify),
    "models": (ListConfig, models),
    "methods": (MethodsConfig, methods),
}
