"""Decodes clean latents to pixels, in a thread beside the denoising loop.

Owns decoding, in batches of one size, and the delivery of images and previews. Finished images
have priority over previews, and superseded previews are not decoded. On a GPU the decoder's work
has a queue of its own, of low priority, which waits only for the pass that finished the latents.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.base.device.cuda_errors import caused_by, without_frames
from farm.base.device.queues import Mark, Queue, mark
from farm.base.generate import to_uint8
from farm.base.interface import Base
from farm.errors import AdapterFileError, FarmError
from farm.serving.engine.row import Row
from farm.serving.engine.sharing.shares import Shares
from farm.serving.request import Picture, Progress

__all__ = ["Decoder"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Latents:
    """Latents, possibly still being computed in the denoising stream."""

    latents_1CHW: Tensor
    step: int
    made: Mark
    """Set in the denoising queue once they are computed."""


class Decoder:
    """Turns rows into images and hands them to their tickets."""

    def __init__(
        self, base: Base, shares: Shares, max_batch: int, on_end: Callable[[Row, bool], None]
    ) -> None:
        """Create the decoder; ``start`` starts its thread.

        Args:
            shares: callers below their share go first, and while they have open requests others'
                images are decoded one at a time.
            max_batch: images decoded at once; the decoder takes far more memory per image than
                the denoiser.
            on_end: called with each row and whether it became an image.
        """
        self._base = base
        self._shares = shares
        self._max_batch = max_batch
        self._on_end = on_end
        vae: Any = getattr(base.pipeline(), "vae", None)
        if base.device.type == "cpu" and _has_images(vae):
            # measured on the embedded base: an image takes 28 % less time to decode
            vae.to(memory_format=torch.channels_last)
        self._queue = Queue(base.device)
        self._finished: dict[Row, _Latents] = {}
        self._previews: dict[Row, _Latents] = {}
        self._wake = threading.Condition()
        self._warms = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, *, warms: bool = False) -> None:
        """Start the thread.

        Args:
            warms: decode a batch first, so that the first image need not wait until libraries
                have loaded their kernels.
        """
        self._warms = warms
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Decode the remaining rows, then stop the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def backlog(self) -> int:
        """Finished images waiting to be decoded."""
        return len(self._finished)

    def finish(self, rows: Sequence[Row]) -> None:
        """Decode denoised rows and end their tickets."""
        made = mark(self._base.device)
        with self._wake:
            for row in rows:
                sampler = row.sampler
                self._finished[row] = _Latents(sampler.latents_1CHW, sampler.step, made)
                self._previews.pop(row, None)
            self._wake.notify()

    def preview(self, row: Row) -> None:
        """Decode a row's current estimate and report it as progress."""
        now = _Latents(row.sampler.estimate(), row.sampler.step, mark(self._base.device))
        with self._wake:
            self._previews[row] = now
            self._wake.notify()

    def _run(self) -> None:
        if self._warms:
            self._warm_up()
        while True:
            with self._wake:
                while not (self._finished or self._previews or self._stopping):
                    self._wake.wait()
                if not (self._finished or self._previews):
                    return
                finished = self._take_finished()
                preview = None if finished else self._previews.popitem()
            if finished:
                self._decode_finished(finished)
            elif preview is not None:
                self._decode_preview(*preview)

    def _warm_up(self) -> None:
        side_px = self._base.resolution_px
        shape = self._base.latent_shape(side_px, side_px)
        try:
            for count in {1, self._max_batch}:
                with self._queue.active():
                    noise = torch.zeros(1, *shape, device=self._base.device)
                self._pixels([_Latents(noise, 0, None)] * count)
        except Exception:  # such as too little memory for a full batch
            LOG.exception("warming up the decoder failed")

    def _take_finished(self) -> dict[Row, _Latents]:
        """The oldest row, among those of callers below their share if there are any, and the rows
        of its size that fit in one batch with it."""
        rows = [row for row in self._finished if self._shares.goes_first(row.waiting)]
        most = 1 if self._shares.below and not rows else self._max_batch
        rows = rows or list(self._finished)
        same = [row for row in rows if row.waiting.size == rows[0].waiting.size]
        return {row: self._finished.pop(row) for row in same[:most]}

    def _decode_finished(self, rows: dict[Row, _Latents]) -> None:
        wanted = {row: latents for row, latents in rows.items() if not row.ticket.ended}
        for row in rows.keys() - wanted.keys():
            self._on_end(row, False)
        started_s = time.monotonic()
        failed: Exception | None = None
        try:
            pixels, is_finite = self._pixels(list(wanted.values()))
        except Exception as error:
            LOG.exception("decoding failed")
            failed = without_frames(error)
        if failed is not None:  # outside the handler, which holds the failed call's memory
            self._fail(wanted, failed)
            return
        ended_s = time.monotonic()
        for row, picture, finite in zip(wanted, pixels, is_finite, strict=True):
            try:
                if finite:
                    metadata = row.metadata(self._base, ended_s, ended_s - started_s)
                    row.ticket.succeed(Picture(picture, metadata))
                else:
                    row.ticket.fail(_not_finite(row))
            except Exception:  # this thread must survive any error
                LOG.exception("delivering an image failed")
                row.ticket.fail(FarmError("the image could not be delivered", "try again"))
            self._on_end(row, row.ticket.generated)

    def _fail(self, rows: dict[Row, _Latents], error: Exception) -> None:
        """Handle rows that could not be decoded together: decode each alone, or fail it."""
        if len(rows) > 1:
            for row, latents in rows.items():
                self._decode_finished({row: latents})
            return
        for row in rows:
            failure = FarmError("the image could not be decoded", "try again")
            row.ticket.fail(caused_by(error, failure))
            self._on_end(row, False)

    @torch.no_grad()
    def _pixels(self, latents: list[_Latents]) -> tuple[list[NDArray[np.uint8]], list[bool]]:
        """uint8 [H, W, 3] for each latent, and whether it was finite."""
        if not latents:
            return [], []
        with self._queue.active(*(item.made for item in latents)):
            # ends with a copy to the host, for which the caller keeps the latents: when another
            # queue gets their memory, nothing here reads them any more
            return self._decoded(latents)

    def _decoded(self, latents: list[_Latents]) -> tuple[list[NDArray[np.uint8]], list[bool]]:
        latents_BCHW = torch.cat([item.latents_1CHW for item in latents])
        is_finite_B = torch.isfinite(latents_BCHW).flatten(1).all(1)
        decoded_B3PP = self._base.decode(latents_BCHW)
        is_finite_B &= torch.isfinite(decoded_B3PP).flatten(1).all(1)
        pixels_BPP3 = to_uint8(torch.nan_to_num(decoded_B3PP)).numpy()
        return list(pixels_BPP3), is_finite_B.tolist()

    def _decode_preview(self, row: Row, preview: _Latents) -> None:
        if row.ticket.ended:
            return
        try:
            pixels, _ = self._pixels([preview])
        except Exception:  # previews are optional
            LOG.exception("decoding a preview failed")
            return
        row.ticket.report(Progress("denoising", preview.step, row.sampler.num_steps, pixels[0]))


def _not_finite(row: Row) -> FarmError:
    names = ", ".join(ref.label for ref, _ in row.request.adapters)
    if not names:
        return FarmError("the base model produced values that are not finite", "load it in float32")
    return AdapterFileError(
        f"adapter {names} produced values that are not finite",
        "use a smaller adapter weight or guidance, or train it again",
    )


def _has_images(vae: Any) -> bool:
    """Whether a VAE can have the channels-last layout; one of videos cannot."""
    return vae is not None and all(weight.ndim < 5 for weight in vae.parameters())
