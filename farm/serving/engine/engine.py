"""The engine: a running batch in which every row may use a different adapter.

Owns the denoising loop: at each step requests join and leave, rows of one image size share a
pass, and sizes take turns. Admission accepts or refuses requests, the preparer prepares rows before
they join, the decoder produces pixels, and the cache holds adapters in memory. Needs only torch;
the endpoint wraps it.

One thread runs the loop and owns all state of the batch; other threads post calls to it.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from pathlib import Path

import torch

from farm.adapters.registry import is_revoked_among
from farm.base.device.cuda_errors import caused_by, device_is_lost, without_frames
from farm.base.device.queues import Mark, Queue, mark
from farm.base.interface import Base
from farm.errors import AdapterNotFound, FarmError, TooBusy
from farm.serving.adapters.cache import AdapterSource
from farm.serving.adapters.side import AdapterSide
from farm.serving.config import EngineConfig, EngineStats
from farm.serving.engine.admission import Admission
from farm.serving.engine.batch import Batch
from farm.serving.engine.counts import Counts
from farm.serving.engine.decoder import Decoder
from farm.serving.engine.denoiser import Denoiser
from farm.serving.engine.loop_calls import LoopCalls, stopping
from farm.serving.engine.preparer import RowPreparer
from farm.serving.engine.row import Row, Waiting, size_of
from farm.serving.engine.sampler import advance_all
from farm.serving.engine.sharing.shares import Shares
from farm.serving.engine.sizing.capacity import Capacity
from farm.serving.engine.sizing.measuring import UNMEASURED_ROWS, CapacityMeter
from farm.serving.request import GenerationRequest, Progress, Ticket

__all__ = ["Engine"]

LOG = logging.getLogger(__name__)

IDLE_S = 0.25
"""How often an idle loop checks for passed deadlines."""
MAX_FAILED_TURNS = 3
"""Consecutive failed turns after which all rows fail."""


class Engine:
    """Generates many images at once, with any adapters of a source."""

    def __init__(
        self,
        base: Base,
        source: AdapterSource | None = None,
        config: EngineConfig | None = None,
        *,
        cache_folder: str | Path | None = None,
    ) -> None:
        """Wrap the base and open the cache; ``start`` begins to serve.

        Args:
            base: owned by the engine until ``stop``; its layers are wrapped.
            source: of the adapters, such as a ``Registry``; None serves only the base.
            cache_folder: of the disk tier; required with a source.

        Raises:
            UserError: if the config does not fit the base.
        """
        self.base = base
        self.config = config or EngineConfig()
        self._inbox = LoopCalls()
        self._admission = Admission(self.config)
        self._batch = Batch(self.config.max_sizes)
        self._counts = Counts()
        self._shares = Shares()
        self._is_draining = False
        self._is_over = False
        self._is_lost = False
        self._stop_at_s = math.inf
        self._beat_s = time.monotonic()
        self._thread: threading.Thread | None = None
        self.capacity = Capacity.unmeasured(base, self.config.batch_rows or UNMEASURED_ROWS)
        self._adapters = AdapterSide(base, source, self.config, cache_folder)
        self.cache = self._adapters.cache
        if self.cache is not None:
            post = self._inbox.post
            self.cache.revocations.listen(lambda keys: post(lambda: self._revoked(keys)))
        self._meter: CapacityMeter | None = None
        self._denoiser = Denoiser(base, self._adapters.bank, pads=self.config.pad_rows)
        self._decoder = Decoder(base, self._shares, self.config.decode_batch, self._ended)
        self._preparer = RowPreparer(
            base,
            self._adapters,
            self._shares,
            post=self._inbox.post,
            on_ready=self._batch.add_ready,
            on_failed=self._failed,
        )

    # -- lifecycle ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start generating. An unknown batch limit is measured in the background."""
        meter = self._meter = CapacityMeter(self.base, self._adapters.bank, self.config)
        known = meter.known()
        self.capacity = known or self.capacity
        self._adapters.start()
        self._decoder.start(warms=self._denoiser.pads)
        run = functools.partial(self._run, mark(self.base.device))
        self._thread = threading.Thread(target=run, name="denoise", daemon=True)
        self._thread.start()
        warm = self._denoiser.warm_up if self._denoiser.pads else None
        if warm is not None:  # in the threads for which libraries will choose their kernels
            self._preparer.warm_up()
            self._inbox.result(lambda: meter.warm_up(self.capacity.rows, warm))
        if known is None:
            meter.begin(self._inbox.result, lambda: not self._counts.num_open, self._use, warm)
        else:
            meter.done.set()

    def wait_until_measured(self, timeout_s: float | None = None) -> bool:
        """Wait until the batch limit is known; False if it takes longer."""
        return self._meter is not None and self._meter.done.wait(timeout_s)

    def _use(self, capacity: Capacity) -> None:
        self._inbox.post(lambda: setattr(self, "capacity", capacity))

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, finish running ones for up to ``drain_s`` seconds, and stop.

        Unfinished requests fail with ``Draining``.
        """
        self._is_draining = True
        self._stop_at_s = time.monotonic() + drain_s
        self._inbox.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._meter is not None:
            self._meter.stop()
        self._preparer.close()
        self._decoder.stop()
        self._denoiser.close()
        self._adapters.close()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def healthy(self) -> bool:
        """Whether the loop and the decoder are running and the device is not lost."""
        is_alive = self._thread is not None and self._thread.is_alive() and self._decoder.alive
        is_stuck = time.monotonic() - self._beat_s >= self.config.stuck_after_s
        return is_alive and not self._is_lost and not is_stuck

    # -- requests -----------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queue a request; returns immediately.

        Raises:
            RequestRefused: if it cannot be generated under any load.
            TooBusy: if the backlog is too long in general or for the request's deadline.
            Draining: if the engine is stopping.
        """
        if self._is_draining or self._thread is None:
            raise stopping()
        self.config.limits.check(request)
        size = size_of(self.base, request)
        cost = self.capacity.cost(request, size)
        waiting = Waiting(Ticket(request), size, cost, time.monotonic())
        self._counts.add_submitted(waiting)
        try:
            self._admission.admit(waiting, self.capacity)
        except TooBusy:
            self._counts.remove_submitted(waiting)
            raise
        self._inbox.wake()
        if self._is_over:  # the loop has just ended and may have missed this request
            waiting.ticket.fail(stopping())
        return waiting.ticket

    @property
    def backlog_s(self) -> float:
        """Seconds of work waiting or running."""
        return self._admission.backlog_s(self.capacity)

    def stats(self) -> EngineStats:
        """Counts since the start, and current sizes."""
        stats = self._counts.snapshot()
        stats.preparing = self._preparer.num_preparing
        stats.running = len(self._batch)
        stats.decoding = self._decoder.backlog
        stats.batch_rows = self.capacity.rows
        stats.slot_hits = self._preparer.slot_hits
        self._admission.add_stats(stats, self.capacity)
        self._adapters.add_stats(stats)
        return stats

    # -- the loop -----------------------------------------------------------------------------

    def _run(self, loaded: Mark) -> None:
        num_failed = 0
        with torch.no_grad(), Queue(self.base.device, is_urgent=True).active(loaded):
            while not self._may_end():
                try:
                    self._turn()
                    num_failed = 0
                except Exception as error:  # the loop must survive any error
                    LOG.exception("a turn of the engine failed")
                    self._note(error)
                    num_failed += 1
                    if num_failed >= MAX_FAILED_TURNS:
                        self._drop_all(FarmError("the engine failed", "try again"))
        self._is_over = True
        self._inbox.end()
        self._drop_all(stopping())

    def _may_end(self) -> bool:
        if not self._is_draining:
            return False
        return not self._counts.num_open or time.monotonic() >= self._stop_at_s

    def _turn(self) -> None:
        self._beat_s = time.monotonic()
        self._read_inbox()
        self._drop_ended()
        below = self._shares.update(self._counts.callers)
        self._let_go(below)
        for row in self._batch.join(self.capacity, below):
            row.joined_s = time.monotonic()
            row.ticket.report(Progress("denoising", 0, row.sampler.num_steps))
        rows = self._batch.choose(self.capacity, below)
        if rows:
            self._step(rows)

    def _read_inbox(self) -> None:
        """Run the calls of other threads; wait for more if there is nothing to generate."""
        self._inbox.run_waiting(IDLE_S if self._batch.is_idle else 0.0)

    def _drop_ended(self) -> None:
        """Drop cancelled requests, and those whose deadline passed before they started."""
        for waiting in self._admission.drop_ended():
            late = TooBusy("the deadline passed before the image was started", "try again later")
            self._failed(waiting, late)
        for row in self._batch.leave_where(lambda row: row.ticket.ended):
            self._left(row)
            self._ended(row, False)

    def _let_go(self, below: frozenset[str]) -> None:
        """Start preparing requests that could join soon, or are of callers below their share."""
        window = self.config.lookahead or self.capacity.rows
        preparer = self._preparer
        while preparer.num_loading < self.config.max_loading:
            # those loading an adapter do not count, so that others join without waiting for it
            ahead = preparer.num_preparing - preparer.num_loading + self._batch.num_ready
            if ahead >= (2 * window if below else window):
                return
            waiting = self._admission.let_go(below, only=ahead >= window)
            if waiting is None:
                return
            preparer.begin(waiting)

    def _step(self, rows: list[Row]) -> None:
        """One pass, then each row's own scheduler step."""
        started_s = time.monotonic()
        failed: Exception | None = None
        try:
            predictions_PCHW = self._denoiser.predict(rows)
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError):
                LOG.exception("a pass of %d images failed", len(rows))
            failed = without_frames(error)
        if failed is not None:  # outside the handler, which holds the failed pass's memory
            is_full = isinstance(failed, torch.OutOfMemoryError)
            self._shrink(rows) if is_full else self._isolate(rows)
            return
        num_rows = sum(row.num_rows for row in rows)
        for row in rows:
            row.count_pass(num_rows)
        self._advance(rows, predictions_PCHW)
        self.capacity.pace()
        self._count_pass(rows, num_rows, time.monotonic() - started_s)
        self._finish([row for row in rows if row.sampler.is_done])

    def _advance(self, rows: list[Row], predictions_PCHW: torch.Tensor) -> None:
        errors = advance_all([row.sampler for row in rows], predictions_PCHW)
        for row, failed in zip(rows, errors, strict=True):
            if failed is None:
                self._report(row)
            else:
                failure = FarmError("the scheduler failed", "try another scheduler")
                self._fail_row(row, caused_by(failed, failure))

    def _report(self, row: Row) -> None:
        step, steps = row.sampler.step, row.sampler.num_steps
        row.ticket.report(Progress("denoising", step, steps))
        every = row.request.preview_every
        if every and step < steps and step % every == 0:
            self._decoder.preview(row)

    def _count_pass(self, rows: list[Row], num_rows: int, pass_s: float) -> None:
        self._counts.add_pass(num_rows, pass_s)
        self._admission.count_pass(sum(row.step_cost for row in rows), pass_s)
        self._shares.count((row.request.tenant, row.step_cost) for row in rows)

    def _finish(self, rows: list[Row]) -> None:
        """Pass denoised rows to the decoder."""
        for row in rows:
            self._batch.leave(row)
            row.denoised_s = time.monotonic()
            self._left(row)
            row.ticket.report(Progress("decoding", row.sampler.num_steps, row.sampler.num_steps))
        if rows:
            self._decoder.finish(rows)

    # -- leaving ------------------------------------------------------------------------------

    def _left(self, row: Row) -> None:
        """Handle a row that has left the batch."""
        if not self._batch.has(row.waiting.size):
            self._denoiser.forget(row.waiting.size)
        self._admission.give_up(row.remaining_cost)
        reservations, row.reservations = row.reservations, []
        self._preparer.release(reservations)

    def _note(self, error: BaseException | None) -> None:
        """Record a lost device: the engine is then unhealthy and is replaced."""
        if device_is_lost(error) and not self._is_lost:
            LOG.error("the device is lost; this process can no longer generate images")
            self._is_lost = True

    def _ended(self, row: Row, is_generated: bool) -> None:
        self._note(row.ticket.error)
        self._counts.add_ended(row.waiting, is_generated=is_generated)

    def _failed(self, waiting: Waiting, error: BaseException) -> None:
        waiting.ticket.fail(error)
        self._note(error)
        if waiting.popped_s:
            self._admission.give_up(waiting.cost)
        self._counts.add_ended(waiting)

    def _fail_row(self, row: Row, error: BaseException) -> None:
        self._note(error)
        row.ticket.fail(error)  # ``_drop_ended`` removes it in the next turn

    def _revoked(self, keys: frozenset[str]) -> None:
        """Remove revoked adapters from the batch and the slots."""
        for row in self._batch:
            for ref, _ in row.request.adapters:
                if is_revoked_among(keys, ref.key, ref.namespace):
                    gone = AdapterNotFound(f"no adapter {ref.label}", "it was withdrawn", "model")
                    self._fail_row(row, gone)
        self._preparer.revoke(frozenset(key.partition("@")[0] for key in keys))

    def _shrink(self, rows: list[Row]) -> None:
        """Handle a pass that did not fit in memory: halve the limit, or fail a single row."""
        self._denoiser.forget(rows[0].waiting.size)
        self._denoiser.free_graphs()
        num_rows = sum(row.num_rows for row in rows)
        LOG.warning("a pass of %d rows ran out of memory", num_rows)
        self.capacity.release_memory()
        if len(rows) == 1:
            error = TooBusy("the image does not fit in memory", "request a smaller one")
            self._fail_row(rows[0], error)
            return
        self._counts.add_out_of_memory()
        self.capacity.shrink(rows[0].waiting.size, num_rows // 2)

    def _isolate(self, rows: list[Row]) -> None:
        """Handle a failed pass: run each row alone, and fail only those that fail again."""
        self._denoiser.forget(rows[0].waiting.size)
        for row in rows:
            try:
                self._advance([row], self._denoiser.predict([row]))
            except Exception as error:
                failure = FarmError("the image could not be generated", "try again")
                self._fail_row(row, caused_by(error, failure))
        self._finish([row for row in rows if row.sampler.is_done and not row.ticket.ended])

    def _drop_all(self, error: FarmError) -> None:
        """Fail every request that is not yet being decoded; the others still finish."""
        for waiting in self._admission.drop_all():
            self._failed(waiting, error)
        for row in self._batch.leave_where(lambda _: True):
            row.ticket.fail(error)
            self._left(row)
            self._ended(row, False)
        self._preparer.abandon(error)
