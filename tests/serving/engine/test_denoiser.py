"""Tests of the order of rows in a pass: remaining rows keep their place."""

from hypothesis import given
from hypothesis import strategies as st

from farm.serving.engine.denoiser import arranged

LINES = st.lists(st.integers(0, 12), unique=True, max_size=10)


@given(LINES, LINES)
def test_a_pass_holds_exactly_the_wanted_rows(before, wanted):
    assert sorted(arranged(before, wanted)) == sorted(wanted)


@given(LINES, LINES)
def test_a_row_that_still_has_a_place_keeps_it(before, wanted):
    lines = arranged(before, wanted)
    for place, line in enumerate(before[: len(wanted)]):
        if line in wanted:
            assert lines[place] == line


def test_who_comes_takes_the_place_of_who_went():
    assert arranged("abcd", "abxd") == list("abxd")
    assert arranged("abcd", "xbda") == list("abxd")


def test_when_rows_leave_only_those_beyond_the_new_end_move():
    assert arranged("abcdef", "acdef") == ["a", "f", "c", "d", "e"]
