"""Measures the batch limit on the real base, once per base and machine, while serving.

Owns the measurement and the file with its result. The engine's loop runs the passes, one at a time
between the steps of its images, because a denoiser runs one pass at a time.

Legend: R rows, C channels, H W latent.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.bank.row_weights import RowWeights
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base, Conditioning
from farm.errors import Draining
from farm.file_facts import cache_folder
from farm.keys import digest
from farm.serving.config import EngineConfig
from farm.serving.engine.passes import padded_counts
from farm.serving.engine.sizing.batch_size_search import BatchSizeCurve, find_batch_size
from farm.serving.engine.sizing.capacity import Capacity
from farm.serving.memory import device_memory

__all__ = ["CapacityMeter"]

LOG = logging.getLogger(__name__)

REPEATS = 5
"""Passes timed per batch size; the fastest counts, because noise only adds time."""
ENOUGH_S = 2.0
"""Maximum time for the passes of one batch size: long passes vary little."""
MAX_PATIENCE_S = 15.0
"""Total time that a measurement waits for an idle engine before it runs between pictures' steps."""
IDLE_LOOK_S = 0.02
PROBE_ENDINGS = ("to_q", "to_k", "to_v", "to_out.0")
PROBE_RANK = 8
"""Rank of the adapters used for measuring, on the attention layers if the base has them."""
UNMEASURED_ROWS = 4
"""Rows of a full pass until the measurement ends."""

InLoop = Callable[[Callable[[], float]], float]
"""Runs a call in the engine's loop and waits for its result."""
Warm = Callable[[int, Conditioning], None]
"""Runs passes of a number of rows with a prompt; see ``Denoiser.warm_up``."""


class CapacityMeter:
    """Finds an engine's batch limit."""

    def __init__(self, base: Base, bank: MixedBank | None, config: EngineConfig) -> None:
        """Prepare the measurement; runs only the text encoder, once."""
        self._base, self._bank, self._config = base, bank, config
        self._weights = None if bank is None else RowWeights(bank)
        side_px = base.resolution_px
        self._prompt: Conditioning = base.for_images(
            base.encode_prompts([""]), width_px=side_px, height_px=side_px, guidance=1.0
        )
        self._peak_bytes = {0: 0}
        self._path = _remembered_at(base, config)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.done = threading.Event()
        """Set once the limit is known, or the measurement has failed."""

    def known(self) -> Capacity | None:
        """The limit, if it was configured or already measured on this machine."""
        config = self._config
        if config.batch_rows is not None:
            return Capacity.unmeasured(self._base, config.batch_rows)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads(self._path.read_text())
            seconds = {int(rows): float(value) for rows, value in saved["seconds_by_rows"].items()}
            knee, peak = BatchSizeCurve(int(saved["rows"]), seconds), int(saved["peak_bytes"])
            if knee.rows in seconds and knee.rows <= config.max_batch_rows and self._has(peak):
                return Capacity(self._base, knee, memory_reserve=config.memory_reserve)
        return None

    def warm_up(self, rows: int, warm: Warm) -> float:
        """Run a pass of each size up to a number of rows, largest first, in the calling thread.

        A first pass takes seconds to load kernels, and each new size some tenths of a second:
        requests would wait, and measurements be far too slow.
        """
        for count in padded_counts(rows):
            self._warm_one(count, warm)
        return self._end_probe()

    def _warm_one(self, rows: int, warm: Warm) -> float:
        self._fill_slot()
        warm(rows, self._prompt)
        _synchronize(self._base.device)
        return 0.0

    def begin(
        self,
        in_loop: InLoop,
        is_idle: Callable[[], bool],
        use: Callable[[Capacity], None],
        warm: Warm | None,
    ) -> None:
        """Measure in a separate thread.

        Args:
            in_loop: runs a pass in the engine's loop; raises once the loop has ended.
            is_idle: whether the engine has nothing to generate, so measuring delays none.
            use: called with the limit.
            warm: warms up the sizes of passes within the limit; None if they need not be.
        """

        def measure() -> None:
            try:
                capacity = self._measured(in_loop, is_idle)
                if warm is not None:
                    for count in padded_counts(capacity.rows):
                        in_loop(functools.partial(self._warm_one, count, warm))
                    in_loop(self._end_probe)
                use(capacity)
            except (Draining, InterruptedError):  # the engine stops
                pass
            except Exception:
                LOG.exception("the batch limit could not be measured")
            finally:
                self.done.set()

        self._thread = threading.Thread(target=measure, name="measure", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop measuring; the loop must still be running, or have failed all posted calls."""
        self._stopped.set()
        self.done.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # -- in the measuring thread --------------------------------------------------------------

    def _measured(self, in_loop: InLoop, is_idle: Callable[[], bool]) -> Capacity:
        patience_s = MAX_PATIENCE_S

        def run(call: Callable[[], float]) -> float:
            nonlocal patience_s
            while patience_s > 0 and not is_idle() and not self._stopped.is_set():
                time.sleep(IDLE_LOOK_S)
                patience_s -= IDLE_LOOK_S
            if self._stopped.is_set():
                raise InterruptedError
            return in_loop(call)

        def pass_seconds(rows: int) -> float:
            ready: list[Callable[[], None]] = []

            def first() -> float:
                ready.append(self._first_passes(rows))
                return 0.0

            try:
                run(first)
                timed_s: list[float] = []
                while len(timed_s) < REPEATS and sum(timed_s) < ENOUGH_S:
                    timed_s.append(run(lambda: self._timed(ready[0])))
                return min(timed_s)
            except torch.OutOfMemoryError:  # another program may have taken the free memory
                if rows == 1:
                    raise
                return math.inf

        try:
            knee = find_batch_size(
                pass_seconds, max_rows=self._config.max_batch_rows, fits=self._fits
            )
        finally:
            with contextlib.suppress(Exception):
                in_loop(self._end_probe)
        capacity = Capacity(self._base, knee, memory_reserve=self._config.memory_reserve)
        self._remember(knee)
        LOG.info("batch limit: %s", capacity.reason)
        return capacity

    def _fits(self, rows: int) -> bool:
        return self._has(
            self._peak_bytes[max(self._peak_bytes)] * rows // max(1, *self._peak_bytes)
        )

    def _has(self, num_bytes: int) -> bool:
        if self._base.device.type != "cuda":
            return True
        free, total = device_memory(self._base.device)
        return num_bytes < free - self._config.memory_reserve * total

    def _remember(self, knee: BatchSizeCurve) -> None:
        saved = {
            "rows": knee.rows,
            "seconds_by_rows": knee.seconds_by_rows,
            "peak_bytes": self._peak_bytes.get(knee.rows, 0),
        }
        with contextlib.suppress(OSError):  # with a read-only home, each start measures again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside = self._path.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(saved))
            aside.replace(self._path)

    # -- in the engine's loop -----------------------------------------------------------------

    def _first_passes(self, rows: int) -> Callable[[], None]:
        """A pass, run twice if it is short, so that the layers' caches are filled."""
        before = _allocated(self._base.device)
        run = self._pass_of(rows)
        if self._timed(run) < ENOUGH_S:
            run()
        self._peak_bytes[rows] = max(0, _peak(self._base.device) - before)
        return run

    def _pass_of(self, rows: int) -> Callable[[], None]:
        """A pass like those of a running batch: an adapter for each row, and repeated prompts."""
        base, weights = self._base, self._weights
        shape = base.latent_shape(base.resolution_px, base.resolution_px)
        latents_RCHW = torch.zeros(rows, *shape, dtype=base.dtype, device=base.device)
        timesteps_R = torch.full((rows,), 500.0, device=base.device)
        prompts = self._prompt.repeat(rows)
        if weights is not None:
            self._fill_slot()
            weights.assign([[0]] * rows)

        @torch.no_grad()
        def run() -> None:
            with nullcontext() if weights is None else weights.active():
                base.denoise(latents_RCHW, timesteps_R, prompts)

        return run

    def _fill_slot(self) -> None:
        """Put an adapter into the bare base's own slot, which no image uses."""
        if self._bank is not None and self._bank.held(0) is None:
            self._bank.set_slot(0, _zero_adapter(self._bank))

    def _timed(self, run: Callable[[], None]) -> float:
        _synchronize(self._base.device)
        started_s = time.perf_counter()
        run()
        _synchronize(self._base.device)
        return time.perf_counter() - started_s

    def _end_probe(self) -> float:
        if self._bank is not None and self._weights is not None:
            self._bank.clear_slot(0)
            self._weights.assign([])
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()  # for other programs on the device
        return 0.0


def _zero_adapter(bank: MixedBank) -> AdapterWeights:
    names = [name for name in bank.layer_names if name.endswith(PROBE_ENDINGS)]
    layers = {}
    for name in names:
        num_inputs, num_outputs, kernel = bank.size_of(name)
        if not kernel:
            down, up = torch.zeros(PROBE_RANK, num_inputs), torch.zeros(num_outputs, PROBE_RANK)
            layers[name] = LayerWeights(down, up)
    return AdapterWeights.with_alpha(layers, PROBE_RANK)


def _remembered_at(base: Base, config: EngineConfig) -> Path:
    """The file of a measurement; its name covers everything that changes the result."""
    device = base.device
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_gpu else _processor()
    facts = [base.fingerprint, str(base.dtype), where, torch.__version__, config.max_batch_rows]
    return cache_folder() / "batch-limits" / f"{digest(facts)[:32]}.json"


def _processor() -> str:
    return f"{platform.machine()} {platform.processor()} {os.cpu_count()} {torch.get_num_threads()}"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
