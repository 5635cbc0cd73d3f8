"""A function that cannot be compiled runs as it is; its own errors are raised."""

from __future__ import annotations

import pytest

from farm.base.device.compiled import Compiled


def fails_when_compiled(value: int) -> int:
    return value + 1


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled[[int], int]:
    def compile_badly(function: object, **options: object) -> object:
        def broken(value: int) -> int:
            if value < 0:
                raise ValueError("negative")
            return value + 1

        return broken

    monkeypatch.setattr("torch.compile", compile_badly)
    return Compiled(fails_when_compiled, True, name="a test")


def test_an_error_of_the_first_call_is_the_compilers(compiled: Compiled[[int], int]) -> None:
    assert compiled.is_compiled
    assert compiled(-1) == 0
    assert not compiled.is_compiled


def test_an_error_of_the_backward_pass_may_still_be_the_compilers(
    compiled: Compiled[[int], int],
) -> None:
    """Which is compiled when it first runs, after the call has returned."""
    assert compiled(1) == 2
    assert compiled.give_up(RuntimeError("no code for the backward pass"))
    assert not compiled.is_compiled
    assert not compiled.give_up(RuntimeError("of the pass itself"))


def test_once_all_of_it_has_run_errors_are_those_of_the_pass(
    compiled: Compiled[[int], int],
) -> None:
    compiled.is_proven = True
    with pytest.raises(ValueError, match="negative"):
        compiled(-1)
    assert compiled.is_compiled
