"""Pictures that stages write beside their results, as PNG bytes; equal inputs give equal bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.util import montage

if TYPE_CHECKING:
    import torch

IMAGES_PER_CLASS = 12
MAX_CLASSES = 20
TILE = 48
MARGIN = 96


def encode_png(pixels: np.ndarray) -> bytes:
    """Return PNG bytes of uint8 pixels [height, width] or [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def class_grid(
    images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, class_names: tuple[str, ...]
) -> bytes:
    """Return a picture of the first images of each class, one class per row.

    Beside each row are the class, the teacher's mean confidence in it, and the share of images for which the teacher
    predicts it. Images for which the teacher predicts another class have a red frame.

    Args:
        images: uint8 [N, channels, height, width].
        labels: the requested class of each image, [N].
        probabilities: the teacher's softmax, [N, K].
    """
    answers = probabilities.argmax(1)
    captions = {}
    for label in labels.unique().tolist():
        members = labels == label
        agreement = float((answers[members] == label).float().mean())
        confidence = float(probabilities[members, label].mean())
        captions[label] = f"{class_names[label][:12]}\nconf. {confidence:.2f}\nagree {agreement:.2f}"
    return image_rows(images, labels, captions, answers == labels)


def image_rows(
    images: torch.Tensor, rows: torch.Tensor, captions: dict[int, str], fits: torch.Tensor | None = None
) -> bytes:
    """Return a picture of the first images of each row, with a caption before it.

    Args:
        images: uint8 [N, channels, height, width].
        rows: the row of each image, [N].
        captions: row -> the text to its left.
        fits: [N], False for images that get a red frame; None: no image gets one.
    """
    strips = []
    for row in sorted(captions)[:MAX_CLASSES]:
        members = (rows == row).nonzero().squeeze(1)[:IMAGES_PER_CLASS]
        shown = [_tile(images[i].numpy(), fits is None or bool(fits[i])) for i in members]
        strip = montage(shown, grid_shape=(1, IMAGES_PER_CLASS), channel_axis=3, padding_width=2, fill=(255, 255, 255))
        strips.append(np.concatenate([_caption(captions[row], strip.shape[0]), strip.astype(np.uint8)], axis=1))
    return encode_png(np.concatenate(strips))


def _tile(image: np.ndarray, agrees: bool) -> np.ndarray:
    """Return one image [channels, h, w] as uint8 [TILE, TILE, 3], with a red frame unless `agrees`."""
    channels_last = np.moveaxis(image, 0, 2)
    coloured = np.repeat(channels_last, 3, axis=2) if channels_last.shape[2] == 1 else channels_last[..., :3]
    tile = np.array(Image.fromarray(coloured).resize((TILE, TILE), Image.Resampling.NEAREST))
    if not agrees:
        tile[[0, 1, -2, -1]] = (220, 40, 40)
        tile[:, [0, 1, -2, -1]] = (220, 40, 40)
    return tile


def _caption(text: str, height: int) -> np.ndarray:
    canvas = Image.new("RGB", (MARGIN, height), "white")
    ImageDraw.Draw(canvas).multiline_text((4, 4), text, fill="black", font=ImageFont.load_default(size=11), spacing=2)
    return np.array(canvas)


def confusion_picture(confusion: np.ndarray, class_names: tuple[str, ...]) -> bytes:
    """Return a picture of a confusion matrix [K, K] (rows: true class), shaded by the share of the row.

    Up to `MAX_CLASSES` classes, the cells contain the counts.
    """
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell = 40 if len(share) <= MAX_CLASSES else max(2, 800 // len(share))
    shades = np.repeat(np.repeat(255 - np.sqrt(share) * 200, cell, axis=0), cell, axis=1).astype(np.uint8)
    size = len(shades)
    canvas = Image.new("RGB", (size + MARGIN, size + 40), "white")
    canvas.paste(Image.fromarray(np.stack([shades, shades, np.full_like(shades, 255)], axis=2)), (MARGIN, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    draw.text((MARGIN, size + 22), "columns: answer of the classifier, rows: true class", fill="black", font=font)
    if len(share) <= MAX_CLASSES:
        for row, name in enumerate(class_names):
            draw.text((4, row * cell + 13), name[:14], fill="black", font=font)
            draw.text((MARGIN + row * cell + 4, size + 4), name[:6], fill="black", font=font)
            for column in range(len(share)):
                count = int(confusion[row, column])
                if count:
                    ink = "white" if share[row, column] > 0.6 else "black"
                    draw.text((MARGIN + column * cell + 6, row * cell + 13), str(count), fill=ink, font=font)
    return encode_png(np.array(canvas))


def share_matrix(shares: list[list[float | None]], rows: list[str], columns: list[str], note: str) -> bytes:
    """Return a picture of a table of shares in [0, 1], as percent, shaded by their size; None is an empty cell.

    Args:
        shares: one list per row, with one entry per column.
        rows: the caption of each row, of one or two lines.
        columns: the caption of each column, of one or two lines.
        note: a line below the table.
    """
    width, height, left = 64, 40, 2 * MARGIN
    size = left + max(4, len(columns)) * width, (len(rows) + 2) * height
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=11)
    for column, name in enumerate(columns):
        lines = "\n".join(line if len(line) <= 11 else f"{line[:9]}.." for line in name.splitlines())
        draw.multiline_text((left + column * width + 4, 8), lines, fill="black", font=font, spacing=2)
    for row, (caption, entries) in enumerate(zip(rows, shares, strict=True)):
        top = (row + 1) * height
        lines = "\n".join(line[:28] for line in caption.splitlines())
        draw.multiline_text((4, top + 6), lines, fill="black", font=font, spacing=2)
        for column, share in enumerate(entries):
            if share is None:
                continue
            place, shade = left + column * width, round(255 - 200 * share)
            draw.rectangle((place, top, place + width - 2, top + height - 2), fill=(shade, shade, 255))
            ink = "white" if share > 0.6 else "black"
            draw.text((place + 14, top + 13), f"{100 * share:.2f}", fill=ink, font=font)
    draw.text((left, size[1] - 24), note, fill="black", font=font)
    return encode_png(np.array(canvas))
