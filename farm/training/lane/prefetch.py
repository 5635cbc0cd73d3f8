"""The threads that make leases ready for slots while the lane trains.

Owns prefetching: photos are decoded and encoded, prior sets and checkpoints fetched, so that a
freed slot is filled at once. Nothing here touches the denoiser or the text encoder.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch

from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.errors import StoreError, StoreUnusable, UserError
from farm.intake.job import JobSpec
from farm.storage import Store
from farm.training.dispatch.messages import JobResult
from farm.training.lane.encode import PreparedPhotos, prepare_photos
from farm.training.lane.job_table import JobTable, LeasedJob
from farm.training.lane.publisher import load_checkpoint
from farm.training.lane.settings import Link
from farm.training.priors.storage import as_prior_set
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.job import PriorSet

__all__ = ["Prefetcher", "ReadyJob"]

KEPT_PRIORS = 8
"""Prior sets kept at hand; further ones are asked for again. Views of shared memory under Ray."""


@dataclass(frozen=True)
class ReadyJob:
    """A lease that only waits for a slot."""

    held: LeasedJob
    photos: PreparedPhotos
    prior: PriorSet | None
    state: SlotState | None
    """Where a killed lane left it."""

    @property
    def spec(self) -> JobSpec:
        """Of the job."""
        return self.held.lease.assignment.spec


class Prefetcher:
    """Turns fresh leases of the book into ready jobs, or into results."""

    def __init__(
        self, base: Base, store: Store, held: JobTable, link: Link, *, num_threads: int
    ) -> None:
        self._base, self._store, self._held, self._link = base, store, held, link
        self._registry = Registry(store)
        self._ready: deque[ReadyJob] = deque()
        self._lock = threading.Lock()
        self._priors: OrderedDict[str, PriorSet] = OrderedDict()
        self._priors_lock = threading.Lock()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        self._feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)

    def start(self) -> None:
        """Begin to watch for leases."""
        self._feeder.start()

    def end(self) -> None:
        """Finish what is under way and end the threads."""
        self._ended.set()
        with self._held.changed:
            self._held.changed.notify_all()
        self._feeder.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def num_ready(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._ready)

    def take(self) -> ReadyJob | None:
        """The next ready job; None if there is none."""
        with self._lock:
            return self._ready.popleft() if self._ready else None

    def drop(self, keys: Collection[str]) -> None:
        """Forget ready jobs that are wanted no more."""
        with self._lock:
            gone = [job.spec.key for job in self._ready if job.spec.key in keys]
            self._ready = deque(job for job in self._ready if job.spec.key not in keys)
        for key in gone:
            self._held.end(JobResult(key, "released"))

    def _feed(self) -> None:
        while not self._ended.is_set():
            job = self._held.take_fresh()
            if job is None:
                with self._held.changed:
                    self._held.changed.wait(timeout=0.5)
                continue
            with suppress(RuntimeError):  # the pool is shutting down
                self._pool.submit(self._prepare, job)

    def _prepare(self, job: LeasedJob) -> None:
        spec = job.lease.assignment.spec
        try:
            if self._registry.is_committed(spec.key):
                self._reuse(job)
                return
            prior = self._prior_set(spec.prior_key) if spec.prior_key is not None else None
            photos = prepare_photos(self._base, spec)
            state = load_checkpoint(self._store, spec.key) if job.lease.may_resume else None
        except StoreError as error:
            self._held.end(JobResult.of_error(spec.key, "released", error))
        except StoreUnusable as error:  # not the job's fault
            self._held.trouble.failed(error)
            self._held.end(JobResult.of_error(spec.key, "released", error))
        except UserError as error:
            self._held.end(JobResult.of_error(spec.key, "rejected", error))
        except torch.OutOfMemoryError:
            is_shared = self._held.num_slots > 1
            self._held.end(self._held.too_large(spec.key))
            if is_shared:  # a single slot's job is not to blame, and cannot get out of the way
                self._held.is_short = True
        except Exception as error:  # one job's photos must not end the lane
            self._held.end(JobResult.of_error(spec.key, "failed", error, "could not be prepared"))
        else:
            with self._lock:
                self._ready.append(ReadyJob(job, photos, prior, state))
            with self._held.changed:
                self._held.changed.notify_all()

    def _reuse(self, job: LeasedJob) -> None:
        """Another run committed this job meanwhile: only its names are missing."""
        assignment = job.lease.assignment
        record = self._registry.record(assignment.spec.key)
        for (namespace, name), prompts in assignment.views:
            self._registry.point(namespace, name, record, prompts=prompts)
        self._held.end(JobResult(assignment.spec.key, "reused"))

    def _prior_set(self, prior_key: str) -> PriorSet:
        with self._priors_lock:
            found = self._priors.get(prior_key)
            if found is None:
                found = as_prior_set(self._link.prior(prior_key), self._base)
                self._priors[prior_key] = found
            self._priors.move_to_end(prior_key)
            while len(self._priors) > KEPT_PRIORS:
                self._priors.popitem(last=False)
            return found
