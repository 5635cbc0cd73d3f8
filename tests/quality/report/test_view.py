"""The page's statements about a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.quality.finished_run import make_run

from farm.quality.ratios import evidence_of
from farm.quality.report.curve import HEIGHT, WIDTH, loss_plot
from farm.quality.report.view import LaneSpan, RunView, SubjectView
from farm.quality.verdict import ALIKE, NO_SCORES, NO_VERDICT, judge


@pytest.fixture(scope="module")
def run() -> RunView:
    return make_run(16)


def test_every_subject_is_counted_under_one_verdict(run: RunView) -> None:
    assert sum(verdict.num for verdict in run.verdicts) == len(run.subjects) == 16
    assert run.verdicts[0].label == "learned well"
    partly = sum(one.num for one in run.verdicts if one.label == "partly learned")
    assert partly
    well = run.verdicts[0].num
    others = (
        f"{partly} partly, 1 with a forgotten class, 1 copying photos, 1 never learned, "
        "1 diverged, 2 failed"
    )
    assert run.headline == f"{well} of 16 subjects learned well, {others}."


def test_failures_of_one_reason_stand_together(run: RunView) -> None:
    (failure,) = run.failures
    assert failure.subjects == ("broken-0", "broken-1")
    assert failure.remedy


def test_overlapping_jobs_of_a_lane_are_counted_once() -> None:
    spans = [LaneSpan("l", 0, 6, "a", "a", "ok"), LaneSpan("l", 2, 8, "b", "b", "ok")]
    run = RunView("r", "b", "", 10.0, [], spans)
    assert run.utilisation == pytest.approx(0.8)


def test_reused_adapters_cost_no_time() -> None:
    subjects = [
        SubjectView(str(n), str(n), "default", "cat", "committed", was_reused=n > 0)
        for n in range(4)
    ]
    run = RunView("r", "b", "", 10.0, subjects)
    assert run.seconds_a_subject == pytest.approx(10.0)
    assert run.num_reused == 3
    reused = replace(subjects[0], was_reused=True)
    assert RunView("r", "b", "", 10.0, [reused]).seconds_a_subject is None


def test_a_card_without_scores_says_why() -> None:
    subject = SubjectView(
        "a", "a", "default", "cat", "committed", card={"missing": "could not be judged: x"}
    )
    assert subject.verdict == "not scored"
    assert subject.reasons == ["The card could not be judged: x"]
    assert subject.bars == []


def test_a_subject_that_the_scorer_cannot_distinguish_has_scores_and_no_verdict() -> None:
    evidence = evidence_of("clip", {}, {}, None, ())
    assert judge(evidence).headline == NO_SCORES[0]
    verdict = judge(replace(evidence, missing=ALIKE, prompt_ratio=0.99)).to_json()
    assert (verdict["headline"], verdict["remedies"]) == (NO_VERDICT[0], [NO_VERDICT[1]])
    old = verdict | {"headline": NO_SCORES[0], "remedies": [NO_SCORES[1]]}
    for one in (verdict, old):
        card = {"evidence": {"prompt_ratio": 0.99}, "verdict": one}
        subject = SubjectView("a", "a", "default", "bird", "committed", card=card)
        assert (subject.headline, subject.remedies) == (NO_VERDICT[0], [NO_VERDICT[1]])
        assert subject.why_not_scored == ALIKE
        well = replace(subject, card={"verdict": {"label": "learned well"}})
        run = RunView("r", "b", "", 10.0, [well, subject])
        assert run.headline == "1 of 2 subjects learned well, 1 not scored."


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=600))
def test_curves_stay_inside_their_frame(losses: list[float]) -> None:
    small = [loss if loss != loss else max(min(loss, 1e6), -1.0) for loss in losses]
    plot = loss_plot([abs(loss) for loss in small])
    if plot is None:
        return
    for point in plot.raw[1:].split("L"):
        x, y = map(float, point.split())
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert plot.raw.count("L") <= 242
