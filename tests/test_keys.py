"""Keys name content: equal inputs share one, any change gives another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.keys import canonical_json, derive_seed, digest, file_digest, key_of

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), plain, min_size=2, max_size=6))
def test_the_order_of_fields_never_matters(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


@given(plain, plain)
def test_different_values_have_different_digests(a: object, b: object) -> None:
    assert (digest(a) == digest(b)) == (canonical_json(a) == canonical_json(b))


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("inf")]}])
def test_numbers_that_json_cannot_name_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be part of a key"):
        digest(value)


def test_keys_of_different_kinds_never_meet() -> None:
    assert key_of("job", steps=1) != key_of("prior", steps=1)
    assert len(key_of("job", steps=1)) == 32


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_seeds_are_63_bit_and_differ_between_neighbours(seed: int, step: int) -> None:
    first, second = derive_seed(seed, "noise", step), derive_seed(seed, "noise", step + 1)
    assert 0 <= first < 2**63
    assert first != second
    assert first == derive_seed(seed, "noise", step)


def test_a_file_is_named_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "b").write_bytes(b"x" * 100_000)
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b")
