"""Reading of real data: every format, with files that the tests make, and damaged files."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from helpers import IDX_NAMES, write_idx
from PIL import Image

from kdextract.data import image_files
from kdextract.data import npz as archives
from kdextract.data.load import check_spec, data_names, fingerprint, is_real_data, load_data, mirrors_make_sense
from kdextract.data.real_data import RealData
from kdextract.errors import DataError, UsageError

NOWHERE = Path("no-such-directory")


def random_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


# ---- digits ----------------------------------------------------------------------------------------------------


def test_digits_are_split_disjointly_and_completely() -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    train, test = (load_data("digits", split, NOWHERE) for split in ("train", "test"))
    kept = sorted(
        (int(label), image.numpy().tobytes())
        for part in (train, test)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    scaled = np.rint(original.images * (255 / 16)).astype(np.uint8)
    assert kept == sorted((int(label), image.tobytes()) for image, label in zip(scaled, original.target, strict=True))
    assert train.images.shape[1:] == (1, 8, 8)
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert int(train.images.max()) == 255
    assert train.class_names == test.class_names == tuple("0123456789")


def test_digits_are_split_in_the_same_way_in_every_class() -> None:
    train, test = (load_data("digits", split, NOWHERE) for split in ("train", "test"))
    in_train, in_test = train.labels.bincount(), test.labels.bincount()
    assert ((in_train + in_test) // 5 == in_test).all()


def test_digits_are_the_same_every_time() -> None:
    once, again = (load_data("digits", "test", NOWHERE) for _ in range(2))
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.labels, again.labels)


# ---- torchvision's formats -------------------------------------------------------------------------------------


@pytest.fixture
def idx_dir(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A data directory with three sets of MNIST's format: 12 training and 5 test images."""
    images = {"train": random_images(12, 28, 28, seed=1), "test": random_images(5, 28, 28, seed=2)}
    labels = {"train": np.arange(12) % 10, "test": np.array([9, 8, 0, 0, 3])}
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        write_idx(tmp_path / name / "raw", images, labels)
    return tmp_path, images, labels


@pytest.mark.parametrize(
    ("spec", "first_class", "flip"),
    [("mnist", "0", False), ("fashion_mnist", "T-shirt/top", True), ("kmnist", "o", False)],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_idx_files_are_read(spec: str, first_class: str, flip: bool, split: Any, idx_dir: Any) -> None:
    directory, images, labels = idx_dir
    part = load_data(spec, split, directory)
    assert np.array_equal(part.images.numpy(), images[split][:, None])
    assert part.labels.tolist() == labels[split].tolist()
    assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
    assert len(part.class_names) == 10
    assert part.class_names[0] == first_class
    assert mirrors_make_sense(spec) == flip


def test_mnist_conv_is_mnist_at_32_pixels(idx_dir: Any) -> None:
    directory, images, labels = idx_dir
    part = load_data("mnist_conv", "train", directory)
    assert part.images.shape == (12, 1, 32, 32)
    assert part.labels.tolist() == labels["train"].tolist()
    expected = Image.fromarray(images["train"][0]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(part.images[0, 0].numpy().astype(int) - np.array(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("length", [0, 3, 10, 16, 1000])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_cut_idx_file_is_refused(kind: str, length: int, idx_dir: Any) -> None:
    path = idx_dir[0] / "MNIST" / "raw" / f"train-{kind}-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[: min(length, len(content) - 1)])
    with pytest.raises(DataError, match="mnist"):
        load_data("mnist", "train", idx_dir[0])


@pytest.mark.usefixtures("known_checksums")
def test_svhn_is_read_and_label_10_is_digit_0(tmp_path: Path) -> None:
    images = random_images(6, 3, 32, 32)
    labels = np.array([[10], [1], [2], [9], [10], [5]], dtype=np.uint8)
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})
    part = load_data("svhn", "train", tmp_path)
    assert np.array_equal(part.images.numpy(), images)
    assert part.labels.tolist() == [0, 1, 2, 9, 0, 5]
    assert part.class_names == tuple("0123456789")
    assert not mirrors_make_sense("svhn")


def write_cifar10(directory: Path, images: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    folder = directory / "cifar-10-batches-py"
    folder.mkdir()
    for name, rows in [(f"data_batch_{i}", slice(2 * i - 2, 2 * i)) for i in range(1, 6)]:
        batch = {"data": images["train"][rows].reshape(2, 3072), "labels": labels["train"][rows]}
        (folder / name).write_bytes(pickle.dumps(batch))
    batch = {"data": images["test"].reshape(len(images["test"]), 3072), "labels": labels["test"]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind {i}" for i in range(10)]}))


@pytest.mark.usefixtures("known_checksums")
def test_cifar10_is_read(tmp_path: Path) -> None:
    images = {"train": random_images(10, 3, 32, 32, seed=3), "test": random_images(3, 3, 32, 32, seed=4)}
    labels = {"train": [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], "test": [0, 9, 7]}
    write_cifar10(tmp_path, images, labels)
    for split in ("train", "test"):
        part = load_data("cifar10", split, tmp_path)
        assert np.array_equal(part.images.numpy(), images[split])
        assert part.images.is_contiguous()
        assert part.labels.tolist() == labels[split]
        assert part.class_names == tuple(f"kind {i}" for i in range(10))
    assert mirrors_make_sense("cifar10")


@pytest.mark.usefixtures("known_checksums")
def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    images = random_images(4, 3, 32, 32)
    entry = {"data": images.reshape(4, 3072), "fine_labels": [99, 0, 50, 7], "coarse_labels": [1, 2, 3, 4]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]}))
    part = load_data("cifar100", "test", tmp_path)
    assert np.array_equal(part.images.numpy(), images)
    assert part.labels.tolist() == [99, 0, 50, 7]
    assert part.class_names[-1] == "fine 99"


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path(self._path),)


def test_cifar_files_that_are_not_the_published_ones_are_never_unpickled(tmp_path: Path) -> None:
    write_cifar10(tmp_path, {"train": random_images(10, 3, 32, 32), "test": random_images(1, 3, 32, 32)},
                  {"train": [0] * 10, "test": [0]})  # fmt: skip
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(trap)
    with pytest.raises(DataError, match="cifar10"):
        load_data("cifar10", "train", tmp_path)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists(), "the trap does not work"


@pytest.mark.parametrize("spec", ["mnist", "mnist_conv", "fashion_mnist", "kmnist", "svhn", "cifar10", "cifar100"])
def test_missing_data_set_names_the_options_that_help(spec: str, tmp_path: Path) -> None:
    for open_it in (lambda: load_data(spec, "train", tmp_path), lambda: fingerprint(spec, "train", tmp_path)):
        with pytest.raises(DataError, match=r"--data-dir.*--download") as caught:
            open_it()
        assert str(tmp_path) in str(caught.value)
        assert str(caught.value).startswith(spec)


# ---- folders of images -----------------------------------------------------------------------------------------


def save_images(folder: Path, images: np.ndarray, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02}{suffix}")


def test_folder_with_a_split_keeps_it(tmp_path: Path) -> None:
    parts = {
        (split, name): random_images(count, 6, 7, 3, seed=seed)
        for seed, (split, name, count) in enumerate(
            [("train", "cat", 4), ("train", "dog", 2), ("test", "cat", 1), ("test", "dog", 3)]
        )
    }
    for (split, name), images in parts.items():
        save_images(tmp_path / split / name, images)
    for split, labels in (("train", [0, 0, 0, 0, 1, 1]), ("test", [0, 1, 1, 1])):
        part = load_data(f"folder:{tmp_path}", split, NOWHERE)
        expected = np.concatenate([parts[split, "cat"], parts[split, "dog"]]).transpose(0, 3, 1, 2)
        assert np.array_equal(part.images.numpy(), expected)
        assert part.labels.tolist() == labels
        assert part.class_names == ("cat", "dog")


def test_folder_without_a_split_is_split_in_every_class(tmp_path: Path) -> None:
    save_images(tmp_path / "b", random_images(10, 5, 5, seed=1))
    save_images(tmp_path / "a", random_images(7, 5, 5, seed=2))
    train, test = (load_data(f"folder:{tmp_path}", split, NOWHERE) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b")
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([6, 8], [1, 2])
    assert train.images.shape == (14, 1, 5, 5)
    seen = [image.numpy().tobytes() for part in (train, test) for image in part.images]
    assert len(set(seen)) == 17


def test_folder_ignores_what_is_no_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_images(tmp_path / name, random_images(3, 4, 4, seed=ord(name)))
        (tmp_path / name / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("no class")
    part = load_data(f"folder:{tmp_path}", "train", NOWHERE)
    assert part.class_names == ("a", "b")
    assert len(part.images) == 6


def test_folder_of_mixed_sizes_takes_the_first_size(tmp_path: Path) -> None:
    save_images(tmp_path / "a", random_images(2, 8, 6, 3, seed=1))
    save_images(tmp_path / "b", random_images(2, 20, 30, 3, seed=2))
    part = load_data(f"folder:{tmp_path}", "train", NOWHERE)
    assert part.images.shape == (4, 3, 8, 6)
    first = np.array(Image.open(tmp_path / "a" / "00.png")).transpose(2, 0, 1)
    assert np.array_equal(part.images[0].numpy(), first)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 12)], ids=["equal sizes", "different sizes"])
@pytest.mark.parametrize("grey_first", [True, False])
def test_folder_of_grey_and_coloured_images_keeps_the_colours(
    grey_first: bool, sizes: tuple[int, int], tmp_path: Path
) -> None:
    grey, coloured = random_images(2, sizes[0], sizes[0], seed=1), random_images(2, sizes[1], sizes[1], 3, seed=2)
    save_images(tmp_path / ("a" if grey_first else "b"), grey)
    save_images(tmp_path / ("b" if grey_first else "a"), coloured)
    part = load_data(f"folder:{tmp_path}", "train", NOWHERE)
    assert part.labels.tolist() == [0, 0, 1, 1]
    assert part.images.shape[:2] == (4, 3)
    rows = part.images[:2] if grey_first else part.images[2:]
    assert torch.equal(rows[:, 0], rows[:, 1]), "a grey image became coloured"
    assert not torch.equal(part.images[:, 0], part.images[:, 1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_folder_takes_every_common_kind_of_image(mode: str, tmp_path: Path) -> None:
    """An image that is white above and black below keeps these colours."""
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:4] = 255
    picture = (
        Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )
    suffix = ".jpg" if mode == "CMYK" else ".png"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / f"1{suffix}")
    part = load_data(f"folder:{tmp_path}", "train", NOWHERE)
    expected = np.broadcast_to(pixels, part.images.shape)
    assert np.abs(part.images.numpy().astype(int) - expected.astype(int)).max() <= 2


def test_sixteen_bit_images_keep_their_greys(tmp_path: Path) -> None:
    ramp = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040).astype(np.uint16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(ramp).save(tmp_path / name / "1.png")
    part = load_data(f"folder:{tmp_path}", "train", NOWHERE)
    assert np.abs(part.images[0, 0].numpy().astype(float) - ramp / 257).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_cut_image_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    save_images(tmp_path / "a", random_images(1, 12, 12, 3, seed=1), suffix)
    save_images(tmp_path / "b", random_images(1, 12, 12, 3, seed=2), suffix)
    damaged = tmp_path / "b" / f"00{suffix}"
    content = damaged.read_bytes()
    for length in sorted({0, 1, 10, 30, *range(0, len(content) * 3 // 4, 23)}):
        damaged.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"b/00{suffix}"):
            load_data(f"folder:{tmp_path}", "train", NOWHERE)


def test_file_that_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    save_images(tmp_path / "a", random_images(2, 4, 4))
    save_images(tmp_path / "b", random_images(2, 4, 4))
    (tmp_path / "b" / "page.png").write_text("<html>")
    with pytest.raises(DataError, match=r"b/page\.png is not an image"):
        load_data(f"folder:{tmp_path}", "train", NOWHERE)


def test_huge_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path / "a", random_images(1, 10, 10))
    save_images(tmp_path / "b", random_images(1, 10, 11))
    monkeypatch.setattr(image_files, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"b/00\.png has 11x10 pixels, the limit is 100"):
        load_data(f"folder:{tmp_path}", "train", NOWHERE)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], pixels: bytes = b"", bits: int = 8) -> bytes:
    """Return a PNG file of three channels with these chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def bmp(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + header + data


def webp(width: int, height: int) -> bytes:
    """Return an animated WebP file whose canvas claims to be of this size."""
    content = bytearray(encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")]))
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG file whose header claims to be of this size."""
    content = bytearray(encoded("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_images(1, 16, 16, 3)[0]).save(buffer, kind, **options)
    return buffer.getvalue()


def fits() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2",
             "NAXIS1  =                    4", "NAXIS2  =                    4", "END"]  # fmt: skip
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


ZEROS = zlib.compress(bytes(50_000_000), 9)
BAD_IMAGES: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\x89",
    "only zeros": bytes(1000),
    "text": b"this is no image\n" * 50,
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF",
    "zip": b"PK\x05\x06" + bytes(18),
    "a gif": encoded("GIF"),
    "a tiff": encoded("TIFF"),
    "a ppm": encoded("PPM"),
    "an icon": encoded("ICO"),
    "a tga": encoded("TGA"),
    "a jpeg 2000 signature": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
    "fits": fits(),
    "png signature alone": png(4, 4)[:8],
    "png without pixels": png(16, 16),
    "png of half its pixels": encoded("PNG")[:400],
    "png without width": png(0, 4),
    "png of 16 million pixels and no data": png(4096, 4096),
    "png of 3 bits": png(4, 4, bits=3, pixels=bytes(52)),
    "png with a broken checksum": png(4, 4, pixels=bytes(52)).replace(b"IHDR", b"IHDS"),
    "png of 10^12 pixels": png(10**6, 10**6),
    "png of 2^62 pixels": png(2**31 - 1, 2**31 - 1),
    "png just above the limit": png(8193, 8193),
    "png that PIL would warn of": png(10_000, 10_000),
    "png with a profile that unpacks to 50 MB": png(4, 4, (b"iCCP", b"x\0\0" + ZEROS), pixels=bytes(52)),
    "png with a text that unpacks to 50 MB": png(4, 4, (b"zTXt", b"x\0\0" + ZEROS), pixels=bytes(52)),
    "png whose length field lies": png(4, 4)[:33] + b"\xff\xff\xff\xffIDAT",
    "jpeg of 4 billion pixels": jpeg(65_500, 65_500),
    "jpeg header alone": encoded("JPEG")[:200],
    "bmp of 10^12 pixels": bmp(10**6, 10**6),
    "bmp without pixels": bmp(16, 16),
    "webp of 4 billion pixels": webp(65_500, 65_500),
    "webp of 400 million pixels": webp(20_000, 20_000),
    "webp header alone": encoded("WEBP")[:30],
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image_is_refused_by_name_in_one_line(case: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_images(tmp_path / name, random_images(1, 4, 4, 3))
    (tmp_path / "b" / "bad.png").write_bytes(BAD_IMAGES[case])
    with pytest.raises(DataError, match=r"b/bad\.png") as caught:
        load_data(f"folder:{tmp_path}", "train", NOWHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "case",
    ["png just above the limit", "png that PIL would warn of", "webp of 4 billion pixels", "bmp of 10^12 pixels"],
)
@pytest.mark.filterwarnings("error")
def test_pixels_are_counted_before_any_is_decoded(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(DataError, match=f"the limit is {image_files.MAX_IMAGE_PIXELS}"):
        image_files.read_images([("huge.png", BAD_IMAGES[case])])


def test_few_huge_images_do_not_make_many_small_ones_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path / "a", random_images(1, 100, 100))
    save_images(tmp_path / "b", random_images(9, 2, 2))
    monkeypatch.setattr(image_files, "MAX_SET_BYTES", 89_999)
    with pytest.raises(DataError, match=r"9 images .*a/00\.png of 100x100 pixels, take 90000 bytes"):
        load_data(f"folder:{tmp_path}", "train", NOWHERE)


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_images(tmp_path / name, random_images(1, 4, 4))
    os.mkfifo(tmp_path / "b" / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    specs = [f"folder:{tmp_path}", f"npz:{tmp_path / 'pipe'}", f"npy:{tmp_path / 'pipe'},{tmp_path / 'pipe'}"]
    for spec in specs:
        for open_it in (load_data, fingerprint):
            with pytest.raises(DataError, match="pipe"):
                open_it(spec, "train", NOWHERE)


def test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a directory"):
        load_data(f"folder:{tmp_path / 'nothing'}", "train", NOWHERE)
    save_images(tmp_path / "only", random_images(3, 4, 4))
    with pytest.raises(DataError, match="two or more"):
        load_data(f"folder:{tmp_path}", "train", NOWHERE)


def test_folder_too_small_to_split_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_images(tmp_path / name, random_images(4, 4, 4))
    assert len(load_data(f"folder:{tmp_path}", "train", NOWHERE).images) == 8
    with pytest.raises(DataError, match="test"):
        load_data(f"folder:{tmp_path}", "test", NOWHERE)


def test_labels_mean_the_same_in_both_splits_of_a_folder(tmp_path: Path) -> None:
    """A class without test images does not change the labels of the classes after it."""
    for split, names in (("train", "abc"), ("test", "ac")):
        for name in names:
            save_images(tmp_path / split / name, random_images(2, 4, 4))
    train = load_data(f"folder:{tmp_path}", "train", NOWHERE)
    test = load_data(f"folder:{tmp_path}", "test", NOWHERE)
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert test.labels.tolist() == [0, 0, 2, 2]


# ---- npz files -------------------------------------------------------------------------------------------------


def four_arrays(**changes: Any) -> dict[str, Any]:
    arrays = {
        "x_train": random_images(8, 6, 5),
        "y_train": np.arange(8) % 3,
        "x_test": random_images(3, 6, 5),
        "y_test": np.array([0, 1, 3]),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def write_npz(path: Path, arrays: dict[str, Any]) -> str:
    np.savez_compressed(path, **arrays)
    return f"npz:{path}"


def test_npz_of_four_arrays(tmp_path: Path) -> None:
    arrays = four_arrays()
    spec = write_npz(tmp_path / "set.npz", arrays)
    for split in ("train", "test"):
        part = load_data(spec, split, NOWHERE)
        assert np.array_equal(part.images.numpy(), arrays[f"x_{split}"][:, None])
        assert part.labels.tolist() == arrays[f"y_{split}"].tolist()
        assert part.labels.dtype == torch.int64
        assert part.class_names == ("0", "1", "2", "3"), "a class that only the other split has is lost"


def test_npz_of_images_and_labels_is_split(tmp_path: Path) -> None:
    images, labels = random_images(22, 4, 4, 3), np.repeat([0, 1], 11)
    names = np.array(["left", "right"])
    spec = write_npz(tmp_path / "set.npz", {"images": images, "labels": labels, "class_names": names})
    train, test = (load_data(spec, split, NOWHERE) for split in ("train", "test"))
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([9, 9], [2, 2])
    assert train.class_names == test.class_names == ("left", "right")
    seen = {image.numpy().tobytes() for part in (train, test) for image in part.images}
    assert seen == {image.transpose(2, 0, 1).tobytes() for image in images}


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 6, 5), None),
        ((8, 1, 6, 5), (0, 1, 2, 3)),
        ((8, 3, 6, 5), (0, 1, 2, 3)),
        ((8, 6, 5, 1), (0, 3, 1, 2)),
        ((8, 6, 5, 3), (0, 3, 1, 2)),
    ],
    ids=str,
)
def test_npz_takes_channels_first_last_and_none(
    shape: tuple[int, ...], axes: tuple[int, ...] | None, tmp_path: Path
) -> None:
    images = random_images(*shape)
    spec = write_npz(tmp_path / "set.npz", four_arrays(x_train=images))
    part = load_data(spec, "train", NOWHERE)
    assert np.array_equal(part.images.numpy(), images[:, None] if axes is None else images.transpose(axes))
    assert part.images.is_contiguous()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_takes_floats(dtype: type, tmp_path: Path) -> None:
    images = random_images(8, 6, 5)
    spec = write_npz(tmp_path / "set.npz", four_arrays(x_train=(images / 255).astype(dtype)))
    assert np.array_equal(load_data(spec, "train", NOWHERE).images[:, 0].numpy(), images)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_npz_takes_labels_of_any_integer_type(dtype: type, tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "set.npz", four_arrays(y_train=np.array([0, 1, 2, 0, 1, 2, 0, 1], dtype=dtype)))
    assert load_data(spec, "train", NOWHERE).labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def set_one(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = value
    return changed


UNIT = random_images(8, 6, 5) / 255
MALFORMED: dict[str, dict[str, Any]] = {
    "no labels": four_arrays(y_train=None),
    "no images": four_arrays(x_train=None),
    "other names": {"data": random_images(8, 6, 5), "target": np.zeros(8, dtype=int)},
    "objects": four_arrays(x_train=np.array([{"a": 1}] * 8, dtype=object)),
    "object labels": four_arrays(y_train=np.array([0] * 8, dtype=object)),
    "text labels": four_arrays(y_train=np.array(["a"] * 8)),
    "float labels": four_arrays(y_train=np.zeros(8)),
    "negative label": four_arrays(y_train=set_one(np.zeros(8, dtype=int), -1)),
    "negative label of the other split": four_arrays(y_test=np.array([0, -1, 1])),
    "too few labels": four_arrays(y_train=np.zeros(7, dtype=int)),
    "two labels per image": four_arrays(y_train=np.zeros((8, 2), dtype=int)),
    "one label for all": four_arrays(y_train=np.int64(3)),
    "label without end": four_arrays(y_train=set_one(np.zeros(8, dtype=int), 10**15)),
    "no training image": four_arrays(x_train=random_images(0, 6, 5), y_train=np.zeros(0, dtype=int)),
    "one image, no axis for it": four_arrays(x_train=random_images(6, 5)),
    "a single number": four_arrays(x_train=np.uint8(3)),
    "five axes": four_arrays(x_train=random_images(8, 1, 6, 5, 1)),
    "two channels": four_arrays(x_train=random_images(8, 6, 5, 2)),
    "no pixel": four_arrays(x_train=random_images(8, 0, 5)),
    "float above 1": four_arrays(x_train=set_one(UNIT, 1.01)),
    "float below 0": four_arrays(x_train=set_one(UNIT, -0.01)),
    "float that is no number": four_arrays(x_train=set_one(UNIT, float("nan"))),
    "signed pixels": four_arrays(x_train=random_images(8, 6, 5).astype(np.int16)),
    "complex pixels": four_arrays(x_train=UNIT.astype(complex)),
    "too few class names": four_arrays(class_names=np.array(["a", "b"])),
    "labels of a lone pair too short": {"images": random_images(8, 6, 5), "labels": np.zeros(7, dtype=int)},
    "labels of a lone pair too long": {"images": random_images(8, 6, 5), "labels": np.zeros(30, dtype=int)},
    "labels of a lone pair in two axes": {"images": random_images(8, 6, 5), "labels": np.zeros((8, 2), dtype=int)},
    "label of a lone pair without axis": {"images": random_images(8, 6, 5), "labels": np.int64(0)},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_npz_is_refused(case: str, tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "set.npz", MALFORMED[case])
    with pytest.raises(DataError, match=r"set\.npz"):
        load_data(spec, "train", NOWHERE)


def test_objects_in_an_npz_are_never_unpickled(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = np.empty(8, dtype=object)
    trap[:] = Trap(sprung)
    spec = write_npz(tmp_path / "set.npz", four_arrays(extra=trap))
    with pytest.raises(DataError, match=r"set\.npz"):
        load_data(spec, "train", NOWHERE)
    assert not sprung.exists()


def test_missing_npz_is_refused() -> None:
    for open_it in (load_data, fingerprint):
        with pytest.raises(DataError, match=r"nowhere\.npz"):
            open_it("npz:nowhere.npz", "train", NOWHERE)


def reads_the_same_or_refuses(spec: str, expected: RealData) -> bool:
    """Return whether the file is refused with the right error; a file that is read must give the same images."""
    try:
        part = load_data(spec, "train", NOWHERE)
    except DataError:
        return True
    assert torch.equal(part.images, expected.images)
    assert torch.equal(part.labels, expected.labels)
    return False


def test_cut_npz_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    spec = write_npz(path, four_arrays())
    expected, content = load_data(spec, "train", NOWHERE), path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert reads_the_same_or_refuses(spec, expected), f"{length} of {len(content)} bytes were read"


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_npz_with_a_changed_byte_is_refused_or_read_the_same(flip: int, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    spec = write_npz(path, four_arrays())
    expected, content = load_data(spec, "train", NOWHERE), path.read_bytes()
    refused = 0
    for position in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        refused += reads_the_same_or_refuses(spec, expected)
    assert refused > len(content) // 4


@pytest.mark.parametrize("shape", [(10**6, 6, 5), (10**13,), (2**62, 4), (-1, 6, 5)], ids=str)
def test_array_whose_header_has_a_wrong_size_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    arrays = four_arrays()
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue() + arrays.pop("x_train").tobytes())
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    with pytest.raises(DataError, match=r"set\.npz"):
        load_data(f"npz:{tmp_path / 'set.npz'}", "train", NOWHERE)


def test_npz_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_npz(tmp_path / "set.npz", four_arrays(x_train=np.zeros((8, 60, 50), dtype=np.uint8)))
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 10_000)
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes, the limit is 10000"):
        load_data(spec, "train", NOWHERE)


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return f"npz:{path}"


def as_members(arrays: dict[str, Any]) -> dict[str, bytes]:
    members = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        members[f"{name}.npy"] = buffer.getvalue()
    return members


BOMB = np.zeros((8, 1000, 1000), dtype=np.uint8)
BAD_ARCHIVES: dict[str, tuple[Callable[[Path], str], str]] = {
    "nothing": (lambda path: zipped(path, {}), "needs the arrays"),
    "a bomb": (lambda path: zipped(path, as_members(four_arrays(x_train=BOMB))), "more than 200 times"),
    "a bomb beside the arrays": (lambda path: zipped(path, as_members(four_arrays(y=BOMB))), "more than 200 times"),
    "a bomb of lzma": (lambda path: zipped(path, as_members(four_arrays(x_train=BOMB)), zipfile.ZIP_LZMA), "200 times"),
    "bzip2": (
        lambda path: zipped(path, as_members(four_arrays()), zipfile.ZIP_BZIP2),
        "compressed unlike numpy does it",
    ),
    "lzma": (lambda path: zipped(path, as_members(four_arrays()), zipfile.ZIP_LZMA), "compressed unlike numpy does it"),
    "a name that climbs": (lambda path: zipped(path, {"../x_train.npy": b""}), "has a member"),
    "an absolute name": (lambda path: zipped(path, {"/tmp/x_train.npy": b""}), "has a member"),
    "a directory": (lambda path: zipped(path, as_members(four_arrays()) | {"more/": b""}), "has a member 'more/'"),
    "a script": (lambda path: zipped(path, as_members(four_arrays()) | {"run.py": b"exit()"}), "has a member 'run.py'"),
    "a name without end": (lambda path: zipped(path, {"x" * 5000 + ".npy": b""}), "has a member"),
    "too many members": (lambda path: zipped(path, {f"{n}.npy": b"" for n in range(1001)}), "has 1001 members"),
    "a member that is no array": (
        lambda path: zipped(path, as_members(four_arrays()) | {"x_train.npy": b"0 1 2"}),
        "x_train.npy, is not a sound",
    ),
    "class names in two axes": (
        lambda path: zipped(path, as_members(four_arrays(class_names=np.array([["a", "b"]] * 4)))),
        "needs class_names",
    ),
    "class names that are floats": (
        lambda path: zipped(path, as_members(four_arrays(class_names=np.arange(4.0)))),
        "needs class_names",
    ),
    "a class name twice": (
        lambda path: zipped(path, as_members(four_arrays(class_names=np.array(list("abca"))))),
        "different texts",
    ),
    "an empty class name": (
        lambda path: zipped(path, as_members(four_arrays(class_names=np.array(["a", "b", "", "c"])))),
        "needs class_names",
    ),
    "a class name without end": (
        lambda path: zipped(path, as_members(four_arrays(class_names=np.array(["a", "b", "c", "d" * 201])))),
        "needs class_names",
    ),
    "class names in no encoding": (
        lambda path: zipped(path, as_members(four_arrays(class_names=np.array([b"a", b"b", b"c", b"\xff"])))),
        "needs class_names",
    ),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archive_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    write, says = BAD_ARCHIVES[case]
    spec = write(tmp_path / "set.npz")
    with pytest.raises(DataError, match=rf"set\.npz.*{says}") as caught:
        load_data(spec, "train", NOWHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    members = as_members(four_arrays())
    spec = zipped(tmp_path / "set.npz", members)
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive:
        archive.writestr("x_train.npy", members["x_train.npy"])
    with pytest.raises(DataError, match=r"two members x_train\.npy"):
        load_data(spec, "train", NOWHERE)


def test_encrypted_member_is_refused(tmp_path: Path) -> None:
    spec = zipped(tmp_path / "set.npz", as_members(four_arrays()))
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        load_data(spec, "train", NOWHERE)


def test_member_that_declares_much_is_not_unpacked(tmp_path: Path) -> None:
    """1 TiB in a file of a few hundred bytes: memory is not allocated by what directory and header declare."""
    huge = npy((2**30, 32, 32))
    spec = zipped(tmp_path / "set.npz", {"images.npy": huge, "labels.npy": npy((2**30,))})
    with pytest.raises(DataError, match=r"declares an array of shape \(1073741824, 32, 32\)"):
        load_data(spec, "train", NOWHERE)
    content = bytearray((tmp_path / "set.npz").read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 2**31)
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes, more than 200 times"):
        load_data(spec, "train", NOWHERE)


def test_arrays_of_other_names_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_npz(tmp_path / "set.npz", four_arrays(x_val=random_images(3, 6, 5), note=np.array("made by hand")))
    read: list[str] = []
    original = archives.read_array

    def noted(stream: Any, size: int, where: str) -> np.ndarray:
        read.append(where.split(",")[1].strip())
        return original(stream, size, where)

    monkeypatch.setattr(archives, "read_array", noted)
    assert len(load_data(spec, "test", NOWHERE).images) == 3
    assert read == ["x_test.npy", "y_train.npy", "y_test.npy"]


@pytest.mark.parametrize("names", [np.array([b"a", "ä".encode(), b"c", b"d"]), np.array([10, 11, 12, 13])], ids=str)
def test_class_names_may_be_bytes_or_numbers(names: np.ndarray, tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "set.npz", four_arrays(class_names=names))
    expected = ("a", "ä", "c", "d") if names.dtype.kind == "S" else ("10", "11", "12", "13")
    assert load_data(spec, "train", NOWHERE).class_names == expected


# ---- npy files -------------------------------------------------------------------------------------------------


def save_pair(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return f"npy:{folder / 'images.npy'},{folder / 'labels.npy'}"


def test_npy_pair_equals_the_same_arrays_of_an_npz(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], 11).astype(np.int16)
    for images in (random_images(33, 4, 5), random_images(33, 4, 5, 3), np.asfortranarray(random_images(33, 3, 4, 5))):
        spec, archive = save_pair(tmp_path, images, labels), tmp_path / "set.npz"
        np.savez(archive, images=images, labels=labels)
        for split in ("train", "test"):
            ours, theirs = (load_data(s, split, NOWHERE) for s in (spec, f"npz:{archive}"))
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)
            assert ours.class_names == theirs.class_names == ("0", "1", "2")
            assert len(ours.labels) == {"train": 27, "test": 6}[split]


def test_npy_takes_floats_and_tables(tmp_path: Path) -> None:
    images = random_images(10, 4, 5)
    labels = np.zeros(10, dtype=np.uint8)
    stored = load_data(save_pair(tmp_path, images / 255, labels), "test", NOWHERE).images
    assert np.array_equal(stored[:, 0].numpy(), images[[4, 9]])
    rows = load_data(save_pair(tmp_path, np.arange(30).reshape(10, 3), labels), "test", NOWHERE).images
    assert rows.shape == (2, 1, 1, 3)
    assert rows[0, 0, 0].tolist() == [round(255 * 12 / 24)] * 3, "scaled by the training rows"


def test_a_comma_may_be_in_the_name_of_the_images(tmp_path: Path) -> None:
    images = random_images(5, 4, 4)
    np.save(tmp_path / "a,b.npy", images)
    np.save(tmp_path / "labels.npy", np.zeros(5, dtype=int))
    spec = f"npy:{tmp_path / 'a,b.npy'},{tmp_path / 'labels.npy'}"
    assert np.array_equal(load_data(spec, "train", NOWHERE).images[:, 0].numpy(), images[:4])
    before = fingerprint(spec, "train", NOWHERE)
    np.save(tmp_path / "labels.npy", np.array([0, 0, 0, 0, 1]))
    assert fingerprint(spec, "train", NOWHERE) != before


def npy(shape: Any, descr: Any = "|u1", data: bytes = b"", version: int = 1, fortran: Any = False) -> bytes:
    """Return the bytes of a `.npy` file with this header."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}}}"
    return raw_npy(text.encode(), data, version)


def raw_npy(text: bytes, data: bytes = b"", version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + b"\n" + data


BAD_NPY: dict[str, bytes] = {
    "nothing": b"",
    "text": b"0 1 2 3\n" * 10,
    "magic alone": b"\x93NUMPY",
    "version 9": npy((5, 4, 4), data=bytes(80), version=9),
    "header cut": npy((5, 4, 4), data=bytes(80))[:30],
    "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 100,
    "header too long to be parsed": raw_npy(b" " * 60_000, bytes(80)),
    "header that is no dict": raw_npy(b"[1, 2]", bytes(80)),
    "header that runs code": raw_npy(b"__import__('os').system('false')", bytes(80)),
    "header without a shape": raw_npy(b"{'descr': '|u1', 'fortran_order': False}", bytes(80)),
    "header in deep brackets": raw_npy(b"(" * 5000 + b")" * 5000, bytes(80)),
    "header with an open quote": raw_npy(b"{'descr': '''", bytes(80)),
    "one byte short": npy((5, 4, 4), data=bytes(79)),
    "one byte long": npy((5, 4, 4), data=bytes(81)),
    "1 TiB declared": npy((2**30, 32, 32), data=bytes(80)),
    "2^62 declared": npy((2**62,), data=bytes(80)),
    "2^80 declared": npy((2**40, 2**40), data=bytes(80)),
    "negative size": npy((-5, 4, 4), data=bytes(80)),
    "two negative sizes": npy((-5, -4, 4), data=bytes(80)),
    "size that is no integer": npy((5.0, 4, 4), data=bytes(80)),
    "shape that is a list": npy([5, 4, 4], data=bytes(80)),
    "order that is no flag": npy((5, 4, 4), data=bytes(80), fortran="yes"),
    "unknown type": npy((5, 4, 4), "|q9", bytes(80)),
    "objects": npy((5,), "|O", pickle.dumps([None] * 5)),
    "fields": npy((5,), [("a", "|u1"), ("b", "|u1")], bytes(10)),
    "field of objects": npy((5,), [("a", "|O")], bytes(40)),
    "arrays as elements": npy((5,), ("|u1", (4, 4)), bytes(80)),
    "raw bytes": npy((5,), "|V16", bytes(80)),
    "elements without a size": npy((10**15,), "|S0"),
    "dates": npy((5, 4, 4), "<M8[s]", bytes(640)),
    "complex numbers": npy((5, 4, 4), "<c8", bytes(640)),
    "text as pixels": npy((5, 4, 4), "<U1", bytes(320)),
    "70 axes": npy((5, *[1] * 69), data=bytes(5)),
}
SOUND_BUT_NO_IMAGES = ("complex numbers", "text as pixels")


@pytest.mark.parametrize("case", BAD_NPY)
def test_malformed_npy_is_refused_by_name_in_one_line(case: str, tmp_path: Path) -> None:
    spec = save_pair(tmp_path, random_images(5, 4, 4), np.zeros(5, dtype=np.uint8))
    assert len(load_data(spec, "train", NOWHERE).images) == 4
    (tmp_path / "images.npy").write_bytes(BAD_NPY[case])
    with pytest.raises(DataError, match=r"npy:.*images\.npy") as caught:
        load_data(spec, "train", NOWHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", [name for name in BAD_NPY if name not in SOUND_BUT_NO_IMAGES])
def test_malformed_member_is_refused_wherever_it_is(case: str, tmp_path: Path) -> None:
    """Even a member that is not needed: its header is checked, its content is not read."""
    path = tmp_path / "set.npz"
    np.savez(path, **four_arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("extra.npy", BAD_NPY[case])
    with pytest.raises(DataError, match=r"set\.npz.*extra\.npy") as caught:
        load_data(f"npz:{path}", "train", NOWHERE)
    assert "\n" not in str(caught.value)


BAD_PAIRS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "too few labels": (random_images(5, 4, 4), np.zeros(4, dtype=int)),
    "no labels": (random_images(5, 4, 4), np.zeros(0, dtype=int)),
    "nothing": (random_images(0, 4, 4), np.zeros(0, dtype=int)),
    "float labels": (random_images(5, 4, 4), np.zeros(5)),
    "text labels": (random_images(5, 4, 4), np.array(list("abcde"))),
    "flags as labels": (random_images(5, 4, 4), np.zeros(5, dtype=bool)),
    "negative labels": (random_images(5, 4, 4), np.full(5, -1)),
    "labels without end": (random_images(5, 4, 4), np.full(5, 2**62)),
    "one-hot labels": (random_images(5, 4, 4), np.eye(5, dtype=int)),
    "swapped files": (np.zeros(5, dtype=np.uint8), random_images(5, 4, 4)),
    "signed pixels": (random_images(5, 4, 4).astype(np.int16), np.zeros(5, dtype=int)),
    "pixels up to 255 as floats": (random_images(5, 4, 4).astype(np.float32), np.zeros(5, dtype=int)),
    "four channels": (random_images(5, 4, 4, 4), np.zeros(5, dtype=int)),
    "five axes": (random_images(5, 1, 4, 4, 1), np.zeros(5, dtype=int)),
    "a nan in a table": (np.full((5, 3), np.nan), np.zeros(5, dtype=int)),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_npy_pair_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="npy:"):
        load_data(save_pair(tmp_path, *BAD_PAIRS[case]), "train", NOWHERE)


def test_missing_npy_is_refused(tmp_path: Path) -> None:
    spec = save_pair(tmp_path, random_images(5, 4, 4), np.zeros(5, dtype=int))
    (tmp_path / "labels.npy").unlink()
    for open_it in (load_data, fingerprint):
        with pytest.raises(DataError, match=r"labels\.npy"):
            open_it(spec, "train", NOWHERE)


# ---- names and fingerprints ------------------------------------------------------------------------------------


def test_unknown_data_set_is_refused_with_the_most_similar_name() -> None:
    for ask in (
        lambda: check_spec("mnits"),
        lambda: load_data("mnits", "train", NOWHERE),
        lambda: fingerprint("mnits", "train", NOWHERE),
    ):
        with pytest.raises(UsageError, match=r"'mnits'.* Did you mean 'mnist'") as caught:
            ask()
        assert all(name in str(caught.value) for name in data_names())


@pytest.mark.parametrize("spec", ["folder:", "npz:", "npy:", "hf:", "npy:images.npy", "npy:images.npy,", "npy:,b.npy"])
def test_incomplete_spec_is_refused(spec: str) -> None:
    for ask in (
        check_spec,
        lambda spec: load_data(spec, "train", NOWHERE),
        lambda spec: fingerprint(spec, "train", NOWHERE),
    ):
        with pytest.raises(UsageError, match=f"{spec.split(':')[0]}:[A-Z]"):
            ask(spec)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("npyy:a.npy,b.npy", "npy:"), ("nzp:a", "npz:"), ("floder:photos", "folder:"), ("hff:me/pets", "hf:")],
)
def test_a_misspelled_prefix_is_refused_with_the_correct_one(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean '{meant}"):
        check_spec(typed)


def test_real_data_is_distinguished_from_other_specs() -> None:
    assert all(is_real_data(name) for name in data_names())
    assert not any(is_real_data(name) for name in ("noise:normal", "all_layers", "runs/a", "", "digit"))
    assert all(is_real_data(spec) for spec in ("folder:photos", "npz:a.npz", "npy:a.npy,b.npy", "hf:me/pets@small"))
    assert not mirrors_make_sense("digits")
    assert not mirrors_make_sense("folder:photos")


def test_fingerprint_changes_with_a_byte_and_needs_no_decoding(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in IDX_NAMES.values():
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(b"these are no images" + prefix.encode())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(b"nor are these labels")
    train, test = (fingerprint("mnist", split, tmp_path) for split in ("train", "test"))
    assert len(train) == 64
    assert train != test
    assert fingerprint("mnist", "train", tmp_path) == train
    assert fingerprint("mnist_conv", "train", tmp_path) == train
    (raw / "train-labels-idx1-ubyte").write_bytes(b"nor are these labelt")
    assert fingerprint("mnist", "train", tmp_path) != train
    assert fingerprint("mnist", "test", tmp_path) == test


def test_fingerprint_does_not_depend_on_the_place(idx_dir: Any, tmp_path: Path) -> None:
    shutil.copytree(idx_dir[0] / "MNIST", tmp_path / "copy" / "MNIST")
    assert fingerprint("mnist", "train", tmp_path / "copy") == fingerprint("mnist", "train", idx_dir[0])


def test_fingerprint_of_a_folder_changes_with_every_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_images(tmp_path / name, random_images(3, 4, 4, seed=ord(name)))
    prints = [fingerprint(f"folder:{tmp_path}", "train", NOWHERE)]
    assert fingerprint(f"folder:{tmp_path}", "train", NOWHERE) == prints[0]

    changed = bytearray((tmp_path / "a" / "00.png").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "a" / "00.png").write_bytes(changed)
    prints.append(fingerprint(f"folder:{tmp_path}", "train", NOWHERE))
    (tmp_path / "a" / "01.png").rename(tmp_path / "b" / "01x.png")
    prints.append(fingerprint(f"folder:{tmp_path}", "train", NOWHERE))
    (tmp_path / "b" / "02.png").unlink()
    prints.append(fingerprint(f"folder:{tmp_path}", "train", NOWHERE))
    (tmp_path / "a").rename(tmp_path / "aa")  # which changes no order
    prints.append(fingerprint(f"folder:{tmp_path}", "train", NOWHERE))
    assert len(set(prints)) == 5
    with pytest.raises(DataError, match="is not a directory"):
        fingerprint(f"folder:{tmp_path / 'gone'}", "train", NOWHERE)


def test_fingerprint_of_an_npz_and_of_digits(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(b"not even an archive")
    before = fingerprint(f"npz:{path}", "train", NOWHERE)
    path.write_bytes(b"not even an archivf")
    assert fingerprint(f"npz:{path}", "train", NOWHERE) != before
    assert fingerprint("digits", "train", NOWHERE) == fingerprint("digits", "train", NOWHERE)
