"""Pictures: equal inputs give equal bytes, and the images and captions are right."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from kdextract.stages.outputs.pictures import (
    IMAGES_PER_CLASS,
    MARGIN,
    MAX_CLASSES,
    TILE,
    class_grid,
    confusion_picture,
    encode_png,
)

GAP = 2
RED = (220, 40, 40)


def decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        picture.load()
        return np.array(picture)


def made_images(count: int, channels: int = 1, size: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 200, (count, channels, size, size), generator=rng, dtype=torch.uint8)


def sure_of(answers: torch.Tensor, num_classes: int) -> torch.Tensor:
    return torch.eye(num_classes)[answers] * 0.9 + 0.1 / num_classes


def tile(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return the tile [TILE, TILE, 3] in a row of the grid."""
    top, left = row * (TILE + 2 * GAP) + GAP, MARGIN + column * (TILE + GAP) + GAP
    return picture[top : top + TILE, left : left + TILE]


def is_framed(tile_pixels: np.ndarray) -> bool:
    edges = np.concatenate([tile_pixels[0], tile_pixels[-1], tile_pixels[:, 0], tile_pixels[:, -1]])
    return bool((edges == RED).all())


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_keeps_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decode(encode_png(pixels)), pixels)
    assert encode_png(pixels) == encode_png(pixels.copy())


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_has_a_row_per_class_and_shows_its_images(channels: int) -> None:
    labels = torch.arange(45) % 3
    images = made_images(45, channels)
    content = class_grid(images, labels, sure_of(labels, 3), ("cat", "dog", "owl"))
    assert content == class_grid(images.clone(), labels.clone(), sure_of(labels, 3), ("cat", "dog", "owl"))
    picture = decode(content)
    assert picture.shape == (3 * (TILE + 2 * GAP), MARGIN + IMAGES_PER_CLASS * (TILE + GAP) + GAP, 3)
    for row in range(3):
        for column in range(IMAGES_PER_CLASS):
            image = images[row + 3 * column].permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)
            assert np.array_equal(tile(picture, row, column), np.broadcast_to(image, (TILE, TILE, 3)))


def test_grid_frames_in_red_images_that_the_teacher_predicts_as_another_class() -> None:
    labels = torch.arange(20) % 2
    answers = labels.clone()
    answers[[0, 3, 18]] = 1 - answers[[0, 3, 18]]
    picture = decode(class_grid(made_images(20), labels, sure_of(answers, 2), ("a", "b")))
    framed = {(row, column) for row in range(2) for column in range(10) if is_framed(tile(picture, row, column))}
    assert framed == {(0, 0), (1, 1), (0, 9)}
    agreeing = decode(class_grid(made_images(20), labels, sure_of(labels, 2), ("a", "b")))
    assert not (agreeing == RED).all(axis=2).any()


def test_grid_captions_contain_the_confidence_of_the_teacher() -> None:
    """The captions differ when names, confidence or agreement do; the images beside them do not."""
    labels, images = torch.zeros(8, dtype=torch.int64), made_images(8)
    half = sure_of(labels, 2)
    half[:4] = torch.tensor([0.55, 0.45])
    pictures = [
        decode(class_grid(images, labels, probabilities, names))
        for probabilities, names in [(sure_of(labels, 2), ("a", "b")), (half, ("a", "b")), (half, ("other", "b"))]
    ]
    captions = [picture[:, :MARGIN].tobytes() for picture in pictures]
    assert len(set(captions)) == 3
    assert all(np.array_equal(picture[:, MARGIN:], pictures[0][:, MARGIN:]) for picture in pictures)


def test_grid_leaves_out_classes_without_images_and_fills_short_rows() -> None:
    labels = torch.tensor([0, 0, 2])
    picture = decode(class_grid(made_images(3), labels, sure_of(labels, 3), ("a", "b", "c")))
    assert len(picture) == 2 * (TILE + 2 * GAP)
    assert (tile(picture, 0, 2) == 255).all()
    assert (tile(picture, 1, 1) == 255).all()
    assert not (tile(picture, 1, 0) == 255).all()


def test_grid_is_bounded_for_many_classes() -> None:
    labels = torch.arange(200) % 100
    picture = decode(
        class_grid(made_images(200), labels, sure_of(labels, 100), tuple(f"class {i}" for i in range(100)))
    )
    assert len(picture) == MAX_CLASSES * (TILE + 2 * GAP)


def cell(picture: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    return picture[row * size : (row + 1) * size, MARGIN + column * size : MARGIN + (column + 1) * size]


def test_confusion_picture_shades_the_share_of_the_row() -> None:
    confusion = np.array([[90, 10, 0], [0, 500, 0], [1, 1, 2]])
    content = confusion_picture(confusion, ("a", "b", "c"))
    assert content == confusion_picture(confusion.copy(), ("a", "b", "c"))
    picture = decode(content)
    size = (picture.shape[1] - MARGIN) // 3
    assert picture.shape[0] > 3 * size

    def shade(row: int, column: int) -> int:
        corner = cell(picture, row, column, size)[0, 0]
        assert corner[0] == corner[1]
        assert corner[2] == 255
        return int(corner[0])

    assert shade(0, 2) == shade(1, 0) == 255, "an empty cell is white"
    assert shade(1, 1) < shade(0, 0) < shade(2, 2) < shade(2, 0) < shade(0, 1) < 255
    assert shade(2, 0) == shade(2, 1)


def test_confusion_picture_contains_counts_above_zero() -> None:
    picture = decode(confusion_picture(np.array([[7, 0], [0, 7]]), ("a", "b")))
    size = (picture.shape[1] - MARGIN) // 2
    assert len(np.unique(cell(picture, 0, 0, size).reshape(-1, 3), axis=0)) > 1
    assert len(np.unique(cell(picture, 0, 1, size).reshape(-1, 3), axis=0)) == 1
    other = decode(confusion_picture(np.array([[8, 0], [0, 8]]), ("a", "b")))
    assert not np.array_equal(cell(picture, 0, 0, size), cell(other, 0, 0, size))


def test_confusion_picture_takes_classes_without_images_and_many_classes() -> None:
    empty = decode(confusion_picture(np.zeros((2, 2), dtype=int), ("a", "b")))
    assert (cell(empty, 0, 0, (empty.shape[1] - MARGIN) // 2) == 255).all()
    many = decode(confusion_picture(np.eye(100, dtype=int) * 5, tuple(f"class {i}" for i in range(100))))
    size = (many.shape[1] - MARGIN) // 100
    assert size >= 2
    assert many.shape[1] < 1200
    assert len(np.unique(cell(many, 3, 3, size).reshape(-1, 3), axis=0)) == 1, "no counts where they would not fit"
    assert cell(many, 3, 3, size)[0, 0, 0] < 100 < cell(many, 3, 4, size)[0, 0, 0]
