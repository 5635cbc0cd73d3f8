from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.intake.parsing.yaml import parse_scalar, read_yaml
from farm.intake.rows import ManifestRows


def read(text: str) -> tuple[ManifestRows, list[dict[str, object]]]:
    rows = read_yaml(text, "m.yaml", "/base")
    return rows, [row.value for row in rows.subjects]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("007", "007"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e+3", -1500.0),
        ("1.2.3", "1.2.3"),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("2026-11-22", "2026-11-22"),
        ("12:30:45", "12:30:45"),
        ("9" * 30, "9" * 30),
    ],
)
def test_words_mean_what_people_expect(text: str, value: object):
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line():
    rows, _ = read("")
    rows = read_yaml(
        "version: 1\ndefaults:\n  recipe:\n    steps: 5\nsubjects:\n- id: tom\n  recipe:\n"
        "    rank: 4\n  photos:\n  - a.png\n  - b.png\n- id: rex\n",
        "m.yaml",
        "/base",
    )
    tom, rex = rows.subjects
    assert rows.head.line_of(("defaults", "recipe", "steps")) == 4
    assert (tom.line, rex.line) == (6, 12)
    assert tom.line_of(("recipe", "rank")) == 8
    assert tom.line_of(("photos", 1)) == 11
    assert tom.line_of(("photos", 9)) == 9  # the nearest around it
    assert tom.fault(("recipe", "rank"), "m", "r").field == "subjects[0].recipe.rank"


def test_a_bare_list_is_a_list_of_subjects():
    rows, subjects = read("- id: a\n- id: b\n")
    assert subjects == [{"id": "a"}, {"id": "b"}]
    assert not rows.faults


def test_defaults_may_follow_the_subjects():
    rows, subjects = read("subjects:\n- id: a\ndefaults: {class_noun: cat}\n")
    assert rows.head.value == {"defaults": {"class_noun": "cat"}}
    assert len(subjects) == 1


def test_anchors_and_merges_work():
    _, subjects = read(
        "subjects:\n- &cat\n  id: a\n  class_noun: cat\n  recipe: &quick {steps: 9}\n"
        "- <<: *cat\n  id: b\n- {id: c, recipe: *quick}\n- {<<: [*cat, {x: 1}], id: d}\n"
    )
    assert subjects[1] == {"id": "b", "class_noun": "cat", "recipe": {"steps": 9}}
    assert subjects[2]["recipe"] == {"steps": 9}
    assert subjects[3] == {"id": "d", "class_noun": "cat", "recipe": {"steps": 9}, "x": 1}


def test_a_billion_laughs_are_refused():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for last, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{','.join([f'*{last}'] * 10)}]\n"
    rows, _ = read(bomb + "subjects: []\n")
    assert "expands to more than" in rows.faults[0].message


def test_deep_nesting_is_refused():
    rows, _ = read("subjects: " + "[" * 2000 + "]" * 2000)
    assert "nested too deeply" in rows.faults[0].message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("subjects:\n- id: a\n  id: b\n", 3, "given twice"),
        ("subjects:\n- id: a\n - b\n", 3, "not valid YAML"),
        ("subjects:\n\t- id: a\n", 2, "not valid YAML"),
        ("subjects:\n- *undefined\n", 2, "not defined"),
        ("subjects:\n- plain\n", 2, "must be a mapping"),
        ("subjects:\n- {[a]: b}\n", 2, "key must be a word"),
        ("subjects:\n- id: !!python/object:os.system x\n", 2, "tag"),
        ("", 1, "empty"),
        ("just words\n", 1, "not a manifest"),
    ],
)
def test_faults_of_form_have_lines(text: str, line: int, words: str):
    rows, _ = read(text)
    assert [(fault.line, words in fault.message) for fault in rows.faults] == [(line, True)]
    assert rows.faults[0].remedy


def test_what_stands_before_a_syntax_fault_is_kept():
    _, subjects = read("subjects:\n- id: a\n- id: b\n- {id: c\n")
    assert subjects == [{"id": "a"}, {"id": "b"}]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text("abc no:#-'\"[]{}é☺", max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.text("klm", min_size=1), plain, max_size=3), max_size=3))
def test_what_yaml_writes_is_read_back(subjects: list[dict[str, object]]):
    text = yaml.safe_dump({"subjects": subjects}, allow_unicode=True)
    _, found = read(text)
    assert len(found) == len(subjects)
    for one, other in zip(found, subjects, strict=True):
        assert _same(one, other), text


def _same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(other, float):
        return isinstance(one, float) and math.isclose(one, other)
    return one == other


@pytest.mark.parametrize("path", [r"C:\Users\me", r"C:\pets\tom"])
def test_a_windows_path_in_double_quotes_is_told_as_an_escape(path: str):
    rows = read_yaml(f'subjects:\n- {{id: a, photos: "{path}"}}\n', "m.yaml", "/")
    assert "escape" in rows.faults[0].message
    assert "single quotes" in rows.faults[0].remedy


def test_aliases_of_many_subjects_are_bounded_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("farm.intake.parsing.yaml.MAX_VALUES_IN_ALL", 1_000)
    text = "x-p: &p [" + "a, " * 200 + "a]\nsubjects:\n" + "- {id: a, photos: *p}\n" * 10
    rows = read_yaml(text, "m.yaml", "/")
    assert "values in all" in rows.faults[0].message
    assert len(list(rows.subjects)) < 10
