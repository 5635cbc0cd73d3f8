"""Durations as the command line and the report show them."""

from __future__ import annotations

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """``1h 05m``, ``3m 20s``, ``12s`` or, below ten seconds, ``1.5s``."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
