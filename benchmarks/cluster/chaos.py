"""A campaign of random faults against training on a cluster, and what it left behind.

    python benchmarks/cluster/chaos.py --subjects 300 --faults 300 --seed 1

Rounds of about a hundred subjects run on a Ray cluster of their own (a head without CPUs and
nodes, all on this machine) with an S3 server as the store, while processes are killed, the store
fails, photos change, clocks jump and nodes come and go. After each round every adapter must be
there once, load, and equal that of an undisturbed run; no checkpoint, lock, process or temporary
folder may be left; and the ledger must replay to the same state.

After ``--budget-s``, or SIGTERM, no more faults are injected: the round's run ends, is checked and
reported. A second SIGTERM ends the campaign at once. Writes
``chaos-<subjects>x<faults>-<n>cpu-<date>.md`` after every fault, and exits with 1 if anything was
found. With ``--record``, a campaign that was ended resumes with the rounds that are missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE.parent / "tests"))

from support.chaos.faults import KINDS, deck_of  # noqa: E402
from support.chaos.page import write_page  # noqa: E402
from support.chaos.record import read_record, write_record  # noqa: E402
from support.chaos.round import Outcome, Round, Size  # noqa: E402
from support.s3 import s3_server  # noqa: E402


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-round", type=int, default=100, help="subjects and faults of a round")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--nodes", type=int, default=2, help="nodes with a lane")
    parser.add_argument("--spare-nodes", type=int, default=1, help="nodes without one")
    parser.add_argument("--pause", type=float, default=4.0, help="mean seconds between faults")
    parser.add_argument("--pace", type=float, default=0.3, help="seconds a lane waits after a step")
    parser.add_argument(
        "--budget-s", type=float, default=36000.0, help="inject no fault after this"
    )
    parser.add_argument("--priors-every", type=int, default=3, help="rounds; 0 for never")
    parser.add_argument("--kinds", nargs="+", default=[], choices=KINDS, help="inject only these")
    parser.add_argument("--in-order", action="store_true", help="inject --kinds in their order")
    parser.add_argument("--record", type=Path, help="file with the outcomes so far")
    parser.add_argument("--out", type=Path, default=HERE)
    return parser.parse_args()


class Campaign:
    """Rounds until enough subjects and faults, or until the time is over."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._until = time.monotonic() + asked.budget_s
        self._page: Path | None = None
        self.outcomes = read_record(asked.record)
        signal.signal(signal.SIGTERM, self._end)

    def run(self) -> None:
        """Run the rounds that are missing."""
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        with s3_server() as endpoint:  # one for all rounds: S3 clients of this process are cached
            while self._is_short() and not self._is_over():
                self._run_round(folder / f"r{len(self.outcomes)}", endpoint)
        if self.outcomes:
            self._write(self.outcomes)

    def _end(self, *_: object) -> None:
        if self._is_over():
            sys.exit(143)  # the round ends its processes
        self._until = 0.0

    def _is_over(self) -> bool:
        return time.monotonic() >= self._until

    def _is_short(self) -> bool:
        subjects = sum(one.subjects for one in self.outcomes if one.is_checked)
        faults = sum(len(one.faults) for one in self.outcomes)
        return subjects < self._asked.subjects or faults < self._asked.faults

    def _run_round(self, folder: Path, endpoint: str) -> None:
        asked, number = self._asked, len(self.outcomes)
        size = Size(
            min(asked.per_round, asked.subjects),
            asked.steps,
            asked.nodes,
            asked.spare_nodes,
            bool(asked.priors_every) and number % asked.priors_every == 0,
            asked.pace,
        )
        deck = asked.kinds or deck_of(min(asked.per_round, asked.faults))
        print(f"round {number}: {folder}", file=sys.stderr, flush=True)
        one = Round(folder, endpoint, size, seed=asked.seed + number)
        outcome = None
        try:
            outcome = one.run(
                deck,
                pause_s=asked.pause,
                is_over=self._is_over,
                changed=lambda: self._write([*self.outcomes, one.outcome()]),
                in_order=asked.in_order,
            )
        finally:  # also of a round that is ended: what it has done so far
            self.outcomes.append(outcome or one.outcome())
            self._write(self.outcomes)
        print(json.dumps(outcome.findings.faulty), file=sys.stderr, flush=True)

    def _write(self, outcomes: Sequence[Outcome]) -> None:
        write_record(self._asked.record, outcomes)
        page = write_page(self._asked.out, outcomes, self._asked, datetime.date.today())
        if self._page is not None and self._page != page:
            self._page.unlink()
        self._page = page


def main() -> int:
    campaign = Campaign(options())
    campaign.run()
    rounds = [
        {"found": one.findings.faulty, "faults": [fault.kind for fault in one.faults]}
        for one in campaign.outcomes
    ]
    print(json.dumps({"rounds": rounds}))
    return int(any(outcome.findings.faulty for outcome in campaign.outcomes))


if __name__ == "__main__":
    sys.exit(main())
