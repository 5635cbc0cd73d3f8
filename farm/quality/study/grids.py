"""Labelled image grids and animations for the studies.

Legend: G images, P pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from farm.quality.card import Examination, pillow

__all__ = ["Cell", "arms_grid", "labelled_grid", "save_animation", "steps_grid"]

PAPER, INK, DIM = (251, 250, 247), (28, 27, 25), (107, 103, 96)
GAP, MARGIN = 4, 14
CELL_PX = 96


@dataclass(frozen=True)
class Cell:
    """One row of a grid: a label and its images; None leaves a gap."""

    label: str
    pictures: Sequence[Image.Image | None]


def labelled_grid(
    rows: Sequence[Cell], headings: Sequence[str] = (), *, cell_px: int = CELL_PX
) -> Image.Image:
    """Rows of square images with labels on the left and headings above."""
    font = ImageFont.load_default(size=14)
    small = ImageFont.load_default(size=12)
    label_px = max((round(font.getlength(line)) for row in rows for line in row.label.split("\n")),
                   default=0) + 12  # fmt: skip
    columns = max(len(row.pictures) for row in rows)
    head_px = 22 * max((text.count("\n") + 1 for text in headings), default=0)
    width = 2 * MARGIN + label_px + columns * (cell_px + GAP) - GAP
    height = 2 * MARGIN + head_px + len(rows) * (cell_px + GAP) - GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    left = MARGIN + label_px
    for column, text in enumerate(headings):
        middle = left + column * (cell_px + GAP) + cell_px / 2
        lines = _wrapped(text, small, cell_px)
        pen.multiline_text(
            (middle, MARGIN + head_px - 8), lines, DIM, small, anchor="md", align="center"
        )
    for index, row in enumerate(rows):
        top = MARGIN + head_px + index * (cell_px + GAP)
        pen.multiline_text((MARGIN, top + cell_px / 2), row.label, INK, font, anchor="lm")
        for column, picture in enumerate(row.pictures):
            if picture is not None:
                place = (left + column * (cell_px + GAP), top)
                resized = picture.resize((cell_px, cell_px), Image.Resampling.LANCZOS)
                sheet.paste(resized, place)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Text wrapped to a width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def arms_grid(
    examined: Mapping[str, Examination], subjects: Sequence[str], photos: Mapping[str, object]
) -> Image.Image:
    """Three rows per subject: its photos, and both arms' subject and class images."""
    rows = []
    for subject in subjects:
        own = photos[subject]
        assert isinstance(own, list)
        noun = subject.split()[-1]
        rows.append(Cell(f"photos of\n{subject}", own[:4]))
        for arm in ("without", "with"):
            found = examined[f"{arm}/{subject}/0"]
            rows.append(
                Cell(
                    f"{arm} prior:\nsks {noun} | any {noun}",
                    [*_few(found.pictures_GPP3, 4), None, *_few(found.class_pictures_GPP3, 6)],
                )
            )
    return labelled_grid(rows, cell_px=80)


def steps_grid(shown: Mapping[int, Mapping[str, Examination]], subject: str) -> Image.Image:
    """One subject's class images by step, for both arms."""
    noun = subject.split()[-1]
    rows = [
        Cell(
            f"any {noun}, {arm} prior\nstep {step}",
            _few(examined[f"{arm}/{subject}/0"].class_pictures_GPP3, 8),
        )
        for arm in ("without", "with")
        for step, examined in shown.items()
    ]
    return labelled_grid(rows, cell_px=80)


def _few(pictures_GPP3: Tensor, num: int) -> list[Image.Image]:
    return pillow(pictures_GPP3[:num])


def save_animation(
    frames: Sequence[Image.Image], path: Path, *, frame_ms: int = 500, last_ms: int = 2000
) -> None:
    """Save an endless GIF that holds its last frame."""
    times = [frame_ms] * (len(frames) - 1) + [last_ms]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
