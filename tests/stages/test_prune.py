"""`kdx prune`: cut classifiers, what is recorded about them, what is refused, and the commands that take them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Crash, Here, error_of, sha256s
from helpers import equal, weights

from kdextract import api
from kdextract.errors import ConfigError, UsageError
from kdextract.models.classifier import load_classifier
from kdextract.models.pruning import latency
from kdextract.models.pruning.names import CRITERIA
from kdextract.stages.prune import PruneConfig
from kdextract.storage.artifacts import read_manifest
from kdextract.training.batch_norm import NUM_IMAGES

NETWORKS = Path(__file__).parent.parent / "models" / "pruning" / "networks_to_cut.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher that has batch normalization in two of four layers, a student, and a transfer set."""
    run = tmp_path_factory.mktemp("prune") / "run"
    api.train(run=run, model="lenet5_bn", epochs=3, threads=1)
    api.optimize_dataset(run=run, objective="structured_noise", name="drawn", images_per_class=20, threads=1)
    api.distill(run=run, student="lenet5", data="drawn", steps=5, batch_size=16, name="small", threads=1)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def prune(run: Path, **options: Any) -> Any:
    return api.prune(run=run, threads=1, **options)


def imported(folder: Path, name: str, channels: int = 3, num_classes: int = 10) -> Path:
    """A run whose teacher is a network of a user's file."""
    run = folder / "imported"
    target, _, more = name.rstrip(")").partition("(")
    arguments = ", ".join(filter(None, [more, f"in_channels={channels}, num_classes={num_classes}"]))
    model = f"{NETWORKS}:{target}({arguments})"
    api.import_model(model, run=run, input_size=f"{channels}x16x16", trust_code=True, threads=1)
    return run


# what is made


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_makes_a_classifier_of_the_promised_size(run: Path, criterion: str) -> None:
    teacher = sha256s(run / "teacher")
    made = prune(run, criterion=criterion, macs=0.6)
    metrics, budget = made.manifest.metrics, made.manifest.budget
    classifier, whole = load_classifier(made.directory), load_classifier(run / "teacher")
    assert 0.4 * whole.multiply_adds() < classifier.multiply_adds() <= 0.6 * whole.multiply_adds()
    assert metrics["multiply_adds"] == classifier.multiply_adds()
    assert metrics["multiply_adds_before"] == whole.multiply_adds()
    assert metrics["num_parameters"] == classifier.num_parameters < metrics["parameters_before"] == 61_728
    assert metrics["bytes"] == (made.directory / "model.safetensors").stat().st_size < metrics["bytes_before"]
    assert classifier.spec.class_names == whole.spec.class_names
    kept = {entry.split()[0]: int(entry.split()[1]) for entry in metrics["channels_kept"]}
    assert {name: sizes[0] for name, sizes in classifier.spec.kept if name in kept} == kept
    assert 0 <= metrics["held_out_agreement"] <= 1
    images = {"taylor": 1024 + NUM_IMAGES, "fold": 0}.get(criterion, NUM_IMAGES)
    assert metrics["num_images"] == budget["images"] == images
    assert made.manifest.needs == "teacher"
    assert not made.manifest.real_data
    left = ["conv3", "fc1"] if criterion == "batch-norm" else []
    assert [entry.split(":")[0] for entry in metrics["left_whole"]] == left
    assert sha256s(run / "teacher") == teacher


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(run: Path) -> None:
    for criterion in CRITERIA:
        first = prune(run, criterion=criterion)
        before = sha256s(first.directory)
        assert prune(run, criterion=criterion).status == "cached"
        assert prune(run, criterion=criterion, force=True).status == "made"
        assert sha256s(first.directory) == before
    with pytest.raises(ConfigError, match=r"--macs: None -> 0\.4"):
        prune(run, macs=0.4, name="macs-0.5")
    other = prune(run, criterion="taylor", seed=1, name="other")
    assert sha256s(other.directory) != sha256s(run / "pruned" / "taylor-macs-0.5"), "other images"


def test_the_picture_has_a_bar_for_each_group_of_channels(run: Path) -> None:
    made = prune(run)
    picture = np.asarray(made.picture().convert("RGB"))
    left = (picture == (0, 114, 178)).all(2).any(1)
    assert 4 <= int((np.diff(left.astype(int)) == 1).sum()) <= 5, "four bars, and the legend"


@pytest.mark.parametrize("option", ["params", "channels"])
def test_other_shares(run: Path, option: str) -> None:
    made = prune(run, **{option: 0.5})
    assert made.directory.name == f"{option}-0.5"
    metrics = made.manifest.metrics
    if option == "params":
        assert 0.4 < metrics["num_parameters"] / metrics["parameters_before"] <= 0.5
    else:
        assert metrics["channels_kept"] == ["conv1 3 of 6", "conv2 8 of 16", "conv3 60 of 120", "fc1 42 of 84"]


def test_batch_normalization_is_estimated_except_by_folding(run: Path) -> None:
    def statistics(directory: Path) -> torch.Tensor:
        found = load_classifier(directory).network.state_dict()
        return torch.cat([value.flatten() for name, value in found.items() if name.endswith("running_mean")])

    whole = statistics(run / "teacher")
    plain = prune(run, channels=1.0, name="plain")
    folded = prune(run, channels=1.0, name="folded", criterion="fold")
    assert not torch.equal(statistics(plain.directory), whole)
    assert equal(weights(load_classifier(folded.directory)), weights(load_classifier(run / "teacher")))
    assert folded.manifest.metrics["held_out_agreement"] == 1


@pytest.mark.slow
def test_images_of_every_kind_of_source(run: Path) -> None:
    agreements = {}
    for name, options in {
        "drawn": {"data": "transfer-sets/drawn"},
        "noise": {"data": "noise:uniform"},
        "live": {"method": "structured_noise", "pool": 200},
        "auto": {"method": "auto"},
    }.items():
        made = prune(run, criterion="taylor", name=name, **options)
        agreements[name] = made.manifest.metrics["held_out_agreement"]
        assert made.manifest.metrics["source"] == options.get("data", "structured_noise").split("/")[-1]
        assert made.manifest.needs == "teacher"
    real = prune(run, criterion="taylor", name="real", data="digits")
    assert real.manifest.needs == "teacher+data"
    assert [entry["spec"] for entry in real.manifest.real_data] == ["digits"]
    files = {sha256s(run / "pruned" / name)["model.safetensors"] for name in (*agreements, "real")}
    assert len(files) == 5


@pytest.mark.slow
def test_other_classifiers_than_the_teacher(run: Path) -> None:
    student = prune(run, artifact="students/small", channels=0.5)
    assert student.directory.name == "small-channels-0.5"
    assert {entry.role: entry.path for entry in student.manifest.inputs} == {
        "teacher": "teacher",
        "classifier": "students/small",
    }
    api.compress(run=run, layers="conv3=0.3,fc1=0.3", threads=1)
    compressed = prune(run, artifact="compressed/tucker", criterion="fold", params=0.5)
    assert compressed.manifest.metrics["num_parameters"] <= 0.5 * compressed.manifest.metrics["parameters_before"]
    again = prune(run, artifact="pruned/small-channels-0.5", channels=0.5)
    assert again.directory.name == "small-channels-0.5-pruned-channels-0.5"
    assert again.manifest.metrics["channels_kept"][1] == "conv2 4 of 8"
    assert "held_out_agreement_before" in again.manifest.metrics
    file = prune(run, artifact=str(run / "students" / "small" / "model.safetensors"), channels=0.5, name="file")
    assert sha256s(file.directory) == sha256s(student.directory)
    named = prune(run, artifact="teacher", name="teachers")
    assert sha256s(named.directory) == sha256s(prune(run).directory)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("Small", 1),
        ("Depthwise", 3),
        pytest.param("Small", 3, marks=pytest.mark.slow),
        pytest.param("Depthwise", 1, marks=pytest.mark.slow),
    ],
)
def test_imported_networks(name: str, channels: int, tmp_path: Path) -> None:
    run = imported(tmp_path, name, channels)
    before = sha256s(run / "teacher")
    for criterion in CRITERIA:
        if name == "Depthwise" and criterion == "batch-norm":
            with pytest.raises(ConfigError, match=r"--criterion batch-norm does not fit .*no batch normalization"):
                prune(run, criterion=criterion)
            continue
        made = prune(run, criterion=criterion, macs=0.5)
        assert made.manifest.metrics["multiply_adds"] <= made.manifest.metrics["multiply_adds_before"] / 2
        answers = load_classifier(made.directory)(torch.rand(2, channels, 16, 16))
        assert torch.isfinite(answers).all()
        used = 1024 * (criterion == "taylor") + NUM_IMAGES * (name == "Small" and criterion != "fold")
        assert made.manifest.metrics["num_images"] == used
    assert sha256s(run / "teacher") == before


def test_rows_of_a_table(tmp_path: Path) -> None:
    run = tmp_path / "run"
    api.train(run=run, data="wine", model="kegnet_mlp", epochs=1, threads=1)
    for criterion in ("magnitude", "taylor", "fold"):
        made = prune(run, criterion=criterion, params=0.5)
        assert made.manifest.metrics["source"] == "noise:normal"
        assert made.manifest.metrics["num_parameters"] <= 0.5 * made.manifest.metrics["parameters_before"]


# rounds

SHORT = {"rounds": 3, "round_steps": 4, "data": "drawn"}


def rows_of(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "criterion", ["magnitude", *(pytest.param(name, marks=pytest.mark.slow) for name in CRITERIA[1:])]
)
def test_rounds_train_between_the_cuts(run: Path, criterion: str) -> None:
    teacher = sha256s(run / "teacher")
    usual = {} if criterion == "fold" else {"data": "drawn"}
    once = prune(run, criterion=criterion, macs=0.6, **usual)
    made = prune(run, criterion=criterion, macs=0.6, **SHORT)
    assert made.directory.name == "-".join(filter(None, [criterion * (criterion != "magnitude"), "macs-0.6-rounds-3"]))
    metrics, budget = made.manifest.metrics, made.manifest.budget
    assert metrics["channels_kept"] == once.manifest.metrics["channels_kept"]
    assert load_classifier(made.directory).spec == load_classifier(once.directory).spec
    assert budget["student_steps"] == metrics["steps"] == 8
    each = {"taylor": 1024 + NUM_IMAGES, "fold": 0}.get(criterion, NUM_IMAGES)
    assert metrics["num_images"] == budget["images"] == 3 * each + 8 * 128
    assert {"pruning", "distillation", "synthesis"} <= budget["seconds"].keys()
    assert budget["teacher_queries_by_purpose"]["targets"] >= 8 * 128
    rows = rows_of(made.directory)
    cuts = [row for row in rows if "multiply_adds" in row]
    assert [(row["round"], row["step"]) for row in cuts] == [(1, 0), (2, 4), (3, 8)]
    sizes = [row["multiply_adds"] / metrics["multiply_adds_before"] for row in cuts]
    assert all(0.9 * 0.6 ** (k / 3) < size <= 1.1 * 0.6 ** (k / 3) for k, size in enumerate(sizes, 1))
    assert sizes[-1] <= 0.6
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["step"] for row in rows if "agreement" in row] == [0, 4, 4, 8, 8]
    assert rows[-1]["agreement"] == metrics["held_out_agreement"]
    assert made.manifest.needs == "teacher"
    assert sha256s(run / "teacher") == teacher
    card = api.export(f"pruned/{made.directory.name}", run=run, format="safetensors", threads=1).directory / "README.md"
    assert "were cut in 3 rounds, with 8 training steps between them (criterion" in card.read_text()


@pytest.mark.slow
def test_training_between_the_cuts_improves_the_agreement(run: Path) -> None:
    options = {"macs": 0.2, "method": "structured_noise", "pool": 1000}
    once = prune(run, **options).manifest.metrics["held_out_agreement"]
    trained = prune(run, rounds=3, round_steps=100, **options).manifest.metrics["held_out_agreement"]
    assert trained > once + 0.1


@pytest.mark.parametrize(
    ("criterion", "stops"),
    [("magnitude", (2, 7)), *(pytest.param(name, (4, 6, 8), marks=pytest.mark.slow) for name in CRITERIA)],
)
def test_interrupted_in_any_round_it_ends_with_the_same_bytes(
    run: Path, criterion: str, stops: tuple[int, ...], saves_until_crash: Callable[[], list[int]]
) -> None:
    options = {**SHORT, "criterion": criterion, "channels": 0.5}
    straight = prune(run, name="straight", **options)
    left = saves_until_crash()
    done = 0
    for stop in stops:
        left[0] = stop - done
        with pytest.raises(Crash):
            prune(run, name="resumed", **options)
        done = stop
    left[0] = 10_000
    resumed = prune(run, name="resumed", **options)
    assert sha256s(resumed.directory) == sha256s(straight.directory)
    assert resumed.manifest.budget["attempts"] == 1 + len(stops)
    for name in ("images", "student_steps"):
        assert resumed.manifest.budget[name] == straight.manifest.budget[name]
    assert resumed.manifest.metrics == straight.manifest.metrics


@pytest.mark.parametrize(
    ("name", "channels", "num_classes"),
    [
        ("Small(batch_norm=False)", 1, 2),
        pytest.param("Small", 3, 1000, marks=pytest.mark.slow),
        pytest.param("Normed", 3, 10, marks=pytest.mark.slow),
        pytest.param("Twice", 1, 100, marks=pytest.mark.slow),
        pytest.param("Attention", 3, 2, marks=pytest.mark.slow),
    ],
)
def test_rounds_of_imported_networks_also_interrupted(
    name: str, channels: int, num_classes: int, tmp_path: Path, saves_until_crash: Callable[[], list[int]]
) -> None:
    run = imported(tmp_path, name, channels, num_classes)
    options = {**SHORT, "rounds": 2, "data": "noise:uniform", "params": 0.5}
    straight = prune(run, name="straight", **options)
    left = saves_until_crash()
    left[0] = 2
    with pytest.raises(Crash):
        prune(run, name="resumed", **options)
    left[0] = 10_000
    assert sha256s(prune(run, name="resumed", **options).directory) == sha256s(straight.directory)
    assert not equal(weights(load_classifier(straight.directory)), weights(load_classifier(run / "teacher")))
    assert load_classifier(straight.directory)(torch.rand(2, channels, 16, 16)).shape == (2, num_classes)


@pytest.mark.slow
def test_folding_in_rounds_takes_images(run: Path) -> None:
    made = prune(run, criterion="fold", rounds=2, round_steps=1, data="drawn")
    assert made.manifest.metrics["source"] == "drawn"
    assert made.manifest.budget["images"] == 128


# time


def by_parameters(classifier: Any, pixels: torch.Tensor) -> float:
    """Stand in for the measured seconds of a batch."""
    return 1e-6 * classifier.num_parameters


@pytest.mark.parametrize("criterion", ["batch-norm", pytest.param("fold", marks=pytest.mark.slow)])
def test_a_share_of_the_time(run: Path, criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "batch_seconds", by_parameters)
    made = prune(run, criterion=criterion, latency=0.6, **({} if criterion == "fold" else {"data": "drawn"}))
    metrics = made.manifest.metrics
    assert made.directory.name == f"{criterion}-latency-0.6"
    classifier = load_classifier(made.directory)
    assert classifier.num_parameters <= 0.6 * metrics["parameters_before"]
    assert metrics["latency"] == round(classifier.num_parameters / metrics["parameters_before"], 4)
    assert metrics["milliseconds_before"] == pytest.approx(metrics["parameters_before"] / 1000, abs=1e-3)
    assert metrics["milliseconds"] == pytest.approx(classifier.num_parameters / 1000, abs=1e-3)
    names = [entry.split()[0] for entry in metrics["channels_kept"]]
    assert list(metrics["time_of_channels"]) == names
    assert "timing" in made.manifest.budget["seconds"]
    assert classifier(torch.rand(2, *classifier.input_shape)).shape == (2, 10)


def test_times_are_measured_once_also_if_it_is_interrupted(
    run: Path, monkeypatch: pytest.MonkeyPatch, saves_until_crash: Callable[[], list[int]]
) -> None:
    options = {**SHORT, "rounds": 2, "latency": 0.7}
    monkeypatch.setattr(latency, "batch_seconds", by_parameters)
    straight = prune(run, name="straight", **options)
    left = saves_until_crash()
    left[0] = 2
    with pytest.raises(Crash):
        prune(run, name="resumed", **options)
    left[0] = 10_000
    calls = []

    def slower(classifier: Any, pixels: torch.Tensor) -> float:
        calls.append(classifier)
        return 3 * by_parameters(classifier, pixels)  # another speed, the same shares

    monkeypatch.setattr(latency, "batch_seconds", slower)
    resumed = prune(run, name="resumed", **options)
    assert calls
    ours, theirs = resumed.manifest.metrics, straight.manifest.metrics
    assert ours["time_of_channels"] == theirs["time_of_channels"]
    assert sha256s(resumed.directory) == sha256s(straight.directory)


def test_a_time_that_is_not_reached_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "batch_seconds", lambda classifier, pixels: 1 + 1e-9 * classifier.num_parameters)
    with pytest.raises(ConfigError, match=r"cannot be cut to 0\.5 of the time of a batch: .*, 1 of it is left"):
        prune(run, latency=0.5, data="drawn")
    assert not (run / "pruned").exists()


@pytest.mark.slow
def test_a_share_of_the_real_time(run: Path) -> None:
    made = prune(run, latency=0.97)
    metrics = made.manifest.metrics
    assert 0 < metrics["latency"] <= 0.97 or all(" 1 of " in entry for entry in metrics["channels_kept"])
    assert metrics["num_parameters"] < metrics["parameters_before"]
    assert metrics["milliseconds"] > 0


# what takes the result


def test_distill_evaluate_export_and_show_take_the_result(run: Path, here: Here) -> None:
    pruned = prune(run, macs=0.4, name="less")
    start = sha256s(pruned.directory)
    student = api.distill(run=run, student="pruned/less", data="drawn", steps=3, batch_size=16, threads=1)
    assert student.directory.name == "less"
    assert student.manifest.metrics["num_parameters"] == pruned.manifest.metrics["num_parameters"]
    assert {entry.role: entry.path for entry in student.manifest.inputs}["student"] == "pruned/less"
    almost = api.distill(
        run=run, student="pruned/less", data="drawn", steps=1, batch_size=16, lr=1e-9, name="same", threads=1
    )
    for name, value in load_classifier(almost.directory).network.named_parameters():
        torch.testing.assert_close(value, load_classifier(pruned.directory).network.get_parameter(name))
    scores = api.evaluate("pruned/less", run=run, data="digits", threads=1).manifest.metrics
    assert scores["num_parameters"] == pruned.manifest.metrics["num_parameters"]
    exported = api.export("pruned/less", run=run, format="safetensors", threads=1)
    card = (exported.directory / "README.md").read_text()
    assert "Channels of teacher were cut (criterion magnitude). Left are: conv1 " in card
    assert sha256s(pruned.directory) == start
    shown = here("show", "pruned/less", "--run", run)
    assert shown.returncode == 0
    assert "channels_kept" in shown.stdout
    assert "pruned/less" in here("show", "--run", run).stdout


def test_a_student_that_starts_from_the_result_has_its_access_to_data(run: Path) -> None:
    for name, data, needs in (("real", "digits", "teacher+data"), ("noise", "noise:normal", "teacher")):
        made = prune(run, data=data, name=name)
        assert made.manifest.needs == needs
        student = api.distill(run=run, student=f"pruned/{name}", data="noise:normal", steps=1, threads=1)
        assert student.manifest.needs == needs


def test_a_missing_result_is_reported_with_the_command_that_makes_it(run: Path) -> None:
    with pytest.raises(ConfigError, match="has no pruned/less; make it with: kdx prune"):
        api.distill(run=run, student="pruned/less", data="drawn", steps=1)
    prune(run)
    with pytest.raises(ConfigError, match=r"has no pruned/less; it has pruned/macs-0\.5"):
        api.distill(run=run, student="pruned/less", data="drawn", steps=1)


# what is refused


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"macs": 0.5, "params": 0.5}, UsageError, "--macs and --params both set the size"),
        ({"params": 0.5, "channels": 0.5}, UsageError, "--params and --channels both set the size"),
        ({"macs": 0.0}, UsageError, "--macs"),
        ({"channels": 1.5}, UsageError, "--channels"),
        ({"criterion": "fold", "data": "noise:normal"}, UsageError, "--data has no effect on --criterion fold"),
        ({"criterion": "fold", "method": "auto"}, UsageError, "--method has no effect on --criterion fold"),
        ({"data": "noise:normal", "method": "auto"}, UsageError, "--data and --method"),
        ({"criterion": "best"}, UsageError, "--criterion"),
        ({"latency": 0.5, "macs": 0.5}, UsageError, "--macs and --latency both set the size"),
        ({"round_steps": 5}, UsageError, "--round-steps has no effect without --rounds above 1"),
        ({"rounds": 1, "round_steps": 5}, UsageError, "--round-steps has no effect without --rounds above 1"),
        ({"rounds": 0}, UsageError, "--rounds must be at least 1"),
        ({"pool": 100}, UsageError, "--pool has no effect on prune without --method"),
        ({"channels": 0.05}, ConfigError, "leaves no channel of conv1, which has 6; the share is at least 0.0833"),
        ({"macs": 1e-4}, ConfigError, "cannot be cut to 0.0001 of its multiply-adds"),
        ({"params": 1e-4}, ConfigError, "cannot be cut to 0.0001 of its parameters"),
        ({"criterion": "batch-norm", "params": 0.1}, ConfigError, "cannot be cut to 0.1 of its parameters"),
        ({"artifact": "students/none"}, UsageError, "no artifact 'students/none'"),
        ({"artifact": "students/small", "criterion": "batch-norm"}, ConfigError, "does not fit lenet5: no batch norm"),
    ],
)
def test_what_is_refused_writes_nothing(run: Path, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        prune(run, **options)
    assert "\n" not in str(caught.value)
    assert not (run / "pruned").exists()


@pytest.mark.parametrize(("name", "match"), [("OneLayer", "one layer"), ("Recurrent", "GRU")])
def test_networks_with_nothing_to_cut_are_refused(name: str, match: str, tmp_path: Path) -> None:
    run = imported(tmp_path, name)
    for dry_run in (False, True):
        with pytest.raises(ConfigError, match=match):
            prune(run, dry_run=dry_run)
    with pytest.raises(ConfigError, match=match):
        api.distill(run=run, student="half", data="noise:uniform", dry_run=True, threads=1)
    assert not (run / "pruned").exists()


def test_a_classifier_of_another_task_is_refused(run: Path, tmp_path: Path) -> None:
    other = imported(tmp_path, "Small") / "teacher" / "model.safetensors"
    with pytest.raises(ConfigError, match=r"takes images of shape \(3, 16, 16\) and has 10 classes"):
        prune(run, artifact=str(other))
    with pytest.raises(ConfigError, match="they must be equal"):
        prune(run, artifact=str(other), dry_run=True)


def test_errors_of_the_command_line_are_one_line(run: Path, here: Here, tmp_path: Path) -> None:
    assert "both set the size" in error_of(here("prune", "--macs", "0.5", "--params", "0.5", "--run", run), 2)
    assert "leaves no channel" in error_of(here("prune", "--channels", "0.05", "--run", run, "--threads", "1"), 3)
    assert "has no teacher" in error_of(here("prune", "--run", tmp_path / "new"), 3)
    assert not (tmp_path / "new").exists()


def test_the_default_is_half_of_the_multiply_adds() -> None:
    assert PruneConfig().share == PruneConfig(macs=0.5).share
    assert PruneConfig(channels=0.25).share.of == "width"


def test_a_dry_run_writes_nothing(run: Path) -> None:
    planned = prune(run, dry_run=True)
    assert planned.status == "planned"
    assert planned.directory == run / "pruned" / "macs-0.5"
    assert not planned.directory.exists()
    assert [entry.role for entry in planned.plan.inputs] == ["teacher"]
    with pytest.raises(ConfigError, match=r"cannot be cut to 0\.0001 of its multiply-adds"):
        prune(run, macs=1e-4, dry_run=True)
    assert prune(run, latency=0.5, dry_run=True).status == "planned"
    assert not (run / "pruned").exists()
    assert read_manifest(run / "teacher").kind == "teacher"
