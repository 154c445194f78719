"""`hf:NAME`: directories of parquet files and images, the hub's cache, and no connection without --download."""

from __future__ import annotations

import importlib.metadata
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HANGS_AFTER, environment
from PIL import Image

from kdextract.data.load import check_spec, fingerprint, load_data
from kdextract.errors import ConfigError, DataError, UsageError

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")

NOWHERE = Path("no-such-directory")
NAMES = ["cat", "dog"]
TEXT = datasets.Value("string")
BYTES = {"bytes": datasets.Value("binary"), "path": TEXT}

_connections: list[str] = []
_watching: list[bool] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event.startswith("socket."):
        _connections.append(f"{event} {arguments[1:]}")


sys.addaudithook(_note)  # a hook cannot be removed; outside of the fixture it does nothing


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fail if a test opens any socket; give the hub's cache, which is empty."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    _connections.clear()
    _watching.append(True)
    try:
        yield cache
    finally:
        _watching.clear()
    assert _connections == []


def test_opened_sockets_are_recorded() -> None:
    import socket

    socket.socket().close()
    assert _connections
    _connections.clear()


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (6, 5))), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def save_parquet(path: Path, images: Any, labels: Any, features: Any = None, columns: Any = ("image", "label")) -> None:
    """Write encoded images and labels, with a column of text before them."""
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    contents = [png(image) if isinstance(image, np.ndarray) else image for image in images]
    cells = [content if content is None else {"bytes": content, "path": None} for content in contents]
    rows = {"note": ["x"] * len(cells), columns[0]: cells, columns[1]: list(labels)}
    usual = {"note": TEXT, columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=NAMES)}
    features = features or datasets.Features(usual)
    table = datasets.Dataset.from_dict(rows, features=features).with_format("arrow")[:]
    pyarrow.parquet.write_table(table, path)


def labels_of(count: int) -> list[int]:
    return [index % 2 for index in range(count)]


@pytest.fixture
def parquet_dir(tmp_path: Path) -> Path:
    """A directory of 12 training and 4 test images."""
    root = tmp_path / "pets"
    for seed, (split, count) in enumerate((("train", 12), ("test", 4))):
        save_parquet(root / "data" / f"{split}-00000-of-00001.parquet", pictures(count, seed=seed), labels_of(count))
    return root


def test_parquet_directory_is_read(parquet_dir: Path) -> None:
    for seed, (split, count) in enumerate((("train", 12), ("test", 4))):
        part = load_data(f"hf:{parquet_dir}", split, NOWHERE)
        assert np.array_equal(part.images[:, 0].numpy(), pictures(count, seed=seed))
        assert part.labels.tolist() == labels_of(count)
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.class_names == ("cat", "dog")


def test_a_directory_may_be_named_from_here(parquet_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parquet_dir.parent)
    parts = [load_data(spec, "test", NOWHERE) for spec in ("hf:pets", "hf:./pets")]
    assert torch.equal(parts[0].images, parts[1].images)


def test_image_folder_equals_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for seed, name in enumerate(NAMES):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for index, image in enumerate(pictures(3, 6, 5, 3, seed=seed)):
                Image.fromarray(image).save(place / f"{index}.png")
    for split in ("train", "test"):
        ours, theirs = (load_data(f"{kind}:{tmp_path / 'photos'}", split, NOWHERE) for kind in ("hf", "folder"))
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.class_names == theirs.class_names


def test_validation_split_is_used_if_there_is_no_test_split(parquet_dir: Path) -> None:
    (parquet_dir / "data" / "test-00000-of-00001.parquet").rename(parquet_dir / "data" / "validation.parquet")
    (parquet_dir / "data" / "train-00000-of-00001.parquet").rename(parquet_dir / "data" / "train.parquet")
    assert len(load_data(f"hf:{parquet_dir}", "train", NOWHERE).images) == 12
    assert len(load_data(f"hf:{parquet_dir}", "test", NOWHERE).images) == 4


def test_a_single_split_is_split(tmp_path: Path) -> None:
    images = pictures(20)
    save_parquet(tmp_path / "pets" / "all.parquet", images, labels_of(20))
    train, test = (load_data(f"hf:{tmp_path / 'pets'}", split, NOWHERE) for split in ("train", "test"))
    assert np.array_equal(test.images[:, 0].numpy(), images[[8, 9, 18, 19]])
    assert (len(train.images), test.labels.tolist()) == (16, [0, 1, 0, 1])


def test_columns_of_usual_names_need_no_types(tmp_path: Path) -> None:
    kinds = {"note": TEXT, "img": BYTES, "labels": datasets.Value("int64")}
    for split, labels in (("train", [0, 1, 0]), ("test", [0, 2])):
        save_parquet(tmp_path / "pets" / f"{split}.parquet", pictures(len(labels)), labels, datasets.Features(kinds),
                     ("img", "labels"))  # fmt: skip
    for split, labels in (("train", [0, 1, 0]), ("test", [0, 2])):
        part = load_data(f"hf:{tmp_path / 'pets'}", split, NOWHERE)
        assert part.labels.tolist() == labels
        assert part.class_names == ("0", "1", "2"), "a class that only the other split has is lost"


def test_grey_and_coloured_images_get_the_same_channels(tmp_path: Path) -> None:
    images = [pictures(1, 6, 5)[0], pictures(1, 9, 9, 3)[0]]
    save_parquet(tmp_path / "pets" / "train.parquet", images, [0, 1])
    save_parquet(tmp_path / "pets" / "test.parquet", images[::-1], [1, 0])
    assert load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE).images.shape == (2, 3, 6, 5)
    assert load_data(f"hf:{tmp_path / 'pets'}", "test", NOWHERE).images.shape == (2, 3, 9, 9)


CONFIGS = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: a/train.parquet
  - split: test
    path: a/kept.parquet
- config_name: large
  data_files:
  - split: train
    path: b/*.parquet
---
# Pets
"""


def test_a_configuration_is_chosen_by_name(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    save_parquet(root / "a" / "train.parquet", pictures(4), labels_of(4))
    save_parquet(root / "a" / "kept.parquet", pictures(2, seed=1), labels_of(2))
    save_parquet(root / "b" / "all.parquet", pictures(10, seed=2), labels_of(10))
    (root / "README.md").write_text(CONFIGS)
    assert np.array_equal(load_data(f"hf:{root}@small", "test", NOWHERE).images[:, 0].numpy(), pictures(2, seed=1))
    assert len(load_data(f"hf:{root}@large", "train", NOWHERE).images) == 8
    for spec in (f"hf:{root}", f"hf:{root}@medium"):
        with pytest.raises(DataError, match=r"small.*large"):
            load_data(spec, "train", NOWHERE)
    prints = {fingerprint(spec, "train", NOWHERE) for spec in (f"hf:{root}@small", f"hf:{root}@large")}
    assert len(prints) == 2


# ---- the hub ---------------------------------------------------------------------------------------------------


def fill_cache(cache: Path, parquet_dir: Path, name: str = "me--pets") -> None:
    """Put a directory into the cache of the hub as the library does: files are links to their content."""
    store = cache / f"datasets--{name}"
    for path in sorted(parquet_dir.rglob("*.parquet")):
        link = store / "snapshots" / ("a" * 40) / path.relative_to(parquet_dir)
        link.parent.mkdir(parents=True, exist_ok=True)
        (store / "blobs").mkdir(exist_ok=True)
        (store / "blobs" / path.name.replace(".", "")).write_bytes(path.read_bytes())
        link.symlink_to(os.path.relpath(store / "blobs" / path.name.replace(".", ""), link.parent))
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("a" * 40)


def test_cached_data_needs_no_connection(parquet_dir: Path, offline: Path) -> None:
    fill_cache(offline, parquet_dir)
    ours, theirs = (load_data(spec, "test", NOWHERE) for spec in ("hf:me/pets", f"hf:{parquet_dir}"))
    assert torch.equal(ours.images, theirs.images)
    assert ours.class_names == theirs.class_names
    prints = {fingerprint(spec, "train", NOWHERE) for spec in ("hf:me/pets", f"hf:{parquet_dir}")}
    assert len(prints) == 1, "a fingerprint does not depend on the place"


@pytest.mark.parametrize("spec", ["hf:ylecun/mnist", "hf:mnist", "hf:ylecun/mnist@mnist"])
def test_data_outside_of_the_cache_is_not_fetched(spec: str, offline: Path) -> None:
    for open_it in (load_data, fingerprint):
        with pytest.raises(DataError, match=f"^{spec} is not on this machine; download it with --download$"):
            open_it(spec, "train", NOWHERE)
    assert not offline.exists()


def test_no_module_opens_a_connection_when_it_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event.startswith('socket.'): raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(refuse)\n"
        "sys.argv = ['kdx', 'train', '--data', 'hf:ylecun/mnist', '--run', 'run']\n"
        "from kdextract.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({"HF_HOME": str(tmp_path / "hf")}), cwd=tmp_path, text=True,
        capture_output=True, check=False, timeout=HANGS_AFTER,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "kdx: error: hf:ylecun/mnist is not on this machine" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fetched(parquet_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the download by a directory; the list contains what was requested."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(parquet_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_files_are_fetched_only_with_download(fetched: list[dict[str, Any]]) -> None:
    load_data("hf:me/pets", "train", NOWHERE, download=True)
    load_data("hf:me/pets", "train", NOWHERE)
    fingerprint("hf:me/pets", "train", NOWHERE)
    assert [(entry["name"], entry["repo_type"], entry["local_files_only"]) for entry in fetched] == [
        ("me/pets", "dataset", False),
        ("me/pets", "dataset", True),
        ("me/pets", "dataset", True),
    ]
    from fnmatch import fnmatch

    def matches(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in fetched[0]["allow_patterns"])

    assert all(map(matches, ("README.md", "mnist/train-00000-of-00001.parquet", "a/b.PNG", "train/metadata.csv")))
    assert not any(map(matches, ("pets.py", "data.zip", "model.pkl", "x.arrow")))


def test_download_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("the line is dead\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(DataError, match=r"^hf:me/pets cannot be downloaded: the line is dead$"):
        load_data("hf:me/pets", "train", NOWHERE, download=True)


@pytest.mark.parametrize("version", [None, "3.6.0"])
def test_without_the_library_the_extra_is_named(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    for open_it in (load_data, fingerprint):
        with pytest.raises(ConfigError, match=r"pip install 'kdextract\[hf\]'"):
            open_it("hf:me/pets", "train", NOWHERE)


def test_invalid_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"hf:NAME\[@CONFIG\]"):
        check_spec("hf:")
    for spec in ("hf:../pets", "hf:./gone", "hf:/gone", "hf:a/b/c", "hf:https://huggingface.co/x", "hf:@small"):
        with pytest.raises(DataError, match="neither a directory nor a name of the hub"):
            load_data(spec, "train", NOWHERE)


# ---- untrusted files -------------------------------------------------------------------------------------------


def write_card(root: Path, place: str) -> None:
    (root / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {place}\n---\n")


@pytest.mark.parametrize(
    "place",
    ["https://example.com/x.parquet", "hf://datasets/a/b/x.parquet", "zip://x.parquet::https://example.com/x.zip",
     "/etc/*", "../other/*.parquet", "data/../../x.parquet", "~/x.parquet"],
)  # fmt: skip
def test_a_card_cannot_name_files_outside_of_the_directory(place: str, parquet_dir: Path) -> None:
    write_card(parquet_dir, place)
    with pytest.raises(DataError, match="names files outside of its directory"):
        load_data(f"hf:{parquet_dir}", "train", NOWHERE)


def test_code_of_a_data_set_is_not_run(parquet_dir: Path) -> None:
    (parquet_dir / "pets.py").write_text(f"open({str(parquet_dir / 'sprung')!r}, 'w')\n")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        load_data(f"hf:{parquet_dir}", "train", NOWHERE)
    assert not (parquet_dir / "sprung").exists()


def test_only_readers_of_parquet_and_images_are_used(tmp_path: Path) -> None:
    save_parquet(tmp_path / "pets" / "all.parquet", pictures(10), labels_of(10))
    for index in range(5):
        (tmp_path / "pets" / f"rows{index}.csv").write_text("image,label\n/etc/passwd,0\n")
    with pytest.raises(DataError, match="is a data set of kind csv"):
        load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE)


def test_images_by_path_are_not_followed_out_of_the_directory(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(pictures(1)[0]))
    root = tmp_path / "pets"
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    rows = {"image": [{"bytes": None, "path": str(secret)}] * 4, "label": labels_of(4)}
    root.mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(root / "train.parquet")
    with pytest.raises(DataError, match=r"image 0 of train of .* is missing"):
        load_data(f"hf:{root}", "train", NOWHERE)

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(png(pictures(1)[0]))
    for place in (str(secret), "../secret.png"):
        (photos / "metadata.csv").write_text(f"file_name,label\n1.png,0\n{place},1\n")
        with pytest.raises(DataError):
            load_data(f"hf:{photos}", "train", NOWHERE)


def test_a_huge_image_in_a_table_is_refused(tmp_path: Path) -> None:
    huge = io.BytesIO()
    Image.new("1", (8193, 8193)).save(huge, "PNG")
    save_parquet(tmp_path / "pets" / "train.parquet", [pictures(1)[0], huge.getvalue()], [0, 1])
    with pytest.raises(DataError, match=r"image 1 of train of .* has 8193x8193 pixels, the limit is"):
        load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE)


@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a" + bytes(50)], ids=str)
def test_a_bad_image_in_a_table_is_refused(content: bytes, tmp_path: Path) -> None:
    save_parquet(tmp_path / "pets" / "train.parquet", [pictures(1)[0], content], [0, 1])
    with pytest.raises(DataError, match=r"image 1 of train of .* is not an image"):
        load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE)


@pytest.mark.parametrize(("labels", "says"), [([0, None], "without a label"), ([0, -1], "labels from -1 to 0")])
def test_images_without_a_label_are_refused(labels: list[Any], says: str, tmp_path: Path) -> None:
    save_parquet(tmp_path / "pets" / "train.parquet", pictures(2), labels)
    with pytest.raises(DataError, match=says):
        load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE)


def test_an_image_that_is_null_is_refused(tmp_path: Path) -> None:
    save_parquet(tmp_path / "pets" / "train.parquet", [pictures(1)[0], None], [0, 1])
    with pytest.raises(DataError, match=r"image 1 of train of .* is missing"):
        load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE)


@pytest.mark.parametrize(("column", "missing"), [(0, "images"), (1, "class labels")])
def test_missing_columns_are_named(column: int, missing: str, tmp_path: Path) -> None:
    columns = ["image", "label"]
    columns[column] = "other"
    number = datasets.Value("int64")
    kinds = {"note": TEXT, "image": datasets.Image(), "label": number, "other": number if column else BYTES}
    features = datasets.Features({name: kinds[name] for name in ("note", *columns)})
    save_parquet(tmp_path / "pets" / "a.parquet", pictures(2), [0, 1], features, columns)
    with pytest.raises(DataError, match=f"has no column of {missing}; its columns are note, {', '.join(columns)}"):
        load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE)


def test_splits_of_other_names_are_named(tmp_path: Path) -> None:
    for name in ("test", "validation"):
        save_parquet(tmp_path / "pets" / f"{name}.parquet", pictures(2), [0, 1])
    with pytest.raises(DataError, match="has no split train; its splits are "):
        load_data(f"hf:{tmp_path / 'pets'}", "train", NOWHERE)


def test_an_incomplete_data_set_is_refused(parquet_dir: Path) -> None:
    (parquet_dir / "README.md").write_text(
        "---\ndataset_info:\n  splits:\n"
        "  - name: train\n    num_examples: 24\n  - name: test\n    num_examples: 4\n---\n"
    )
    assert len(load_data(f"hf:{parquet_dir}", "test", NOWHERE).images) == 4
    with pytest.raises(DataError, match=r"has 12 images in train instead of 24; .*--download"):
        load_data(f"hf:{parquet_dir}", "train", NOWHERE)


def test_damaged_parquet_is_refused_wherever_it_is_cut(parquet_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = parquet_dir / "data" / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    for length in (0, 3, 4, 100, len(content) // 2, len(content) - 4, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="cannot be read") as caught:
            load_data(f"hf:{parquet_dir}", "train", NOWHERE)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_directory_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    for open_it in (load_data, fingerprint):
        with pytest.raises(DataError, match="has no parquet files and no images"):
            open_it(f"hf:{tmp_path}", "train", NOWHERE)


def test_fingerprint_is_that_of_the_files_in_every_process(parquet_dir: Path) -> None:
    spec = f"hf:{parquet_dir}"
    code = (
        "from pathlib import Path; from kdextract.data.load import fingerprint;"
        f"print(fingerprint({spec!r}, 'train', Path()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({"PYTHONHASHSEED": "7"}), text=True, capture_output=True,
        check=True, timeout=HANGS_AFTER,
    )  # fmt: skip
    before = fingerprint(spec, "train", NOWHERE)
    assert done.stdout.strip() == before
    path = parquet_dir / "data" / "train-00000-of-00001.parquet"
    os.utime(path, (0, 0))
    assert fingerprint(spec, "train", NOWHERE) == before
    path.write_bytes(path.read_bytes()[:-1])
    assert fingerprint(spec, "train", NOWHERE) != before
