"""Finds the sources and evaluations of an artifact by hashes, and describes how it was made, for the model card."""

from __future__ import annotations

import re
from pathlib import PurePath

from ...methods import (
    SynthesisMethod,
    generator_method,
    generator_names,
    live_method,
    live_names,
    objective,
    objective_names,
)
from ...storage.artifacts import Input, Manifest
from ...storage.run_dir import PLACES, ArtifactRef, RunDir, manifest_of

Fact = tuple[str, str]
"""Name and text, both plain text."""

NEEDS = {
    "teacher": "Only the teacher: its weights and outputs. No real image, and no statistics of real images, except "
    "those that the teacher's normalization layers may contain.",
    "teacher+new-data": "The teacher, and real images of the classes that were added.",
    "teacher+statistics": "The teacher, and statistics of its activations, recorded on real data. No real image.",
    "teacher+statistics+new-data": "The teacher, statistics of its activations, recorded on real data, and real images "
    "of the classes that were added.",
    "teacher+samples": "The teacher, and a few real images.",
    "teacher+samples+new-data": "The teacher, a few real images, and real images of the classes that were added.",
    "teacher+data": "The teacher, and real images.",
}
"""`Manifest.needs` in words."""
DRAWING = ("train", "optimize-dataset", "train-generator", "generate", "prune", "distill", "extend")
"""Stages whose results depend on a seed."""
_OF_FILES = re.compile(r"(npz:|folder:)(.*)")


def ancestors(run: RunDir, manifest: Manifest) -> dict[str, Manifest]:
    """Return the artifacts from which one was made, directly or indirectly, by label, the oldest first.

    Artifacts that are no longer in the run, or have changed since, are left out.
    """
    by_label = {ref.label: ref for ref in run.artifacts()}
    found: dict[str, Manifest] = {}

    def visit(made: Manifest) -> None:
        for entry in made.inputs:
            if entry.path in by_label and entry.path not in found:
                source = manifest_of(by_label[entry.path])
                if source.identity == entry.sha256:
                    visit(source)
                    found[entry.path] = source

    visit(manifest)
    return found


def evaluations_of(classifier: Input, run: RunDir) -> dict[ArtifactRef, Manifest]:
    """Return the evaluations of this classifier with the present teacher of the run; of equal ones only the first."""
    teachers = {manifest_of(ref).identity for ref in run.artifacts("teacher")}
    found: dict[str, ArtifactRef] = {}
    manifests: dict[ArtifactRef, Manifest] = {}
    for ref in run.artifacts("evaluation"):
        manifest = manifest_of(ref)
        inputs = {entry.role: entry.sha256 for entry in manifest.inputs}
        is_of_it = inputs.get("classifier") == classifier.sha256 and inputs.get("teacher") in teachers
        if is_of_it and manifest.identity not in found:
            found[manifest.identity] = ref
            manifests[ref] = manifest
    return manifests


def origin(manifest: Manifest, sources: dict[str, Manifest]) -> list[Fact]:
    """Return how a classifier was made, as facts about a teacher, a compressed, pruned or extended one, or a student.

    Args:
        sources: its `ancestors`.
    """
    teacher = next((source for source in sources.values() if source.kind == "teacher"), None)
    facts = [] if teacher is None else [("Teacher", _teacher_text(teacher))]
    if manifest.kind == "teacher":
        facts.append(("Training" if manifest.stage == "train" else "Import", _teacher_text(manifest)))
    elif manifest.kind == "compressed":
        layers = ", ".join(_layer_text(text) for text in manifest.metrics.get("ranks", []))
        text = f"Tucker-2 decomposition of these layers of the teacher: {layers}. Not trained afterwards."
        facts.append(("Method", text))
    elif manifest.kind == "extended":
        facts += _extension_facts(manifest)
    elif manifest.kind == "pruned":
        facts.append(("Method", _pruning_text(manifest)))
    else:
        facts += _distillation_facts(manifest, sources)
    if manifest.needs in NEEDS:
        facts.append(("Data used", NEEDS[manifest.needs]))
    opened = [(label, entry) for label, made in _with_sources(manifest, sources).items() for entry in made.real_data]
    shown = [f"{data_name(e.get('spec'))} ({e.get('split')}) by {label} for {e.get('purpose')}" for label, e in opened]
    facts.append(("Real data read", ("; ".join(shown) or "none is recorded") + "."))
    seeds = [
        f"{label} {made.config['seed']}" for label, made in _with_sources(manifest, sources).items() if _uses_seed(made)
    ]
    return [*facts, *([("Seeds", f"{', '.join(seeds)}.")] if seeds else [])]


def data_name(spec: object) -> str:
    """Return the name of a data set or a network, without folders, which describe the machine and not the data."""
    text = str(spec)
    of_files = _OF_FILES.fullmatch(text)
    if of_files:
        return of_files[1] + PurePath(of_files[2]).name
    return PurePath(text).name if text.startswith(("/", "~")) else text


def _with_sources(manifest: Manifest, sources: dict[str, Manifest]) -> dict[str, Manifest]:
    return {**sources, manifest.label: manifest}


def _uses_seed(manifest: Manifest) -> bool:
    return "seed" in manifest.config and manifest.stage in DRAWING


def _layer_text(text: str) -> str:
    name, _, ranks = text.rpartition(" ")
    return f"{name} (ranks {ranks})"


def _pruning_text(manifest: Manifest) -> str:
    """Return from which classifier channels were cut, how many of each layer are left, and by which criterion."""
    by_role = {entry.role: entry.path for entry in manifest.inputs}
    start = by_role.get("classifier", by_role.get("teacher"))
    left = ", ".join(manifest.metrics.get("channels_kept", []))
    criterion = manifest.config.get("criterion")
    rounds, steps = manifest.metrics.get("rounds", 1), manifest.metrics.get("steps")
    between = f" in {rounds} rounds, with {steps} training steps between them" if steps else ""
    return (
        f"Channels of {data_name(start)} were cut{between} (criterion {criterion}). Left are: {left}. Not trained "
        "afterwards."
    )


def _teacher_text(manifest: Manifest) -> str:
    """Return a text about a teacher: its network, its training data, and its validation accuracy."""
    config, metrics = manifest.config, manifest.metrics
    text = f"{data_name(metrics.get('model', 'a network'))}"
    if "num_parameters" in metrics:
        text += f", {metrics['num_parameters']:,} parameters"
    data = config.get("data")
    if manifest.stage == "train":
        text += f", trained on {metrics['num_images']:,} images of {data_name(data)}"
    else:
        text += f", imported by kdx {manifest.stage}; "
        text += f"training data as stated by the user: {data_name(data)}" if data else "training data not stated"
    if "validation_accuracy" in metrics:
        share, count = 100 * metrics["validation_accuracy"], metrics["validation_images"]
        text += f"; validation accuracy {share:.2f} % ({count:,} images that were not used for training)"
    return f"{text}."


def _extension_facts(extended: Manifest) -> list[Fact]:
    """Return which classes were added to which classifier, what it learned from, and what is known of its accuracy."""
    metrics, by_role = extended.metrics, {entry.role: entry for entry in extended.inputs}
    names = ", ".join(metrics["new_classes"])
    start = data_name(by_role["classifier"].path)
    source = metrics["source"]
    old = "without images of the old classes" if source == "none" else f"and on images of the old classes ({source})"
    texts = [
        (
            "Method",
            f"Classes were added to {start}, which has {metrics['old_classes']} (Yin et al. 2020, section 4.6).",
        ),
        ("New classes", f"{names}."),
        ("Training", f"{metrics['steps']:,} steps on {metrics['num_images']:,} real images of the new classes, {old}."),
    ]
    if "accuracy" in metrics:
        shares = (f"{100 * metrics[name]:.2f} %" for name in ("old_accuracy", "new_accuracy", "accuracy"))
        shown = "{} on old, {} on new, {} on all classes".format(*shares)
        texts.append(("Accuracy", f"{shown}, test images of {data_name(extended.config['test_data'])}."))
    return texts


def _distillation_facts(student: Manifest, sources: dict[str, Manifest]) -> list[Fact]:
    metrics, budget = student.metrics, student.budget
    settings = metrics.get("settings", {})
    facts = [("Method", _method_text(student, sources)), ("Training images", _images_text(student))]
    if "teacher_queries" in budget:
        before = sum(source.budget.get("teacher_queries", 0) for source in _synthesis(student, sources))
        also = f", and {before:,} in the stages that made the training images" if before else ""
        queries = f"The teacher processed {budget['teacher_queries']:,} images in kdx distill{also}."
        facts.append(("Teacher queries", queries))
    if "steps" in metrics:
        text = f"{metrics['steps']:,} steps"
        text += f" of {settings['batch_size']} images" if "batch_size" in settings else ""
        text += f", optimizer {student.config['optimizer']}" if "optimizer" in student.config else ""
        text += f", loss {settings['loss']}" if "loss" in settings else ""
        text += f" at temperature {settings['temperature']:g}" if settings.get("loss") in ("kl", "ce") else ""
        facts.append(("Training", f"{text}; weights of the last step. {_start_text(student)}"))
    return facts


def _synthesis(student: Manifest, sources: dict[str, Manifest]) -> list[Manifest]:
    """Return the manifests of the transfer set and of the generators that made a student's images, if in `sources`."""
    found: list[Manifest] = []
    waiting = [student]
    while waiting:
        inputs = [e.path for e in waiting.pop().inputs if e.role in ("transfer-set", "generator")]
        made = [sources[path] for path in inputs if path in sources]
        found += made
        waiting += made
    return found


def _start_text(student: Manifest) -> str:
    given = next((entry for entry in student.inputs if entry.role == "student"), None)
    if given is not None:
        return f"Initial weights: those of {data_name(given.path)}."
    if student.metrics.get("inherited"):
        return "Initial weights: copied from the teacher's units with the largest weights."
    return "Initial weights: random."


def _images_text(student: Manifest) -> str:
    """Return a sentence about the kind and the number of a student's training images."""
    count = student.metrics.get("num_images")
    many = "An unknown number of" if count is None else f"{count:,}"
    by_role = {entry.role: entry for entry in student.inputs}
    given = str(student.config.get("data"))
    if "transfer-set" in by_role:
        return f"{many} synthetic images of {_place_text(by_role['transfer-set'])}."
    if "generator" in by_role:
        return f"{many} synthetic images of {_place_text(by_role['generator'])}, made during training."
    if "data" in by_role:
        return f"{many} real images of {data_name(given)}."
    if given.startswith("noise:"):
        return f"{many} images of {given.removeprefix('noise:')} noise."
    return f"{many} synthetic images, made during training."


def _place_text(entry: Input) -> str:
    return entry.path if entry.path.startswith(PLACES[entry.role]) else f"{PurePath(entry.path).name} of another run"


def _method_text(student: Manifest, sources: dict[str, Manifest]) -> str:
    """Return the name of the method, the first line of its docstring, and its paper."""
    method = _method_of(student, sources)
    if method is None:
        return "Knowledge distillation: trained to reproduce the teacher's outputs."
    return f"{method.name}: {method.summary} ({method.source})"


def _method_of(student: Manifest, sources: dict[str, Manifest]) -> SynthesisMethod | None:
    """Return the method that made a student's images; None if there is none or it is not known."""
    for made in _synthesis(student, sources):
        name = str(made.config.get("objective", made.config.get("method")))
        if name in objective_names():
            return objective(name)
        if name in generator_names():
            return generator_method(name)
    roles = {entry.role for entry in student.inputs}
    live = str(student.metrics.get("source"))
    return live_method(live) if live in live_names() and not roles & {"transfer-set", "generator", "data"} else None
