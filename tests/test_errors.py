"""Errors survive pickling, carry remedies, and know their exit codes."""

from __future__ import annotations

import pickle

import pytest

import farm.errors as errors
from farm.errors import FarmError, Fault, FaultList, ManifestError, TooBusy, explain


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_survives_pickling_with_its_message_and_remedy(name: str) -> None:
    kind = getattr(errors, name)
    if not isinstance(kind, type) or not issubclass(kind, FarmError):
        pytest.skip("a plain value")
    copy = pickle.loads(pickle.dumps(kind("it broke", "fix it")))
    assert type(copy) is kind
    assert str(copy).startswith("it broke")
    assert "fix it" in str(copy)
    assert copy.exit_code == kind.exit_code


def test_a_manifest_error_tells_every_fault_with_its_place() -> None:
    faults = [
        Fault("m.yaml", "rank is 0", "use 1 to 256", line=3, field="subjects[0].recipe.rank"),
        Fault("photos/1.jpg", "is truncated", "upload it again"),
    ]
    error = pickle.loads(pickle.dumps(ManifestError("2 faults", "", faults)))
    assert "m.yaml:3: subjects[0].recipe.rank: rank is 0 (use 1 to 256)" in str(error)
    assert "photos/1.jpg: is truncated" in str(error)
    assert error.exit_code == 3


def test_any_error_is_explained_with_a_remedy() -> None:
    assert explain(FarmError("it broke", "fix it")) == ("it broke", "fix it")
    message, remedy = explain(KeyError("rank"))
    assert message == "KeyError('rank')"
    assert remedy


def test_a_busy_endpoint_says_when_to_come_back() -> None:
    error = pickle.loads(pickle.dumps(TooBusy("backlog", "wait", None, 7.5)))
    assert error.retry_after_s == 7.5
    assert error.status == 429


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    kinds = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, FarmError)
    ]
    assert set(kinds) <= set(errors.__all__)
    assert all(name in (errors.__doc__ or "") for name in kinds)


def test_faults_beyond_the_limit_are_counted_by_kind_and_severity() -> None:
    faults = FaultList(limit=3)
    faults += [Fault("m.csv", f"`{n}` is wrong", "fix it", line=n) for n in range(10)]
    faults.append(Fault("m.csv", "odd", "look", severity="warning"))
    whole = faults.whole()
    assert [(one.line, one.count) for one in whole] == [(0, 1), (1, 1), (2, 1), (3, 7), (None, 1)]
    assert str(whole[3]) == "m.csv:3: `3` is wrong (fix it); and 6 more like this"
    merged = FaultList(faults, limit=2).whole()
    assert [one.count for one in merged if one.severity == "error"] == [1, 1, 8]


def test_long_faults_and_faults_of_many_kinds_take_bounded_memory() -> None:
    words = (f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}" for n in range(700))
    faults = FaultList(Fault("m", word * 5_000, "fix it") for word in words)
    assert sum(len(one.message) for one in faults.whole()) < 6_000_000
    assert sum(one.count for one in faults.whole()) == 700
