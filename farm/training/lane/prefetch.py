"""The threads that prepare leased jobs for slots while the lane trains.

Owns prefetching: it decodes and encodes photos and reads prior sets and checkpoints, so that a
freed slot is filled at once. On a GPU, photos are encoded in a queue of low priority. Uses neither
the denoiser nor the text encoder.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

from farm.adapters.registry import Registry
from farm.base.device.queues import Queue
from farm.base.interface import Base
from farm.errors import StoreError, StoreUnusable, UserError
from farm.storage import Store
from farm.training.dispatch.messages import JobResult
from farm.training.lane.encode import prepare_photos
from farm.training.lane.job_table import JobTable, LaneJob
from farm.training.lane.publisher import load_checkpoint
from farm.training.lane.settings import Link
from farm.training.priors.generate import as_prior_set
from farm.training.slots.job import PriorSet

__all__ = ["Prefetcher"]

KEPT_PRIORS = 8
"""Number of prior sets kept in memory. With Ray they are views of shared memory."""


class Prefetcher:
    """Turns new leases of the table into ready jobs, or into results."""

    def __init__(
        self, base: Base, store: Store, table: JobTable, link: Link, *, num_threads: int
    ) -> None:
        self._base, self._store, self._table, self._link = base, store, table, link
        self._queue = Queue(base.device)
        self._registry = Registry(store)
        self._ready: deque[LaneJob] = deque()
        self._lock = threading.Lock()
        self._priors: OrderedDict[str, PriorSet] = OrderedDict()
        self._priors_lock = threading.Lock()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        self._feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)

    def start(self) -> None:
        """Start watching for leases."""
        self._feeder.start()

    def end(self) -> None:
        """Finish the jobs in preparation and end the threads."""
        self._ended.set()
        self._table.notify()
        self._feeder.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def num_ready(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._ready)

    def take(self) -> LaneJob | None:
        """The next ready job; None if there is none."""
        with self._lock:
            return self._ready.popleft() if self._ready else None

    def drop(self, keys: Collection[str]) -> None:
        """Discard ready jobs that are no longer wanted."""
        with self._lock:
            gone = [job.key for job in self._ready if job.key in keys]
            self._ready = deque(job for job in self._ready if job.key not in keys)
        for key in gone:
            self._table.end(JobResult(key, "released"))

    def _feed(self) -> None:
        while not self._ended.is_set():
            job = self._table.take_unprepared()
            if job is None:
                self._table.wait(0.5)
                continue
            with suppress(RuntimeError):  # the pool is shutting down
                self._pool.submit(self._prepare, job)

    def _prepare(self, job: LaneJob) -> None:
        table = self._table
        try:
            if self._registry.is_committed(job.key):
                self._reuse(job)
                return
            self._load_inputs(job)
        except StoreError as error:
            table.end(JobResult.of_error(job.key, "released", error))
        except StoreUnusable as error:  # not the job's fault
            table.trouble.failed(error)
            table.end(JobResult.of_error(job.key, "released", error))
        except UserError as error:
            table.end(JobResult.of_error(job.key, "rejected", error))
        except torch.OutOfMemoryError:
            is_shared = table.num_slots > 1
            table.end(table.too_large(job.key))
            if is_shared:  # a job in a single slot is not the cause and cannot be reduced
                table.out_of_memory = True
        except Exception as error:  # a bug with one job's photos must not end the lane
            table.end(JobResult.of_error(job.key, "failed", error, "could not be prepared"))
        else:
            with self._lock:
                self._ready.append(job)
            table.notify()

    def _load_inputs(self, job: LaneJob) -> None:
        spec = job.spec
        job.prior = self._prior_set(spec.prior_key) if spec.prior_key is not None else None
        with self._queue.active():  # ends with copies to the host
            job.photos = prepare_photos(self._base, spec)
        job.state = load_checkpoint(self._store, spec.key) if job.may_resume else None

    def _reuse(self, job: LaneJob) -> None:
        """Point this job's names to the adapter that another run has committed."""
        record = self._registry.record(job.key)
        for (namespace, name), prompts in job.assignment.views:
            self._registry.point(namespace, name, record, prompts=prompts)
        self._table.end(JobResult(job.key, "reused"))

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
