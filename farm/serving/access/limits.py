"""Limits per request and per key, enforced before any image is started.

Owns the limits and the counts per key. The engine limits its own backlog; these limits protect the
endpoint from a single caller. Counts are per ingress process: with several of them a key gets its
rate from each.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import Field

from farm.errors import RequestRefused, TooBusy
from farm.serving.request import RequestLimits

__all__ = ["Limits", "RateLimiter", "RefusalPace", "WaitingRoom"]

MAX_TRACKED_KEYS = 10_000
REFUSALS_AT_ONCE = 10
"""Refusals that a caller receives without delay, after a pause."""
MAX_DELAYED_REFUSALS = 64
"""Refusals of one caller that may wait at once: each holds a connection."""
MAX_PICTURES = 10
"""``n`` of one request; OpenAI's own limit."""


class Limits(RequestLimits):
    """Limits of a request; requests over them are refused with 400, 413 or 429."""

    max_body_bytes: int = Field(256 * 1024, ge=1024)
    """Maximum size of a request's JSON."""
    body_timeout_s: float = Field(30.0, gt=0)
    """From the end of a request's head to the end of its body."""
    failed_keys_per_minute: int = Field(60, ge=1)
    """Invalid keys from one address before more are refused with 429. Valid keys are accepted."""
    refusals_per_second: float = Field(50.0, gt=0)
    """Per key, or per address without a valid key: further refusals (4xx) are delayed, so that a
    flood of bad requests leaves the interpreter to the engine and to other callers."""
    store_max_age_s: float = Field(15.0, gt=0)
    """Maximum age of a key, name or revocation while the store does not answer; beyond it requests
    are answered with 503."""
    write_timeout_s: float = Field(40.0, gt=0)
    """How long one event of a stream may wait for a client that does not read."""
    max_pictures: int = Field(10, ge=1, le=MAX_PICTURES)
    """``n`` of one request; OpenAI's own limit."""
    min_side_px: int = Field(64, ge=8)
    max_pixel_steps: float = Field(1024 * 1024 * 50 * 10, gt=0)
    """Maximum cost of a request: width × height × steps × n. Ten 1024 px images of 50 steps."""
    pictures_per_minute: int = Field(600, ge=1)
    """Per key, unless the key has its own limit; a minute's worth may be requested at once."""
    pictures_waiting: int = Field(64, ge=1)
    """Per key: images requested and not yet answered."""
    deadline_s: float = Field(300.0, gt=0)
    """An image that cannot be finished by then is not started, or is abandoned."""
    replay_window_s: float = Field(600.0, gt=0)
    """How long a request with an idempotency key gets the same response."""
    replay_mib: int = Field(256, ge=1)
    """Host memory for such responses, per ingress process; the oldest are dropped first."""

    def check_texts(self, **texts: str | None) -> None:
        """Refuse prompts that are too long.

        Args:
            texts: prompts by the names of their fields.

        Raises:
            RequestRefused: names the field.
        """
        most = self.max_prompt_characters
        for field, text in texts.items():
            if text is not None and len(text) > most:
                raise RequestRefused(f"{field}: longer than {most} characters", "shorten it", field)

    @property
    def by_field(self) -> dict[str, float]:
        """The highest number, or length, of each field of a request that has such a limit."""
        return {
            "n": self.max_pictures,
            "num_inference_steps": self.max_steps,
            "guidance_scale": self.max_guidance,
            "adapters": self.max_adapters,
            "prompt": self.max_prompt_characters,
            "negative_prompt": self.max_prompt_characters,
        }

    def check_cost(self, width_px: int, height_px: int, steps: int, num_pictures: int) -> None:
        """Refuse a request that costs too much as a whole.

        Raises:
            RequestRefused: names all values that are over their limits.
        """
        over = {
            param: f"{param}: {value} is over the limit of {most}"
            for param, value, most in (
                ("n", num_pictures, self.max_pictures),
                ("num_inference_steps", steps, self.max_steps),
                ("size", max(width_px, height_px), self.max_side_px),
            )
            if value > most
        }
        if over:
            raise RequestRefused("; ".join(over.values()), "", next(iter(over)))
        if min(width_px, height_px) < self.min_side_px:
            raise RequestRefused(f"size: a side is under {self.min_side_px} px", "", "size")
        cost = width_px * height_px * steps * num_pictures
        if cost > self.max_pixel_steps:
            raise RequestRefused(
                f"size × steps × n is {cost:.3g} pixel steps, over the limit of "
                f"{self.max_pixel_steps:.3g}",
                "request fewer images, fewer steps or a smaller size",
                "num_inference_steps",
            )


class RateLimiter:
    """A token bucket per key, counted in images, refilled over a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key_id: str, num_pictures: int, pictures_per_minute: int) -> None:
        """Count images against a key.

        Raises:
            TooBusy: if the key is over its rate; includes when to retry.
        """
        now_s = self._clock()
        # a bucket holds at least one whole request; otherwise it could never be admitted
        capacity = float(max(pictures_per_minute, num_pictures))
        level, seen_s = self._buckets.get(key_id, (capacity, now_s))
        level = min(capacity, level + (now_s - seen_s) * pictures_per_minute / 60)
        missing = num_pictures - level
        self._buckets[key_id] = (level if missing > 0 else level - num_pictures, now_s)
        self._buckets.move_to_end(key_id)
        while len(self._buckets) > MAX_TRACKED_KEYS:
            self._buckets.popitem(last=False)
        if missing > 0:
            raise TooBusy(
                f"this key may generate {pictures_per_minute} images a minute",
                "wait as the Retry-After header says",
                None,
                missing * 60 / pictures_per_minute,
            )


class RefusalPace:
    """Spaces the refusals of each caller evenly in time."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / per_second
        self._clock = clock
        self._due_s: OrderedDict[str, float] = OrderedDict()

    def is_over(self, caller: str) -> bool:
        """Whether the limit of delayed refusals of a caller is reached."""
        delay_s = self._due_s.get(caller, 0.0) - self._clock()
        return delay_s > MAX_DELAYED_REFUSALS * self._interval_s

    def delay_s(self, caller: str) -> float:
        """How long to hold the caller's next refusal, which this call counts."""
        now_s = self._clock()
        earliest_s = now_s - REFUSALS_AT_ONCE * self._interval_s
        due_s = max(self._due_s.get(caller, 0.0), earliest_s) + self._interval_s
        self._due_s[caller] = due_s
        self._due_s.move_to_end(caller)
        while len(self._due_s) > MAX_TRACKED_KEYS:
            self._due_s.popitem(last=False)
        return max(0.0, due_s - now_s)


class WaitingRoom:
    """Counts the images that each key waits for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Images that all keys wait for."""
        return sum(self._waiting.values())

    @contextmanager
    def enter(self, key_id: str, num_pictures: int, retry_after_s: float) -> Iterator[None]:
        """Count images as waiting inside the block.

        Raises:
            TooBusy: if the key already waits for too many.
        """
        waiting = self._waiting.get(key_id, 0)
        if waiting + num_pictures > max(self._most, num_pictures):
            raise TooBusy(
                f"this key already waits for {waiting} images; the limit is {self._most}",
                "try again when some have arrived",
                None,
                retry_after_s,
            )
        self._waiting[key_id] = waiting + num_pictures
        try:
            yield
        finally:
            left = self._waiting[key_id] - num_pictures
            if left:
                self._waiting[key_id] = left
            else:
                del self._waiting[key_id]
