"""The names of the schedulers that a base generates with: in manifests, in the API, on the page.

Owns the names only; ``farm.base.stable_diffusion`` maps them to diffusers' classes.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["SCHEDULERS", "SchedulerName"]

SchedulerName = Literal["base", "ddim", "euler", "euler_a", "dpm++2m", "unipc"]
"""``base`` is the one that the base's own folder names."""

SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)
