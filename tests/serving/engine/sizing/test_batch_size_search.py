"""Tests of the search for the batch size."""

import math

from farm.serving.engine.sizing.batch_size_search import find_batch_size


def test_it_doubles_while_that_pays():
    # up to 8 rows a pass costs the same, beyond that it costs in proportion
    knee = find_batch_size(lambda rows: max(1.0, rows / 8), max_rows=256)
    assert knee.rows == 8
    assert knee.seconds_per_row == 1 / 8
    assert list(knee.seconds_by_rows) == [1, 2, 4, 8, 16]


def test_a_machine_that_one_row_fills_still_gets_two_for_guidance():
    assert find_batch_size(lambda rows: float(rows), max_rows=64).rows == 2


def test_it_stops_at_the_given_limit():
    assert find_batch_size(lambda rows: 1.0, max_rows=16).rows == 16


def test_it_never_runs_a_pass_that_does_not_fit():
    ran = []

    def pass_seconds(rows):
        ran.append(rows)
        return 1.0

    knee = find_batch_size(pass_seconds, max_rows=64, fits=lambda rows: rows <= 4)
    assert (knee.rows, ran) == (4, [1, 2, 4])


def test_it_settles_for_the_last_size_where_one_runs_out_of_memory():
    knee = find_batch_size(lambda rows: math.inf if rows > 8 else 1.0, max_rows=64)
    assert knee.rows == 8
    assert list(knee.seconds_by_rows) == [1, 2, 4, 8]


def test_the_reason_names_the_curve():
    assert "2 rows a pass (1: 1000.0 ms, 2: 2000.0 ms" in find_batch_size(float, max_rows=64).reason


def test_one_disturbed_measurement_does_not_end_the_search():
    measured = []

    def pass_seconds(rows):
        measured.append(rows)
        return 10.0 if measured == [1, 2, 4] else 1.0  # another program ran beside just then

    knee = find_batch_size(pass_seconds, max_rows=16)
    assert (knee.rows, measured) == (16, [1, 2, 4, 4, 8, 16])
    assert knee.seconds_by_rows[4] == 1.0
