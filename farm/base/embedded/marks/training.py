"""Training of the mark reader, and its accuracy on held-out images.

    python -m farm.base.embedded.marks.training OUT

Every scene is rendered twice, with its mark and without: their difference locates the mark, and the
second image is the hardest example of a figure without one. The images are softened and disturbed
at random, because generated images are less sharp than rendered ones. Resumes and is deterministic
in its seed.

Legend: N images, H W positions.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from farm.base.embedded.checkpoint import load_checkpoint, save_checkpoint
from farm.base.embedded.dataset import HELD_OUT_SEED
from farm.base.embedded.marks.network import (
    KINDS,
    MARK_COLOURS,
    MarkReader,
    pool,
    read_marks,
    save_mark_reader,
)
from farm.base.embedded.progress import ProgressLog
from farm.base.embedded.vae import one_cycle, to_unit
from farm.base.embedded.world.render import render_scene
from farm.base.embedded.world.scene import Scene, sample_scene, sample_second_colour
from farm.base.embedded.world.words import MARKS

__all__ = ["MarkedAlbum", "marked_scene", "measure_mark_reader", "train_mark_reader"]

CELL_PX = 4
COVERED = 0.35
"""Share of a position's pixels that a mark covers, from which the position shows it."""


@dataclass(frozen=True)
class MarkedAlbum:
    """Scenes with a mark, each rendered with it and without it."""

    marked_NHWC: NDArray[np.uint8]
    bare_NHWC: NDArray[np.uint8]
    kinds_N: NDArray[np.int64]
    colours_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kinds_N)


def marked_scene(seed: int, index: int) -> Scene:
    """The `index`-th scene of a stream, with a mark of random kind and colour."""
    scene = sample_scene(seed, index)
    rng = random.Random(f"mark/{seed}/{index}")
    colour = scene.mark_colour or sample_second_colour(rng, scene.colour)
    return replace(scene, mark=rng.choice(MARKS), mark_colour=colour)


def render_marked(seed: int, num: int, *, hidden: bool = True) -> MarkedAlbum:
    """Render `num` scenes of a stream twice each.

    Args:
        hidden: include figures with a scarf, whose long end hides most of the mark.
    """
    stream = (marked_scene(seed, index) for index in count())
    wanted = (scene for scene in stream if hidden or scene.accessory != "scarf")
    scenes = list(islice(wanted, num))
    marked = np.stack([np.asarray(render_scene(scene)) for scene in scenes])
    bare = np.stack(
        [np.asarray(render_scene(replace(scene, mark=None, mark_colour=None))) for scene in scenes]
    )
    kinds = np.array([KINDS.index(scene.mark) for scene in scenes])
    colours = np.array([MARK_COLOURS.index(scene.mark_colour or "") for scene in scenes])
    return MarkedAlbum(marked, bare, kinds, colours)


def train_mark_reader(
    out: Path,
    *,
    num_scenes: int = 8000,
    num_steps: int = 6000,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> MarkReader:
    """Train in `out`, or resume there; writes `out/model.safetensors`.

    Args:
        batch_size: scenes per step; each gives two images.
    """
    album = _cached(out / "album.npz", seed, num_scenes)
    torch.manual_seed(seed)
    reader = MarkReader().train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=0.02)
    progress = ProgressLog(out / "progress.jsonl")
    checkpoint = out / "state.safetensors"
    for step in range(load_checkpoint(checkpoint, reader, optimizer), num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * one_cycle(step, num_steps)
        loss = _loss(reader, album, np.random.default_rng([seed, step]), batch_size)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0 or step == num_steps - 1:
            save_checkpoint(checkpoint, step + 1, reader, optimizer)
            progress.log("mark_reader", step + 1, loss=loss.item())
    save_mark_reader(reader, out / "model.safetensors")
    reader.eval()
    return reader


def _cached(path: Path, seed: int, num: int) -> MarkedAlbum:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        album = render_marked(seed, num)
        np.savez(path, m=album.marked_NHWC, b=album.bare_NHWC, k=album.kinds_N, c=album.colours_N)
    held = np.load(path)
    return MarkedAlbum(held["m"], held["b"], held["k"], held["c"])


def _loss(
    reader: MarkReader, album: MarkedAlbum, rng: np.random.Generator, batch_size: int
) -> Tensor:
    chosen = rng.integers(0, len(album), batch_size)
    marked, bare = to_unit(album.marked_NHWC[chosen]), to_unit(album.bare_NHWC[chosen])
    kinds = torch.from_numpy(album.kinds_N[chosen])
    colours = torch.from_numpy(album.colours_N[chosen])
    changed = ((marked - bare).abs().amax(1, keepdim=True) > 0.04).float()
    covered = avg_pool2d(changed, CELL_PX)[:, 0] > COVERED
    pictures = torch.cat([marked, bare])
    if rng.random() < 0.5:
        pictures, covered = pictures.flip(3), covered.flip(2)
    pictures = _disturbed(pictures, rng).contiguous(memory_format=torch.channels_last)
    kind_logits, colour_logits = reader(pictures)
    is_mark = torch.cat([covered, torch.zeros_like(covered)])
    truth = is_mark * torch.cat([kinds, kinds])[:, None, None]
    where = is_mark.nonzero(as_tuple=True)
    dense = cross_entropy(kind_logits, truth)
    dense_marks = cross_entropy(kind_logits.permute(0, 2, 3, 1)[where], truth[where])
    shades = cross_entropy(
        colour_logits.permute(0, 2, 3, 1)[where],
        torch.cat([colours, colours])[:, None, None].expand_as(truth)[where],
    )
    whole, _ = pool(kind_logits, colour_logits)
    answers = cross_entropy(whole, torch.cat([kinds, torch.zeros_like(kinds)]))
    return dense + 0.3 * dense_marks + 0.3 * shades + answers


def _disturbed(pictures_NCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Soften, shift the colours of, and add noise to half of the batches."""
    if rng.random() < 0.5:
        size = int(rng.integers(28, 56))
        small = interpolate(pictures_NCHW, size=(size, size), mode="area")
        pictures_NCHW = interpolate(small, size=(64, 64), mode="bilinear")
    if rng.random() < 0.5:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        shape = (len(pictures_NCHW), 3, 1, 1)
        gain = 1 + 0.08 * torch.randn(shape, generator=generator)
        noise = 0.06 * torch.randn(pictures_NCHW.shape, generator=generator)
        pictures_NCHW = pictures_NCHW * gain + noise
    return pictures_NCHW


def measure_mark_reader(
    reader: MarkReader, num: int = 500, *, seed: int = HELD_OUT_SEED
) -> dict[str, float]:
    """Shares of right answers on held-out scenes, with a visible mark and without one."""
    album = render_marked(seed, num, hidden=False)
    found = read_marks(reader, album.marked_NHWC)
    truth = [
        (KINDS[kind], MARK_COLOURS[colour])
        for kind, colour in zip(album.kinds_N, album.colours_N, strict=True)
    ]
    kinds = [one.kind == kind for one, (kind, _) in zip(found, truth, strict=True)]
    both = [(one.kind, one.colour) == pair for one, pair in zip(found, truth, strict=True)]
    none = [one.kind is None for one in read_marks(reader, album.bare_NHWC)]
    return {
        "mark": sum(kinds) / num,
        "mark_and_colour": sum(both) / num,
        "no_mark": sum(none) / num,
    }


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="working folder; run again to resume there")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--scenes", type=int, default=8000)
    options = parser.parse_args()
    reader = train_mark_reader(options.out, num_scenes=options.scenes, num_steps=options.steps)
    accuracies = measure_mark_reader(reader)
    ProgressLog(options.out / "progress.jsonl").log("held_out", options.steps, **accuracies)


if __name__ == "__main__":
    main()
