"""Prepares requests to join the batch, outside the denoising loop.

Owns the steps between the queue and the batch: loading adapters into host memory (the cache's
threads), reserving slots (all or none), copying into the slots, encoding prompts, and the initial
noise. Copying and text encoding run in a separate thread, and on a GPU in a queue of low priority,
so that the running batch never waits.

All methods are called from the engine's loop; results come back through ``post``.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import torch

from farm.adapters.weights import AdapterWeights
from farm.base.device.cuda_errors import caused_by
from farm.base.device.queues import Queue, adopt, mark, wait_for
from farm.base.interface import Base
from farm.errors import AdapterFileError, FarmError
from farm.serving.adapters.cache import HostedAdapter
from farm.serving.adapters.cache_tiers import Pinned
from farm.serving.adapters.prompts import has_text_layers, request_windows
from farm.serving.adapters.side import AdapterSide
from farm.serving.adapters.slots import Reservation
from farm.serving.engine.row import LoadedAdapter, Row, Waiting
from farm.serving.engine.sampler import Sampler
from farm.serving.engine.sharing.shares import Shares
from farm.serving.engine.sharing.urgent_first import UrgentFirst
from farm.serving.request import AdapterRef, Progress

__all__ = ["RowPreparer"]

LOG = logging.getLogger(__name__)

PATIENCE = 8
"""Requests that may overtake a request waiting for slots."""

Post = Callable[[Callable[[], None]], None]
"""Schedules a call in the engine's loop."""


@dataclass(eq=False)
class _Preparing:
    """One request between the queue and the batch."""

    waiting: Waiting
    hosted: dict[str, Pinned[HostedAdapter]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes that the loaded adapters take in slots."""
    reservations: list[Reservation] = field(default_factory=list)
    error: BaseException | None = None
    overtaken: int = 0
    """Later requests that got slots while it waited."""

    def unpin(self) -> None:
        """Release its adapters in the host tier."""
        for pinned in self.hosted.values():
            pinned.release()
        self.hosted.clear()


class RowPreparer:
    """Turns requests into rows."""

    def __init__(
        self,
        base: Base,
        adapters: AdapterSide,
        shares: Shares,
        *,
        post: Post,
        on_ready: Callable[[Row], None],
        on_failed: Callable[[Waiting, BaseException], None],
    ) -> None:
        """Create the preparer.

        Args:
            shares: requests of callers below their share are prepared first.
            post: schedules a call in the engine's loop.
            on_ready: called in the loop with each row that may join.
            on_failed: called in the loop with each request that cannot be generated.
        """
        self._base = base
        self._bank = adapters.bank
        self._slots = adapters.slots
        self._cache = adapters.cache
        self._prompts = adapters.prompts
        self._shares = shares
        self._post = post
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._blocked: deque[_Preparing] = deque()
        self._uses: dict[str, LoadedAdapter] = {}  # how the adapters in slots were loaded
        self._with_text: set[str] = set()
        self._worker = UrgentFirst("prepare")
        self._queue = Queue(base.device)
        self._jobs: set[_Preparing] = set()
        self._num_loading = 0
        self.slot_hits = 0

    @property
    def num_preparing(self) -> int:
        """Requests between the queue and the batch."""
        return len(self._jobs)

    @property
    def num_loading(self) -> int:
        """Requests that wait for an adapter to be loaded into host memory."""
        return self._num_loading

    def abandon(self, error: BaseException) -> None:
        """Fail all requests being prepared; nothing more is posted for them."""
        for job in self._jobs:
            job.waiting.ticket.fail(error)

    def close(self) -> None:
        """Stop the thread."""
        self._worker.close()

    def warm_up(self) -> None:
        """Encode a prompt in the preparing thread, so that the first request need not wait until
        libraries have loaded their kernels."""

        def encode() -> None:
            with self._queue.active():
                self._base.encode_prompts([""])
                wait_for(mark(self._base.device))

        self._worker.submit_first(encode).result()

    # -- in the loop --------------------------------------------------------------------------

    def begin(self, waiting: Waiting) -> None:
        """Start preparing a request from the fair queue."""
        job = _Preparing(waiting)
        self._jobs.add(job)
        try:
            self._check(waiting)
        except FarmError as error:
            self._end(job, error)
            return
        keys = waiting.keys
        if all(key in self._slots and key not in self._with_text for key in keys):
            self._enqueue(job)
            return
        waiting.ticket.report(Progress("loading", 0, waiting.request.steps))
        self._load(job)

    def retry(self) -> None:
        """Give slots to the waiting requests, in order, callers below their share first.

        A request that finds too few keeps its place. At most ``PATIENCE`` later requests may
        overtake it, and only if their adapters are already in slots, so that small requests never
        starve a large one.
        """
        short: _Preparing | None = None
        for job in sorted(self._blocked, key=lambda job: not self._shares.goes_first(job.waiting)):
            keys = job.waiting.keys
            if short is not None:
                if short.overtaken >= PATIENCE:
                    return
                if not all(key in self._slots for key in keys):
                    continue
            reservations = None
            if not job.waiting.ticket.ended:
                reservations = self._slots.reserve(keys, job.sizes)
                self._clear(self._slots.take_evicted())
            if reservations is None and not job.waiting.ticket.ended:
                short = short or job
                continue
            if short is not None:
                short.overtaken += 1
            self._blocked.remove(job)
            self._reserved(job, reservations)

    def release(self, reservations: list[Reservation]) -> None:
        """Release a row's slots."""
        self._clear(self._slots.release(reservations))
        if self._blocked:
            self.retry()

    def revoke(self, keys: frozenset[str]) -> None:
        """Empty the slots of revoked adapters, now or after their last row has left."""
        self._worker.submit(lambda: self._prompts.forget(keys))
        for key in keys:
            slot = self._slots.drop(key)
            self._clear([] if slot is None else [slot])

    def _check(self, waiting: Waiting) -> None:
        for ref, _ in waiting.request.adapters:
            if self._cache is None:
                raise AdapterFileError(
                    "this engine serves no adapters, only its base model", "start it with a store"
                )
            self._cache.check(ref)

    def _load(self, job: _Preparing) -> None:
        """Load all adapters into host memory; after the last one, continue in the loop."""
        assert self._cache is not None
        self._num_loading += 1
        refs = {ref.key: ref for ref, _ in job.waiting.request.adapters}
        missing = len(refs)
        lock = threading.Lock()
        hot = {key for key in refs if self._cache.is_hosted(key)}

        def landed(ref: AdapterRef, future: Future[Pinned[HostedAdapter]]) -> None:
            nonlocal missing
            error = future.exception()
            with lock:
                missing -= 1
                is_last = missing == 0
                if error is not None:
                    job.error = error
                else:
                    pinned = future.result()
                    job.hosted[ref.key] = pinned
                    job.waiting.uses[ref.key] = LoadedAdapter(
                        pinned.value.sha256,
                        "host" if ref.key in hot else pinned.value.tier,
                        0.0 if ref.key in hot else pinned.value.load_s,
                    )
            if is_last:
                self._post(functools.partial(self._loaded, job))

        for ref in refs.values():
            self._cache.acquire(ref).add_done_callback(functools.partial(landed, ref))

    def _loaded(self, job: _Preparing) -> None:
        self._num_loading -= 1
        if job.error is not None:
            self._end(job, job.error)
            return
        assert self._bank is not None
        for key, pinned in job.hosted.items():
            weights = pinned.value.weights.of_component(self._base.denoiser_name)
            job.sizes[key] = self._bank.num_bytes(weights)
        self._enqueue(job)

    def _enqueue(self, job: _Preparing) -> None:
        if not job.waiting.keys:  # the bare base needs no slot
            self._reserved(job, [])
            return
        refusal = self._slots.refusal(job.waiting.keys, job.sizes)
        if refusal is not None:
            self._end(job, refusal)
            return
        self._blocked.append(job)
        self.retry()

    def _reserved(self, job: _Preparing, reservations: list[Reservation] | None) -> None:
        if reservations is None:  # cancelled while waiting
            self._end(job, CancelledError())
            return
        job.reservations = reservations
        for reservation in reservations:
            key = reservation.key
            if reservation.is_fresh:
                if key not in job.hosted:  # evicted from its slot since ``begin``
                    self._again(job)
                    return
                self._uses[key] = job.waiting.uses[key]
                if has_text_layers(self._base, job.hosted[key].value.weights):
                    self._with_text.add(key)
            else:
                known = self._uses[key]
                job.waiting.uses[key] = LoadedAdapter(known.sha256, "slot", 0.0)
                self.slot_hits += 1
        self._worker.submit(lambda: self._prepare(job), lambda: self._is_urgent(job))

    def _again(self, job: _Preparing) -> None:
        """Undo a reservation and start again with loading."""
        reservations, job.reservations = job.reservations, []
        job.unpin()
        self._clear(self._slots.release(reservations))
        self._load(job)

    def _end(self, job: _Preparing, error: BaseException) -> None:
        self._jobs.discard(job)
        job.unpin()
        reservations, job.reservations = job.reservations, []
        self._on_failed(job.waiting, error)
        if reservations:  # else no slot is free that was not before
            self.release(reservations)

    def _finish(self, job: _Preparing, row: Row) -> None:
        self._jobs.discard(job)
        held = [self._bank.held(slot) for slot in row.slots] if self._bank is not None else []
        weights = [one.flat_P for one in held if one is not None]
        adopt((*row.tensors, *weights), None, self._base.device)
        self._on_ready(row)

    def _clear(self, slots: list[int]) -> None:
        # in the preparing thread, so that it precedes the next copy into the slot
        for slot in slots:
            assert self._bank is not None
            self._worker.submit_first(functools.partial(self._bank.clear_slot, slot))

    # -- in the preparing thread --------------------------------------------------------------

    def _is_urgent(self, job: _Preparing) -> bool:
        # but not before an earlier request has copied the weights that both use
        is_copied = all(one.is_fresh or one.ready.done() for one in job.reservations)
        return is_copied and self._shares.goes_first(job.waiting)

    def _prepare(self, job: _Preparing) -> None:
        try:
            with self._queue.active():
                self._copy(job)
                row = self._row(job)
                # here, so that the batch never waits for it
                wait_for(mark(self._base.device))
        except BaseException as error:
            if not isinstance(error, FarmError):
                LOG.exception("preparing a request failed")
                failure = FarmError("the request could not be prepared", "try again")
                error = caused_by(error, failure)
            self._post(functools.partial(self._end, job, error))
            return
        job.unpin()
        self._post(functools.partial(self._finish, job, row))

    def _copy(self, job: _Preparing) -> None:
        """Copy the adapters into their slots, even if the request has been cancelled: others may
        wait for the same slot."""
        assert self._bank is not None or not job.reservations
        failed: BaseException | None = None
        for reservation in job.reservations:
            if not reservation.is_fresh:
                continue
            weights = job.hosted[reservation.key].value.weights
            try:
                assert self._bank is not None
                self._bank.set_slot(
                    reservation.slot, weights.of_component(self._base.denoiser_name)
                )
            except BaseException as error:
                reservation.ready.set_exception(error)
                failed = error
            else:
                reservation.ready.set_result(None)
        if failed is not None:
            raise failed
        for reservation in job.reservations:
            reservation.ready.result(timeout=0)  # this thread copies in order, so it is ready

    @torch.no_grad()
    def _row(self, job: _Preparing) -> Row:
        waiting, request = job.waiting, job.waiting.request
        slot_of = {reservation.key: reservation.slot for reservation in job.reservations}
        factors: dict[str, float] = {}
        for ref, factor in request.adapters:
            factors[ref.key] = factors.get(ref.key, 0.0) + factor
        factors = {key: factor for key, factor in factors.items() if factor}  # 0 is the base
        texts = self._texts(job, factors)
        windows = request_windows(self._base, request)
        encode = functools.partial(self._prompts.encode, adapters=texts, windows=windows)
        width_px, height_px = waiting.size
        framed = functools.partial(
            self._base.for_images,
            width_px=width_px,
            height_px=height_px,
            guidance=request.guidance,
        )
        unprompted = None
        if self._base.needs_unprompted(request.guidance):
            unprompted = framed(encode(request.negative_prompt, is_negative=True))
        return Row(
            waiting=waiting,
            sampler=Sampler(
                self._base,
                request.scheduler,
                steps=request.steps,
                seed=request.seed,
                shape=self._base.latent_shape(*waiting.size),
            ),
            prompted=framed(encode(request.prompt)),
            unprompted=unprompted,
            slots=tuple(slot_of[key] for key in factors),
            factors=tuple(factors.values()),
            reservations=job.reservations,
        )

    def _texts(
        self, job: _Preparing, factors: dict[str, float]
    ) -> list[tuple[str, AdapterWeights, float]]:
        """The adapters of a request that have text-encoder layers."""
        return [
            (key, pinned.value.weights, factors[key])
            for key, pinned in job.hosted.items()
            if key in factors and has_text_layers(self._base, pinned.value.weights)
        ]
