"""A campaign of random faults against training on a cluster, and what it left behind.

    python benchmarks/chaos.py --subjects 300 --faults 300 --seed 1

Rounds of about thirty subjects run on a Ray cluster of their own (a head without CPUs and three
nodes, all on this machine) with an S3 server as the store, while processes are killed, the store
fails, photos change, clocks jump and nodes come and go. After each round every adapter must be
there once, load, and equal that of an undisturbed run; no checkpoint, lock, process or temporary
folder may be left; and the ledger must replay to the same state.

Writes ``chaos-<subjects>x<faults>-<n>cpu-<date>.md`` beside this file after every round, and exits
with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.chaos.page import write_page  # noqa: E402
from support.chaos.round import Outcome, Round  # noqa: E402
from support.s3 import s3_server  # noqa: E402


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-round", type=int, default=30, help="subjects and faults of a round")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pause", type=float, default=5.0, help="mean seconds between faults")
    parser.add_argument("--minutes", type=float, default=600.0, help="start no round after this")
    parser.add_argument("--round-minutes", type=float, default=20.0, help="limit of a round")
    parser.add_argument("--priors-every", type=int, default=3, help="rounds; 0 for never")
    parser.add_argument("--kinds", nargs="+", default=[], help="inject each once, no others")
    parser.add_argument("--out", type=Path, default=HERE)
    return parser.parse_args()


def main() -> int:
    asked = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that rounds end their processes
    random.seed(asked.seed)
    began, outcomes = time.monotonic(), list[Outcome]()
    day, page = datetime.date.today(), None
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    while _is_short(asked, outcomes) and time.monotonic() - began < 60 * asked.minutes:
        outcome = _round(asked, folder, len(outcomes))
        outcomes.append(outcome)
        print(json.dumps(outcome.findings.faulty) or "nothing found", file=sys.stderr, flush=True)
        written = write_page(asked.out, outcomes, asked, day, os.cpu_count() or 1)
        if page is not None and page != written:
            page.unlink()
        page = written
    rounds = [
        {"found": one.findings.faulty, "faults": [fault.kind for fault in one.faults]}
        for one in outcomes
    ]
    print(json.dumps({"rounds": rounds}))
    return int(any(outcome.findings.faulty for outcome in outcomes))


def _is_short(asked: argparse.Namespace, outcomes: list[Outcome]) -> bool:
    subjects = sum(outcome.subjects for outcome in outcomes)
    faults = sum(len(outcome.faults) for outcome in outcomes)
    return subjects < asked.subjects or faults < asked.faults


def _round(asked: argparse.Namespace, folder: Path, number: int) -> Outcome:
    size = min(asked.per_round, asked.subjects)
    with s3_server() as endpoint:
        one = Round(
            folder / f"r{number}",
            endpoint,
            subjects=size,
            steps=asked.steps,
            with_priors=bool(asked.priors_every) and number % asked.priors_every == 0,
            nodes=3,
        )
        print(f"round {number}: {one.folder}", file=sys.stderr, flush=True)
        return one.run(
            faults=len(asked.kinds) or min(asked.per_round, asked.faults),
            kinds=asked.kinds,
            pause_s=asked.pause,
            limit_s=60 * asked.round_minutes,
        )


if __name__ == "__main__":
    sys.exit(main())
