"""The remaining time follows the run's own speed: it never ends early, and never jumps."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from itertools import pairwise

import pytest
from rich.console import Console

from farm.cli.views.run import LiveView
from farm.training.dispatch.job_state import Status
from farm.training.dispatch.messages import LaneView, Snapshot
from farm.training.pace import Pace, Work
from farm.training.plan.estimate import Estimate

PLAN_S = 100.0
FIRST = 0.2
"""Share that is done when the first step is trained: start-up and class images."""


def simulate(
    speed: Callable[[float], float], *, every: float = 0.01
) -> tuple[list[tuple[float, float]], float]:
    """(time, remaining) each second of a run with a plan, and when the run ended.

    Args:
        speed: of the machine, relative to the plan's, by the share of the work that is done.
        every: the share between two steps of progress that the dispatcher reports.
    """
    pace, now, done, shown = Pace(PLAN_S, FIRST), 0.0, 0.0, []
    while done < 1.0:
        seen = 0.0 if done < FIRST else FIRST + (done - FIRST) // every * every
        left = pace.note(now, seen)
        assert left is not None
        assert left > 0
        shown.append((now, left))
        done += speed(done) / PLAN_S
        now += 1.0
    return shown, now


def worst_jump(shown: list[tuple[float, float]], ended: float) -> float:
    """The largest factor between two displays ten seconds apart, up to the last tenth."""
    lines = [left for now, left in shown[::10] if now < 0.9 * ended]
    return max(max(b / a, a / max(b, 1e-9)) for a, b in pairwise(lines))


@pytest.mark.parametrize("speed", [1.5, 1.0, 0.5, 0.2, 0.05])
@pytest.mark.parametrize("every", [0.01, 0.2])
def test_the_estimate_follows_a_slow_or_fast_machine(speed: float, every: float) -> None:
    shown, ended = simulate(lambda done: speed, every=every)
    for now, left in shown:
        if 0.25 * ended < now < 0.9 * ended:
            assert left == pytest.approx(ended - now, rel=0.35)
    assert worst_jump(shown, ended) < 3


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.1), (0.2, 1.0), (1.0, 0.3)])
def test_the_estimate_follows_a_machine_that_gets_busy_or_idle(before: float, after: float) -> None:
    shown, ended = simulate(lambda done: before if done < 0.4 else after)
    last_part = 20.0 / after  # the last fifth of the work
    for now, left in shown:
        if ended - last_part < now < ended - last_part / 4:
            assert left == pytest.approx(ended - now, rel=0.25)
    assert worst_jump(shown, ended) < 3


def test_a_run_without_progress_never_has_less_than_half_of_its_time_left() -> None:
    pace = Pace(PLAN_S, FIRST)
    for second in range(51):
        left = pace.note(float(second), second / PLAN_S)
    stalled = [pace.note(50.0 + second, 0.5) for second in range(0, 600, 10)]
    assert left == stalled[0] == pytest.approx(50.0)
    assert all(one is not None and one > 24 for one in stalled)
    assert stalled[-1] is not None
    assert stalled[-1] > 100


def test_a_start_that_takes_longer_than_planned_makes_the_run_longer() -> None:
    pace = Pace(PLAN_S, FIRST)
    left = [pace.note(float(second), 0.0) for second in (0, 10, 20, 40, 80)]
    assert left[:3] == pytest.approx([100.0, 90.0, 80.0])
    assert left[2] < left[3] < left[4] < 400  # type: ignore[operator]


def test_a_cancelled_and_a_repeated_job_change_what_is_left_and_not_the_speed() -> None:
    pace = Pace()
    for second in range(31):
        left = pace.note(float(second), second / 300)
    assert left == pytest.approx(270)
    # a third of the work is cancelled, of which a tenth is done; then it begins again
    cancelled = pace.note(31.0, 31 / 300 + 0.3, dropped=0.3)
    assert cancelled == pytest.approx(269 - 90, rel=0.05)
    again = pace.note(32.0, 32 / 300 - 0.033)
    assert again == pytest.approx(268 + 10, rel=0.05)
    for second in range(33, 60):
        left = pace.note(float(second), second / 300 - 0.033)
    assert left == pytest.approx(241 + 10, rel=0.1)


def test_a_cancelled_subject_of_three_takes_its_own_third_and_gives_it_back_when_repeated() -> None:
    work = Work(Estimate(start_s=10.0, training_s=590.0))
    pace, lefts = work.pace(), []
    for second in range(130):
        share, dropped = max(0, second - 10) / 590, 0.0
        if second in (120, 121):  # one of three is cancelled; then it begins again
            dropped = 1 / 3 - share / 3
        elif second > 121:
            share -= 110 / 590 / 3
        counts = {"cancelled": int(second in (120, 121))}
        snapshot = Snapshot(counts, 3, share + dropped, (), 0, False, dropped_share=dropped)
        lefts.append(pace.note(float(second), *work.done(snapshot)))
    assert lefts[119] == pytest.approx(481, rel=0.05)
    assert lefts[121] == pytest.approx(479 * 2 / 3, rel=0.05)
    assert lefts[129] == pytest.approx(471 + 37, rel=0.05)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_live_view_has_the_bar_on_a_line_of_its_own(columns: int) -> None:
    console = Console(width=columns, height=30, force_terminal=True, record=True, file=StringIO())
    lanes = (LaneView("0", 3, 3, 2.0, 2**30, 0.0),)
    counts = dict.fromkeys(map(str, Status), 0) | {"training": 3}
    snapshot = Snapshot(counts, 3, 0.5, lanes, waiting_for_priors=0, is_done=False)
    with LiveView(console=console) as view:
        view.show(snapshot, ())
        view._live.refresh()
        lines = [line.rstrip() for line in console.export_text().splitlines()]
    bar = max(number for number, line in enumerate(lines) if "━" in line)
    assert set(lines[bar]) <= set("━╸╺ ")
    assert lines[bar + 1].split() == ["lane", "slots", "rows/s", "memory", "last", "heard"]
    assert lines[bar + 2].split() == ["0", "3/3", "2", "1.0", "GiB", "0s", "ago"]
