"""The cache of decoded images: it saves time, and changes nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Here
from PIL import Image

from kdextract.data import decoded
from kdextract.data.decoded import cache_folder, decoded_once
from kdextract.data.load import load_data
from kdextract.errors import DataError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache, in which sets of 6 images and more are kept."""
    monkeypatch.setattr(decoded, "FEWEST_FILES", 6)
    monkeypatch.setenv("KDX_CACHE_DIR", str(tmp_path / "cache" / "images"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight JPEG files each, in colour."""
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(8 if name.startswith("train") else 2):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


class Decoder:
    """Decodes by counting: the images contain the sizes of the files."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, files: object) -> torch.Tensor:
        self.calls += 1
        sizes = [len(content) for _, content in files]  # type: ignore[attr-defined]
        return torch.tensor(sizes, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)


FILES = [(f"{number}.png", b"x" * number) for number in range(9)]


def test_a_set_is_decoded_once(cache: Path) -> None:
    decode = Decoder()
    first, written = decoded_once(FILES, decode)
    again, written_again = decoded_once(FILES, decode)
    assert decode.calls == 1
    assert torch.equal(first, again)
    assert written is not None
    assert written_again is None
    assert [*cache.iterdir()] == [written]


def test_other_content_or_another_order_is_another_set(cache: Path) -> None:
    decode = Decoder()
    changed = [*FILES[:-1], ("8.png", b"y" * 8)]
    for files in (FILES, changed, FILES[::-1], FILES[1:], FILES):
        images, _ = decoded_once(files, decode)
        assert images[:, 0, 0, 0].tolist() == [len(content) for _, content in files]
    assert decode.calls == 4
    named_otherwise = [(f"photo {name}", content) for name, content in FILES]
    decoded_once(named_otherwise, decode)
    assert decode.calls == 4


def test_another_version_is_another_set(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Decoder()
    decoded_once(FILES, decode)
    monkeypatch.setattr(decoded, "DECODING_VERSION", 2)
    decoded_once(FILES, decode)
    assert decode.calls == 2


def test_small_sets_are_not_kept(cache: Path) -> None:
    decode = Decoder()
    for _ in range(2):
        _, written = decoded_once(FILES[:5], decode)
        assert written is None
    assert decode.calls == 2
    assert not cache.exists()


def changed_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [changed_byte, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-4])]
)
def test_a_damaged_file_is_written_again(cache: Path, damage: object) -> None:
    decode = Decoder()
    first, written = decoded_once(FILES, decode)
    assert written is not None
    damage(written)  # type: ignore[operator]
    again, written_again = decoded_once(FILES, decode)
    assert torch.equal(first, again)
    assert written_again == written
    assert decode.calls == 2
    assert torch.equal(decoded_once(FILES, decode)[0], first)
    assert decode.calls == 2


def test_a_cache_that_cannot_be_written_is_none(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file, where the folder would be")
    decode = Decoder()
    for _ in range(2):
        images, written = decoded_once(FILES, decode)
        assert len(images) == len(FILES)
        assert written is None
    assert decode.calls == 2


def test_what_was_not_used_for_longest_is_deleted_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, written = Decoder(), []
    for age in (300, 200, 100):
        _, path = decoded_once([(name, content + b"z" * age) for name, content in FILES[:7]], lambda files: IMAGES)
        assert path is not None
        os.utime(path, (1e9 - age, 1e9 - age))
        written.append(path)
    used = written[0]
    os.utime(used, (1e9, 1e9))
    monkeypatch.setattr(decoded, "MOST_BYTES", int(1.5 * used.stat().st_size))
    _, last = decoded_once(FILES, decode)
    assert set(cache.iterdir()) == {used, last}


IMAGES = torch.zeros(7, 1, 20, 20, dtype=torch.uint8)


def test_a_set_larger_than_the_cache_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "MOST_BYTES", 10)
    images, written = decoded_once(FILES, Decoder())
    assert len(images) == len(FILES)
    assert written is None


def test_only_the_user_can_read_it(cache: Path) -> None:
    _, written = decoded_once(FILES, Decoder())
    assert written is not None
    assert written.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDX_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("KDX_CACHE_DIR", "")
    assert cache_folder() is None
    monkeypatch.delenv("KDX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "kdx" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "kdx" / "images"


# ---- folders of images ---------------------------------------------------------------------------------------------


def test_a_folder_is_read_the_same_with_and_without_the_cache(
    cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, cached = (load_data(f"folder:{photos}", "train", Path()) for _ in range(2))
    assert first.kept_in is not None
    assert cached.kept_in is None
    monkeypatch.setenv("KDX_CACHE_DIR", "")
    plain = load_data(f"folder:{photos}", "train", Path())
    for other in (cached, plain):
        assert torch.equal(first.images, other.images)
        assert torch.equal(first.labels, other.labels)
    assert first.images.shape == (16, 3, 10, 12)


def test_a_damaged_image_is_reported_also_if_the_set_was_kept(cache: Path, photos: Path) -> None:
    load_data(f"folder:{photos}", "train", Path())
    (photos / "train" / "a" / "3.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.jpg is not an image"):
        load_data(f"folder:{photos}", "train", Path())


def test_the_first_command_says_where_images_are_kept(cache: Path, photos: Path, tmp_path: Path, here: Here) -> None:
    options = ("--model", "lenet5", "--epochs", "1", "--batch-size", "8", "--validation", "0", "--threads", "1")
    for name in ("one", "two"):
        done = here("train", "--data", f"folder:{photos}", "--run", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
        assert (f"the decoded train images are kept in {cache}" in done.stderr) == (name == "one")
    one, two = ((tmp_path / name / "teacher" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
