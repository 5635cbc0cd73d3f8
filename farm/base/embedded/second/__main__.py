"""Trains the second edition: ``python -m farm.base.embedded.second OUT``."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(prog="python -m farm.base.embedded.second")
    parser.add_argument("out", type=Path, help="working folder; run again to resume there")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget-s", type=float, help="seconds for this call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes that render")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--tiny", action="store_true", help="a base of seconds, to try the command")
    options = parser.parse_args()
    # imported here, so that the processes that render do not load torch
    from farm.base.embedded.second.edition import EDITION_128, tiny_edition
    from farm.base.embedded.second.train import train_edition

    train_edition(
        options.out,
        tiny_edition() if options.tiny else EDITION_128,
        device=options.device,
        budget_s=options.budget_s,
        seed=options.seed,
        num_workers=options.workers,
        compiled=options.compile,
    )


if __name__ == "__main__":
    main()
