"""The program ``farm``, which ``python -m farm`` is too: Ctrl-C counts from its first moment.

Owns the time until the command line is imported. An interrupt in the middle of an import would end
in a traceback, so it is held until ``farm.cli`` can report it.
"""

from __future__ import annotations

import signal

__all__ = ["main"]


def main() -> None:
    """Import the command line and run it."""
    held: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    is_held = before is signal.default_int_handler  # else it is ignored, or somebody else's
    if is_held:
        signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    from farm.cli import main as run

    def release() -> None:
        if is_held:
            signal.signal(signal.SIGINT, before)
        if held:
            raise KeyboardInterrupt

    run(release)


if __name__ == "__main__":
    main()
