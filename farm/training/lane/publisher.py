"""Writes a lane's output to the store: checkpoints of running jobs, adapters of finished ones.

Owns the files of a checkpoint and the threads that write them and publish adapters. The
training thread submits copies and continues. A job's writes are done in the order of submission,
and its checkpoints are deleted once its adapter is committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)

from farm.adapters.files.folder import Form, save_adapter
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.errors import StoreError, StoreUnusable
from farm.retries import OUTAGE_BUDGET_S
from farm.storage import Store
from farm.store_trouble import TroubleNote
from farm.training.dispatch.messages import Assignment, JobResult
from farm.training.lane.checkpoints import checkpoint_folder
from farm.training.lane.scratch import scratch_folder
from farm.training.slots.checkpoint import FACTS_NAME, TENSORS_NAME, SlotState

__all__ = ["FinishedJob", "Publisher", "load_checkpoint"]

HURRIED_S = 15.0
"""How long writes are retried once the lane has to return."""

UNPUBLISHED = "could not be published"


@dataclass(frozen=True)
class FinishedJob:
    """A trained adapter, copied off the device, and the names it is published under."""

    assignment: Assignment
    record: AdapterRecord
    weights: AdapterWeights
    samples: tuple[Image.Image, ...]
    samples_of_others: tuple[Image.Image, ...] = ()
    """Images of prompts that only the job's other names have."""

    @property
    def key(self) -> str:
        """The job's key."""
        return self.assignment.key


class Publisher:
    """Writes in the background. ``close`` waits for all submitted writes."""

    def __init__(
        self,
        store: Store,
        base: Base,
        forms: tuple[Form, ...],
        done: Callable[[JobResult], None],
        *,
        num_threads: int = 2,
        trouble: TroubleNote | None = None,
    ) -> None:
        """``done`` is called with the result of every published job, from another thread.

        Args:
            trouble: where failures and successes of writes are noted.
        """
        self._trouble = trouble or TroubleNote()
        self._hurried = threading.Event()
        self._hurried_at = 0.0
        self._store, self._registry = store, Registry(store)
        self._base, self._forms, self._done = base, forms, done
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="publish")
        self._last: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def checkpoint(self, state: SlotState) -> None:
        """Save a running job's state in the background."""
        self._submit(state.key, lambda: self._save_checkpoint(state))

    def publish(self, job: FinishedJob) -> None:
        """Commit a finished job's adapter in the background."""
        self._submit(job.key, lambda: self._publish(job))

    def hurry(self) -> None:
        """The lane has to return: from now on, retry a failing store only for ``HURRIED_S``."""
        if not self._hurried.is_set():
            self._hurried_at = time.monotonic()
            self._hurried.set()

    def wait(self) -> None:
        """Wait until all submitted writes are done or have failed."""
        with self._lock:
            pending = list(self._last.values())
        for future in pending:
            future.exception()

    def close(self) -> None:
        """Wait, and end the threads."""
        self.wait()
        self._pool.shutdown()

    def _submit(self, key: str, write: Callable[[], None]) -> None:
        with self._lock:
            before = self._last.get(key)

            def in_turn() -> None:
                if before is not None:
                    before.exception()  # waits; errors are already handled
                write()

            future = self._pool.submit(in_turn)
            self._last[key] = future
        future.add_done_callback(lambda ended: self._forget(key, ended))

    def _forget(self, key: str, ended: Future[None]) -> None:
        with self._lock:
            if self._last.get(key) is ended:
                del self._last[key]

    def _save_checkpoint(self, state: SlotState) -> None:
        folder = checkpoint_folder(state.key)
        if self._is_hopeless or not state.is_finite:
            return  # a job whose weights are not finite fails, and resumes from the one before
        try:
            files = state.to_files()
            # the facts are written last: they mark the checkpoint as complete
            for name in (TENSORS_NAME, FACTS_NAME):
                self._store.write(f"{folder}/{state.step:07d}/{name}", files[name])
            for older in self._store.list(folder):
                if older < f"{state.step:07d}":
                    self._store.delete(f"{folder}/{older}")
            self._trouble.succeeded()
        except (StoreError, StoreUnusable) as error:
            # the job continues; after a lane's death it repeats more steps
            self._trouble.failed(error)

    def _publish(self, job: FinishedJob) -> None:
        key = job.key
        try:
            for attempt in Retrying(
                stop=self._is_out_of_patience,
                wait=wait_random_exponential(multiplier=1, max=20),
                retry=retry_if_exception_type((StoreError, StoreUnusable)),
                sleep=self._pause,
                reraise=True,
            ):
                with attempt:
                    is_new = self._save_and_commit(job)
            self._trouble.succeeded()
            self._drop_checkpoints(key)
            result = JobResult(
                key,
                "committed" if is_new else "reused",
                step=job.record.steps_trained,
                seconds=job.record.gpu_seconds,
            )
        except (StoreError, StoreUnusable) as error:
            result = JobResult.of_error(key, "released", error, UNPUBLISHED)
        except Exception as error:  # a bug in one adapter's files must not end the run
            result = JobResult.of_error(key, "failed", error, UNPUBLISHED)
        self._done(result)

    @property
    def _is_hopeless(self) -> bool:
        """Whether a lane that has to return should stop retrying writes."""
        return self._hurried.is_set() and self._trouble.current() is not None

    def _is_out_of_patience(self, state: RetryCallState) -> bool:
        """Tenacity's stop condition; also records the failure."""
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, StoreError | StoreUnusable):
            self._trouble.failed(error)
        if self._hurried.is_set():
            if isinstance(error, StoreUnusable):
                return True
            return time.monotonic() - self._hurried_at > HURRIED_S
        return (state.seconds_since_start or 0.0) > OUTAGE_BUDGET_S

    def _pause(self, seconds: float) -> None:
        """Seconds between two attempts; a lane that has to return retries at once."""
        if self._hurried.is_set():
            time.sleep(min(seconds, 1.0))
        else:
            self._hurried.wait(seconds)

    def _save_and_commit(self, job: FinishedJob) -> bool:
        with scratch_folder("adapter") as folder:
            record = save_adapter(
                Path(folder),
                job.weights,
                job.record,
                self._base,
                forms=self._forms,
                samples=list(job.samples),
                samples_of_others=list(job.samples_of_others),
            )
            return self._registry.publish(
                record, folder, names=job.assignment.names, prompts=job.assignment.prompts
            )

    def _drop_checkpoints(self, key: str) -> None:
        try:
            self._store.delete(checkpoint_folder(key))
        except (StoreError, StoreUnusable) as error:
            # leftover files are harmless: a committed job never reads them
            self._trouble.failed(error)


def load_checkpoint(store: Store, key: str) -> SlotState | None:
    """The latest complete state of a job; None if there is none.

    An incomplete or unreadable checkpoint is skipped; the one before it is used.
    """
    folder = checkpoint_folder(key)
    for step in reversed(store.list(folder)):
        try:
            files = {
                name: store.read(f"{folder}/{step}/{name}") for name in (TENSORS_NAME, FACTS_NAME)
            }
            state = SlotState.from_files(files)
        except (FileNotFoundError, StoreError):
            continue
        if state.key == key:
            return state
    return None
