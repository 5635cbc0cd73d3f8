"""Names of the schedulers that a base can use, as in manifests, the API and the page.

Owns the names only; ``farm.base.stable_diffusion`` maps them to diffusers' classes.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["SCHEDULERS", "SchedulerName"]

SchedulerName = Literal["base", "ddim", "euler", "euler_a", "dpm++2m", "unipc"]
"""``base`` is the scheduler configured in the folder of the base."""

SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)
