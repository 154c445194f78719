"""`kdx neighbours`: distances against SciPy, detection of copies, record of the real data that was opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import kdx, rounding
from helpers import classifier, num_hooks
from PIL import Image
from scipy.spatial.distance import cdist

from kdextract import api
from kdextract.data.load import load_data
from kdextract.errors import ConfigError, UsageError
from kdextract.models.pixels import fit_images, to_uint8
from kdextract.storage.artifacts import read_manifest
from kdextract.synthesis.nearest_real import in_features, in_pixels, nearest


def test_nearest_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(7, 5)), rng.normal(size=(40, 5))
    found = nearest(torch.from_numpy(points), torch.from_numpy(others), 3)
    distances = cdist(points, others)
    assert found.indices.tolist() == distances.argsort(1)[:, :3].tolist()
    assert found.distances.numpy() == pytest.approx(np.sort(distances, 1)[:, :3])


def test_points_are_pixels_or_inputs_of_the_last_layer() -> None:
    network = classifier().frozen()
    images = to_uint8(torch.rand((5, *network.input_shape), generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(in_pixels(images), images.flatten(1) / 255)
    features = in_features(network, images)
    last = [module for module in network.network.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        expected = network(images / 255)
        assert torch.allclose(last(features), expected, rtol=0, atol=rounding(expected))
    assert num_hooks(network) == 0


def with_copies(run: Path) -> None:
    """Replace the images of a transfer set by real training images."""
    folder = run / "transfer-sets" / "all_layers"
    labels = np.load(folder / "labels.npy")
    data = load_data("digits", "train", Path("data"))
    rows = [int((data.labels == label).nonzero()[0]) for label in labels]
    np.save(folder / "images.npy", fit_images(data.images[rows], (1, 32, 32)).numpy())
    manifest = json.loads((folder / "manifest.json").read_text())
    import hashlib

    content = (folder / "images.npy").read_bytes()
    for entry in manifest["outputs"]:
        if entry["file"] == "images.npy":
            entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("space", ["features", "pixels"])
def test_copies_are_detected(space: str, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    made = api.neighbours(run=run, artifact="all_layers", space=space, threads=1).manifest
    assert made.metrics["distance"] > 0
    assert made.metrics["distance_among_real"] > 0
    assert made.metrics["num_images"] == 40
    with_copies(run)
    copies = api.neighbours(run=run, artifact="all_layers", space=space, force=True, threads=1).manifest
    assert copies.metrics["distance"] < 0.01 * copies.metrics["distance_among_real"], "zero but for rounding"
    assert copies.metrics["nearer_than_real_ones"] == 1.0
    assert copies.metrics["neighbour_has_its_class"] == 1.0
    assert copies.real_data == ({"spec": "digits", "split": "train", "purpose": "neighbours"},)
    assert [entry.role for entry in copies.inputs] == ["teacher", "transfer-set", "data"]
    folder = run / "neighbours" / "all_layers"
    assert np.load(folder / "neighbours.npy").shape == (40, 11)
    width, height = Image.open(folder / "neighbours.png").size
    assert width > 600
    assert height > 400


def test_a_transfer_set_is_not_marked_as_made_from_real_data(run_copy: Path) -> None:
    api.neighbours(run=run_copy, images=7, threads=1)
    assert read_manifest(run_copy / "transfer-sets" / "all_layers").real_data == ()
    assert read_manifest(run_copy / "neighbours" / "all_layers").metrics["num_images"] == 7


def test_missing_inputs_are_refused(run_copy: Path, teacher_run: Path) -> None:
    with pytest.raises(UsageError, match=r"'all_layer' is no transfer set.*Did you mean 'all_layers'"):
        api.neighbours(run=run_copy, artifact="all_layer", threads=1)
    with pytest.raises(ConfigError, match="has no transfer set"):
        api.neighbours(run=teacher_run, threads=1)


def test_at_a_terminal(run_copy: Path, tmp_path: Path) -> None:
    done = kdx("neighbours", "all_layers", "--run", run_copy, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["space"] == "features"
    done = kdx("show", "--run", run_copy, cwd=tmp_path)
    assert "neighbours/all_layers" in done.stdout
    done = kdx("runs", run_copy.parent, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
