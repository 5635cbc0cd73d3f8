"""The album: captioned images of the synthetic world, rendered on all CPU cores while models train.

Owns the files of the album and the processes that fill it. Everything depends on (seed, index)
alone, so an interrupted album is continued, and a stage that trains on its first N images is the
same on every machine. Imports neither torch nor transformers, so that its processes start at once.

Legend: N images, P pixels, K captions, T tokens, F facts.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farm.base.embedded.second.edition import Edition
from farm.base.embedded.world.captions import (
    FACTS,
    fact_vector,
    stated_vector,
    write_caption,
    write_short_caption,
)
from farm.base.embedded.world.render import render_scene
from farm.base.embedded.world.scene import Scene, sample_scene, sample_second_colour
from farm.base.embedded.world.words import MARKS, POSES_OF, RARE_TOKENS

__all__ = ["Album", "WordEncoder", "edition_scene", "with_identifier"]

CHUNK = 64
"""Images between two marks of progress."""
NUM_TOKENS = 32


class WordEncoder:
    """Encodes the world's captions as the tokenizer does: every word is one token."""

    def __init__(self, vocabulary: Path) -> None:
        """Read the tokenizer's `vocab.json`."""
        self._ids: dict[str, int] = json.loads(vocabulary.read_text())
        self._start, self._end = self._ids["<|startoftext|>"], self._ids["<|endoftext|>"]

    def __call__(self, text: str) -> NDArray[np.uint16]:
        """Token ids [T], padded with the end token.

        Raises:
            KeyError: if a word is none of the world's.
        """
        words = re.findall(r"\w+|[^\w\s]+", text.lower())
        ids = [self._start, *(self._ids[f"{word}</w>"] for word in words), self._end]
        return np.array(ids + [self._end] * (NUM_TOKENS - len(ids)), dtype=np.uint16)


def edition_scene(edition: Edition, seed: int, index: int) -> Scene:
    """The `index`-th scene of an edition's album: more marks and more of the hard classes than in
    the plain stream."""
    scene = sample_scene(seed, index)
    rng = random.Random(f"edition/{seed}/{index}")
    if rng.random() < edition.hard_share:
        noun = rng.choice(edition.hard_nouns)
        scene = replace(scene, class_noun=noun, pose=rng.choice(POSES_OF[noun]))
    if rng.random() < edition.mark_share:
        colour = scene.mark_colour or sample_second_colour(rng, scene.colour)
        return replace(scene, mark=scene.mark or rng.choice(MARKS), mark_colour=colour)
    return replace(scene, mark=None, mark_colour=None)


def with_identifier(text: str, scene: Scene, rng: random.Random) -> str:
    """The caption with a rare token in place of the class noun's article."""
    phrase = rf"\b(?:a|an|the) (?=(?:{scene.colour} )?{scene.class_noun}\b)"
    return re.sub(phrase, f"{rng.choice(RARE_TOKENS)} ", text, count=1)


@dataclass(frozen=True)
class Album:
    """The album's arrays, memory-mapped in a folder."""

    folder: Path
    edition: Edition
    seed: int

    def _array(self, name: str, dtype: type, shape: tuple[int, ...]) -> Any:
        path = self.folder / f"{name}.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not path.exists() or path.stat().st_size != size:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.truncate(0)
                file.truncate(size)
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)

    @property
    def pictures(self) -> NDArray[np.uint8]:
        """The images [N, P, P, 3]."""
        side = self.edition.picture_px
        return self._array("pictures", np.uint8, (self.edition.num_pictures, side, side, 3))  # type: ignore[no-any-return]

    @property
    def ids(self) -> NDArray[np.uint16]:
        """Token ids of the captions [N, K, T]."""
        shape = (self.edition.num_pictures, self.edition.num_captions, NUM_TOKENS)
        return self._array("ids", np.uint16, shape)  # type: ignore[no-any-return]

    @property
    def stated(self) -> NDArray[np.int8]:
        """The facts that each caption states [N, K, F], as option indices."""
        shape = (self.edition.num_pictures, self.edition.num_captions, len(FACTS))
        return self._array("stated", np.int8, shape)  # type: ignore[no-any-return]

    @property
    def facts(self) -> NDArray[np.int8]:
        """The facts of each image [N, F], as option indices."""
        return self._array("facts", np.int8, (self.edition.num_pictures, len(FACTS)))  # type: ignore[no-any-return]

    @property
    def _done(self) -> NDArray[np.uint8]:
        return self._array("done", np.uint8, (-(-self.edition.num_pictures // CHUNK),))  # type: ignore[no-any-return]

    def prepare(self) -> None:
        """Create the files, before any process fills them."""
        for part in (self.pictures, self.ids, self.stated, self.facts, self._done):
            del part

    def num_ready(self) -> int:
        """Images that are ready, counted from the first without a gap."""
        missing = np.flatnonzero(self._done == 0)
        chunks = int(missing[0]) if len(missing) else len(self._done)
        return min(chunks * CHUNK, self.edition.num_pictures)

    def wait_for(self, num: int, *, until_s: float | None = None) -> int:
        """Wait until `num` images are ready, or until a time of `time.monotonic`.

        Returns:
            How many of them are ready; all of them without a time.
        """
        while (ready := self.num_ready()) < num:
            if until_s is not None and time.monotonic() >= until_s and ready:
                break
            time.sleep(0.05)
        return min(ready, num)

    def fill(self, vocabulary: Path, worker: int = 0, num_workers: int = 1) -> None:
        """Render every `num_workers`-th chunk that is missing."""
        encode = WordEncoder(vocabulary)
        done = self._done
        arrays = (self.pictures, self.ids, self.stated, self.facts)
        for chunk in range(worker, len(done), num_workers):
            if done[chunk]:
                continue
            for index in range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.edition.num_pictures)):
                self._fill_one(index, encode, arrays)
            done[chunk] = 1

    def _fill_one(self, index: int, encode: WordEncoder, arrays: tuple[Any, ...]) -> None:
        pictures, ids, stated, facts = arrays
        scene = edition_scene(self.edition, self.seed, index)
        pictures[index] = np.asarray(render_scene(scene, size_px=self.edition.picture_px))
        facts[index] = fact_vector(scene)
        rng = random.Random(f"captions/{self.seed}/{index}")
        for place in range(self.edition.num_captions):
            is_short = place == self.edition.num_captions - 1
            caption = (write_short_caption if is_short else write_caption)(scene, rng)
            is_named = rng.random() < self.edition.identifier_share
            text = with_identifier(caption.text, scene, rng) if is_named else caption.text
            ids[index, place] = encode(text)
            stated[index, place] = stated_vector(scene, caption)

    def start(self, vocabulary: Path, num_workers: int) -> list[Any]:
        """Start processes that fill the album; they end with it, or with this process."""
        self.prepare()
        if self.num_ready() >= self.edition.num_pictures:
            return []
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=_work, args=(self, vocabulary, worker, num_workers), daemon=True)
            for worker in range(num_workers)
        ]
        for worker in workers:
            worker.start()
        return workers


def _work(album: Album, vocabulary: Path, worker: int, num_workers: int) -> None:
    os.nice(5)  # the training's own thread comes first
    album.fill(vocabulary, worker, num_workers)
