"""Tables and points of the plane: the data, their teachers, and the stages that support or refuse them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import errors_of_one_answer

from kdextract import api
from kdextract.data import planes
from kdextract.data.load import check_spec, data_names, fingerprint, is_real_data, load_data, mirrors_make_sense
from kdextract.data.planes import PLANES, TEST_POINTS, TRAIN_POINTS, plane_points
from kdextract.data.tables import is_table, range_of, to_levels
from kdextract.errors import ConfigError, DataError, UsageError
from kdextract.methods.auto import pick
from kdextract.models.architectures import architecture
from kdextract.models.classifier import Classifier, ClassifierSpec, load_classifier
from kdextract.stages.compress import CompressConfig, choose_ranks
from kdextract.stages.inputs.real_data import fitted
from kdextract.synthesis.generators import training as generator_training
from kdextract.training import augmentation, observer

NOWHERE = Path("no-such-directory")
SKLEARN = {"iris": (150, 4, 3), "wine": (178, 13, 3), "breast_cancer": (569, 30, 2)}
PLANE_NAMES = [f"2d:{name}" for name in PLANES]
EVERY_NAME = [*SKLEARN, *PLANE_NAMES]


def both(spec: str) -> list[Any]:
    return [load_data(spec, split, NOWHERE) for split in ("train", "test")]


# ---- scale -----------------------------------------------------------------------------------------------------


def test_levels_span_the_range_of_each_column() -> None:
    rows = np.array([[-3.0, 1000.0], [1.0, 1001.0], [-1.0, 1002.0]])
    levels = to_levels(rows, range_of(rows))
    assert (levels.dtype, levels.shape) == (np.uint8, (3, 1, 1, 2))
    assert levels[:, 0, 0].tolist() == [[0, 0], [255, 128], [128, 255]]


def test_what_is_outside_is_clipped_and_a_constant_column_is_zero() -> None:
    columns = range_of(np.array([[0, 7], [10, 7]]))
    levels = to_levels(np.array([[-5.0, 7.0], [15.0, 8.0], [5.0, 6.0]]), columns)
    assert levels[:, 0, 0].tolist() == [[0, 0], [255, 0], [128, 0]]


@pytest.mark.parametrize(
    "column",
    [[-1.7e308, 0.0, 1.7e308], [0.0, 1e-300, 2e-300], [0, 2**62, 2**63 - 1]],
    ids=["huge", "tiny", "integers"],
)
def test_floats_of_any_size_are_scaled(column: list[Any]) -> None:
    rows = np.array(column)[:, None]
    assert to_levels(rows, range_of(rows)).ravel().tolist() == [0, 128, 255]


def test_what_is_a_table() -> None:
    assert is_table((1, 1, 4))
    assert not any(is_table(shape) for shape in ((1, 8, 8), (3, 1, 8), (1, 8, 1)))


# ---- scikit-learn's tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SKLEARN)
def test_tables_of_sklearn_are_split_and_scaled_by_their_training_rows(spec: str) -> None:
    import sklearn.datasets

    original = getattr(sklearn.datasets, f"load_{spec}")()
    count, columns, classes = SKLEARN[spec]
    train, test = both(spec)
    assert len(train.images) + len(test.images) == count
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 1, columns)
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert train.class_names == test.class_names == tuple(str(name) for name in original.target_names)
    assert len(train.class_names) == classes
    sizes = train.labels.bincount() + test.labels.bincount()
    assert sizes.tolist() == np.bincount(original.target).tolist()
    assert test.labels.bincount().tolist() == (sizes // 5).tolist()
    assert (train.images.amin((0, 1, 2)) == 0).all()
    assert (train.images.amax((0, 1, 2)) == 255).all(), "training rows span each column's range"
    assert train.images[:, 0, 0, 0].unique().numel() > 10


def test_a_test_row_of_iris_is_scaled_by_the_training_rows() -> None:
    from sklearn.datasets import load_iris

    iris = load_iris()
    test_rows = np.concatenate([np.flatnonzero(iris.target == label)[4::5] for label in range(3)])
    trained_on = np.delete(iris.data, test_rows, axis=0)
    lowest, highest = trained_on.min(0), trained_on.max(0)
    shares = ((iris.data[test_rows] - lowest) / (highest - lowest)).clip(0, 1)
    stored = load_data("iris", "test", NOWHERE).images[:, 0, 0].numpy()
    assert np.abs(stored - shares * 255).max() <= 0.5 + 1e-6


# ---- the plane -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", PLANE_NAMES)
def test_points_of_the_plane_come_half_and_half_and_fill_it(spec: str) -> None:
    train, test = both(spec)
    for part, count in ((train, TRAIN_POINTS), (test, TEST_POINTS)):
        assert part.images.shape == (count, 1, 1, 2)
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.labels.bincount().tolist() == [count // 2, count // 2]
        assert part.class_names == ("0", "1")
    assert int(train.images.amin((0, 1, 2)).max()) <= 2
    assert int(train.images.amax((0, 1, 2)).min()) >= 245
    points = [part.images.double().view(-1, 2) for part in (train, test)]
    assert float((points[0].mean(0) - points[1].mean(0)).abs().max()) < 5, "both splits are of one distribution"
    assert not torch.equal(train.images[:1000], test.images[:1000])
    assert float(points[0].std(0).min()) > 20, "no long tail squeezes the points"


@pytest.mark.parametrize("spec", PLANE_NAMES)
def test_points_outside_are_drawn_again_not_moved_to_the_border(spec: str) -> None:
    points = load_data(spec, "train", NOWHERE).images.view(-1, 2)
    assert float((points == 255).float().mean(0).max()) < planes.TAILS[0]


def test_the_formulas_give_the_classes_of_the_simulation() -> None:
    rng = np.random.RandomState(0)
    bowl, upside_down = PLANES["moon1"](2000, rng)
    assert bowl[:, 1].min() >= 4
    assert upside_down[:, 1].max() <= -4
    assert np.median(bowl[:, 0]) == pytest.approx(2, abs=0.2)
    assert np.median(upside_down[:, 0]) == pytest.approx(-2, abs=0.2)
    low, high = PLANES["moon2"](2000, rng)
    residual = low[:, 1] + 40 - 0.3 * (low[:, 0] + 10) ** 2
    assert (residual.mean(), residual.std()) == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))
    residual = high[:, 1] - 40 + 0.3 * (high[:, 0] - 10) ** 2
    assert (residual.mean(), residual.std()) == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))
    left, right = PLANES["mixed"](2000, rng)
    assert left.min(0)[1] >= 0
    assert right.mean(0)[0] - left.mean(0)[0] == pytest.approx(4, abs=0.4)
    _, ring = PLANES["circle"](2000, rng)
    assert np.hypot(*ring.T).min() >= 6
    odd, even = PLANES["pizza"](2000, rng)
    assert (odd.prod(1) <= 1e-9).all(), "second and fourth quadrant"
    assert (even.prod(1) >= -1e-9).all()
    assert np.hypot(*even.T).max() < 20


@pytest.mark.parametrize(("name", "factor"), [("moons", None), ("circles", 0.8)])
def test_moons_and_circles_are_those_of_sklearn(name: str, factor: float | None) -> None:
    import sklearn.datasets

    extra = {} if factor is None else {"factor": factor}
    noise = {"moons": 0.1, "circles": 0.05}[name]
    theirs, labels = getattr(sklearn.datasets, f"make_{name}")(8000, noise=noise, random_state=0, **extra)
    ours = PLANES[name](4000, np.random.RandomState(0))
    for label in (0, 1):
        expected = theirs[labels == label]
        np.testing.assert_allclose(ours[label].mean(0), expected.mean(0), atol=0.05)
        np.testing.assert_allclose(np.cov(ours[label].T), np.cov(expected.T), atol=0.05)


# ---- names and fingerprints ------------------------------------------------------------------------------------


def test_every_name_is_a_data_set() -> None:
    assert set(EVERY_NAME) <= set(data_names())
    for spec in EVERY_NAME:
        check_spec(spec)
        assert is_real_data(spec)
        assert not mirrors_make_sense(spec)


@pytest.mark.parametrize("spec", EVERY_NAME)
def test_data_and_fingerprints_are_the_same_every_time(spec: str) -> None:
    once, again = (load_data(spec, "test", NOWHERE) for _ in range(2))
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.labels, again.labels)
    prints = [fingerprint(spec, "train", NOWHERE) for _ in range(2)]
    assert prints[0] == prints[1]
    assert len(prints[0]) == 64


def test_fingerprints_differ_between_sets_splits_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = [fingerprint(spec, "train", NOWHERE) for spec in [*EVERY_NAME, "digits"]]
    prints += [fingerprint(spec, "test", NOWHERE) for spec in PLANE_NAMES]
    monkeypatch.setattr("kdextract.data.load.FORMULAS_VERSION", planes.FORMULAS_VERSION + 1)
    prints += [fingerprint(spec, "train", NOWHERE) for spec in PLANE_NAMES]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(("typed", "meant"), [("2d:mooons", "2d:moons"), ("2d:piza", "2d:pizza"), ("irs", "iris")])
def test_unknown_names_are_refused_with_the_most_similar_one(typed: str, meant: str) -> None:
    for ask in (fingerprint, load_data):
        with pytest.raises(UsageError, match=f"'{typed}'.* Did you mean '{meant}'"):
            ask(typed, "train", NOWHERE)


# ---- npz tables ------------------------------------------------------------------------------------------------


def table_arrays(**changes: Any) -> dict[str, Any]:
    rows = np.random.default_rng(0).normal(50, 1000, (20, 3))
    arrays = {"x_train": rows[:15], "y_train": np.arange(15) % 3, "x_test": rows[15:] * 2, "y_test": np.arange(5) % 3}
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def saved(path: Path, arrays: dict[str, Any]) -> str:
    np.savez(path / "table.npz", **arrays)
    return f"npz:{path / 'table.npz'}"


def test_npz_table_of_four_arrays_is_scaled_by_its_training_rows(tmp_path: Path) -> None:
    arrays = table_arrays()
    train, test = both(saved(tmp_path, arrays))
    columns = arrays["x_train"].min(0), arrays["x_train"].max(0)
    for part, name in ((train, "train"), (test, "test")):
        assert np.array_equal(part.images.numpy(), to_levels(arrays[f"x_{name}"], columns))
        assert part.labels.tolist() == arrays[f"y_{name}"].tolist()
        assert part.class_names == ("0", "1", "2")
    assert (test.images == 255).any()
    more = table_arrays(x_test=arrays["x_test"] * 100)
    (tmp_path / "more").mkdir()
    assert torch.equal(both(saved(tmp_path / "more", more))[0].images, train.images), "test rows have no say"


def test_npz_table_without_a_split_is_split(tmp_path: Path) -> None:
    rows, labels = np.random.default_rng(1).normal(size=(22, 4)), np.repeat([0, 1], 11)
    train, test = both(saved(tmp_path, {"images": rows, "labels": labels}))
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([9, 9], [2, 2])
    is_test = np.isin(np.arange(22) % 11, [4, 9])
    columns = range_of(rows[~is_test])
    assert np.array_equal(train.images.numpy(), to_levels(rows[~is_test], columns))
    assert np.array_equal(test.images.numpy(), to_levels(rows[is_test], columns))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64, bool])
def test_npz_tables_hold_any_real_numbers(dtype: type, tmp_path: Path) -> None:
    rows = np.array([[0, 1], [1, 0], [1, 1]] * 5).astype(dtype)
    train, _ = both(saved(tmp_path, table_arrays(x_train=rows, x_test=rows[:5])))
    assert train.images[:3, 0, 0].tolist() == [[0, 255], [255, 0], [255, 255]]


def with_one(value: float) -> np.ndarray:
    rows: np.ndarray = table_arrays()["x_train"].copy()
    rows[3, 1] = value
    return rows


BAD_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "a nan": (table_arrays(x_train=with_one(float("nan"))), "finite"),
    "infinity": (table_arrays(x_train=with_one(float("inf"))), "finite"),
    "complex numbers": (table_arrays(x_train=with_one(0).astype(complex)), "real numbers"),
    "text": (table_arrays(x_train=np.full((15, 3), "a")), "real numbers"),
    "too few labels": (table_arrays(y_train=np.zeros(14, dtype=int)), "labels of shape"),
    "one axis": (table_arrays(x_train=np.zeros(15)), r"images of shape \(15,\)"),
    "no columns": (table_arrays(x_train=np.zeros((15, 0))), "has no train images"),
    "no rows": (table_arrays(x_train=np.zeros((0, 3)), y_train=np.zeros(0, dtype=int)), "has no train images"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_malformed_tables_are_refused(case: str, tmp_path: Path) -> None:
    arrays, says = BAD_TABLES[case]
    with pytest.raises(DataError, match=rf"table\.npz .*{says}"):
        load_data(saved(tmp_path, arrays), "train", NOWHERE)


@pytest.mark.parametrize("x_train", [None, np.zeros((15, 2)), np.zeros((15, 3, 3)), np.zeros((0, 3))], ids=str)
def test_test_rows_without_training_rows_to_scale_them_are_refused(x_train: np.ndarray | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table of 3 columns, but x_train has no such rows"):
        load_data(saved(tmp_path, table_arrays(x_train=x_train)), "test", NOWHERE)


# ---- teachers and stages ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of breast_cancer with statistics."""
    directory = tmp_path_factory.mktemp("tables") / "run"
    api.train(run=directory, data="breast_cancer", model="kegnet_mlp", epochs=40, threads=1)
    api.compute_stats(run=directory, spectral=False, threads=1)
    return directory


def share_of_errors(metrics: dict[str, Any], data: str) -> float:
    """Return the test errors of a classifier, divided by those of one that always predicts the most frequent class."""
    return (1 - metrics["accuracy"]) / errors_of_one_answer(load_data(data, "test", NOWHERE).labels)


def test_kegnets_teacher_learns_a_table(run: Path) -> None:
    teacher = load_classifier(run / "teacher" / "model.safetensors")
    assert teacher.input_shape == (1, 1, 30)
    assert teacher.is_table
    assert teacher.spec.class_names == ("malignant", "benign")
    metrics = api.evaluate(run=run, artifact="teacher", threads=1).manifest.metrics
    assert metrics["num_images"] == 113
    assert share_of_errors(metrics, "breast_cancer") < 0.25


def test_bdnfs_classifier_learns_the_plane(tmp_path: Path) -> None:
    api.train(run=tmp_path / "run", data="2d:moons", model="bdnf_mlp", epochs=5, threads=1)
    metrics = api.evaluate(run=tmp_path / "run", artifact="teacher", threads=1).manifest.metrics
    assert metrics["num_images"] == TEST_POINTS
    assert share_of_errors(metrics, "2d:moons") < 0.1


def test_rows_are_not_changed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> torch.Tensor:
        raise AssertionError("a row was moved")

    for module in (augmentation, generator_training, observer):
        monkeypatch.setattr(module, "augment", never, raising=False)
        monkeypatch.setattr(module, "warp", never)
    options = {"run": tmp_path / "run", "threads": 1}
    api.train(data="iris", model="kegnet_mlp", epochs=2, batch_size=32, shift=2, warp=0.2, flip=True, **options)
    api.distill(data="noise:uniform", student="kegnet_mlp", steps=2, **options)


@pytest.mark.parametrize("model", ["hinton800", "bdnf_mlp"])
def test_other_fully_connected_networks_take_tables_of_any_width(model: str, tmp_path: Path) -> None:
    api.train(run=tmp_path / "run", data="iris", model=model, epochs=1, threads=1)
    assert load_classifier(tmp_path / "run" / "teacher" / "model.safetensors").input_shape == (1, 1, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "iris"}, "lenet takes images of 32x32 pixels, got 1x1x4"),
        ({"data": "iris", "model": "kegnet_mlp", "input_size": "1x1x5"}, "rows of 4 features .* of rows of 5"),
        ({"data": "iris", "model": "kegnet_mlp", "input_size": "1x8x8"}, "rows of 4 features .* images of 1x8x8"),
        ({"data": "digits", "model": "kegnet_mlp"}, "kegnet_mlp is for tables; .* --input-size 1x8x8"),
        ({"data": "digits", "model": "kegnet_mlp", "input_size": "1x1x64"}, "images of 1x8x8 .* rows of 64"),
    ],
    ids=str,
)
def test_images_and_tables_that_do_not_fit_are_refused_in_one_line(
    options: dict[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        api.train(run=tmp_path / "run", threads=1, **options)
    assert "\n" not in str(caught.value)


def test_rows_are_never_resized(run: Path) -> None:
    rows = torch.zeros((2, 1, 1, 4), dtype=torch.uint8)
    assert fitted(rows, (1, 1, 4)) is rows
    for shape in ((1, 1, 30), (3, 1, 4), (1, 8, 8)):
        with pytest.raises(ConfigError, match="rows of 4 features cannot be given"):
            fitted(rows, shape)
    with pytest.raises(ConfigError, match="rows of 13 features"):
        api.compute_stats(run=run, data="wine", threads=1, force=True)
    with pytest.raises(ConfigError, match="rows of 2 features"):
        api.evaluate(run=run, artifact="teacher", data="2d:moons", threads=1)
    with pytest.raises(ConfigError, match="images of 1x8x8"):
        api.distill(run=run, data="digits", student="kegnet_mlp", steps=1, threads=1)


@pytest.mark.parametrize(("preset", "rank"), [("kegnet-1", 10), ("kegnet-2", 5)])
def test_presets_decompose_the_hidden_layers_of_kegnets_network(preset: str, rank: int, run: Path) -> None:
    rules = CompressConfig(preset=preset).rules_by_layer("kegnet_mlp", 1)
    network = architecture("kegnet_mlp").build((1, 1, 4), 3)
    assert choose_ranks(network, rules, "evbmf") == [(f"fc{index}", rank, rank) for index in range(2, 11)]
    metrics = api.compress(run=run, preset=preset, threads=1).manifest.metrics
    each = 2 * 100 * rank + rank**2 + 100
    assert metrics["num_parameters"] == 31 * 100 + 9 * each + 2 * 101


def test_distill_from_noise_works_and_estimates_nothing(run: Path) -> None:
    api.compress(run=run, preset="kegnet-1", threads=1)
    made = api.distill(run=run, data="noise:uniform", student="compressed/kegnet-1", steps=50, name="floor", threads=1)
    metrics = made.manifest.metrics
    assert (metrics["settings"]["shift"], metrics["settings"]["warp"]) == (0, 0.0)
    assert not [name for name in metrics if name.startswith("estimated") or name == "structured_agreement"]
    assert not made.manifest.real_data
    ceiling = api.distill(run=run, data="breast_cancer", student="kegnet_mlp", steps=20, name="ceiling", threads=1)
    assert ceiling.manifest.real_data
    scores = api.evaluate(run=run, artifact="students/ceiling", threads=1).manifest.metrics
    assert share_of_errors(scores, "breast_cancer") < 0.25


@pytest.mark.parametrize("method", ["auto", None, "structured_noise", "natural_noise", "dafl", "dfq"])
def test_structured_noise_is_refused_for_tables(method: str | None, run: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no structured or natural noise; train a generator with: .*noise:uniform"
    ) as caught:
        api.distill(run=run, method=method, student="kegnet_mlp", steps=1, name="refused", threads=1)
    assert caught.value.exit_code == 3
    assert not (run / "students" / "refused").exists()


def test_objectives_from_statistics_make_rows(run: Path) -> None:
    options = {"run": run, "objective": "all_layers", "images_per_class": 4, "steps": 5, "threads": 1}
    made = api.optimize_dataset(**options)
    assert made.manifest.metrics["num_images"] == 8
    assert made.manifest.metrics["loss"] == pytest.approx(made.manifest.metrics["loss"])
    for options_of_images in ({"init": "strokes"}, {"blur_every": 1}):
        with pytest.raises(ConfigError, match="rows of a table cannot be blurred"):
            api.optimize_dataset(**options, **options_of_images, name="refused")


@pytest.mark.slow
def test_kegnet_makes_generators_of_rows(run: Path) -> None:
    options: dict[str, Any] = {"method": "kegnet", "generators": 2, "lr": 1e-3, "threads": 1}
    untrained, made = (
        api.train_generator(run=run, steps=steps, name=name, **options).manifest.metrics
        for steps, name in ((1, "untrained"), (200, "kegnet"))
    )
    assert made["network"] == "dense"
    errors, errors_before = (1 - metrics["teacher_agrees_with_label"] for metrics in (made, untrained))
    assert errors < 0.5 * errors_before
    api.compress(run=run, preset="kegnet-2", threads=1)
    student = api.distill(
        run=run, data="generators/kegnet", student="compressed/kegnet-2", steps=150, name="from_rows", threads=1
    )
    assert "held_out_stability" not in student.manifest.metrics
    scores = api.evaluate(run=run, artifact="students/from_rows", threads=1).manifest.metrics
    assert share_of_errors(scores, "breast_cancer") < 0.5


@pytest.mark.parametrize("objective", ["structured_noise", "natural_noise"])
def test_the_objective_of_structured_noise_is_refused_for_tables(objective: str, run: Path) -> None:
    with pytest.raises(ConfigError, match="no structured or natural noise"):
        api.optimize_dataset(run=run, objective=objective, images_per_class=2, threads=1)


def test_auto_is_refused_for_tables_of_every_teacher() -> None:
    spec = ClassifierSpec("bdnf_mlp", (1, 1, 2), ("0", "1"), (0.5,), (0.3,))
    with pytest.raises(ConfigError, match="rows of a table"):
        pick(Classifier(spec))


def test_points_do_not_depend_on_what_was_drawn_before() -> None:
    np.random.seed(5)
    once = plane_points("pizza", train=False)
    np.random.seed(6)
    again = plane_points("pizza", train=False)
    assert np.array_equal(once[0], again[0])
