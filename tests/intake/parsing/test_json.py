from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.intake.parsing.json import read_json, read_jsonl

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text().filter(lambda key: key != "subjects"), values), st.integers(0, 2))
def test_what_json_writes_is_read_back(value: dict[str, object], indent: int):
    text = json.dumps(value, indent=indent or None)
    rows = read_json(text, "m.json", "/")
    assert not rows.faults
    assert rows.head.value == value


@given(st.text(alphabet='{}[]":,0123.eE-tfn \n\\u"ab', max_size=40))
def test_it_refuses_what_python_refuses(text: str):
    try:
        json.loads(text, parse_constant=lambda word: pytest.fail(word))
    except ValueError:
        assert read_json(text, "m.json", "/").faults
    except RecursionError:
        return


def test_every_value_knows_its_line():
    text = (
        '{\n "defaults": {"recipe":\n  {"rank": 0}},\n "subjects": [\n  {"id": "a",\n   "photos":\n'
    )
    text += '    ["x",\n     "y"]},\n  {"id": "b"}\n ]\n}\n'
    rows = read_json(text, "m.json", "/")
    first, second = rows.subjects
    assert rows.head.line_of(("defaults", "recipe", "rank")) == 3
    assert (first.line, second.line) == (5, 9)
    assert first.line_of(("photos", 1)) == 8
    assert second.fault(("id",), "m", "r").field == "subjects[1].id"


def test_a_bare_array_is_a_list_of_subjects():
    rows = read_json('[{"id": "a"},\n {"id": "b"}]', "m.json", "/")
    assert [(row.value["id"], row.line) for row in rows.subjects] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"subjects": [{"id": "a",\n "id": "b"}]}', 2, "given twice"),
        ('{"subjects": [\n{"id": 1,}]}', 2, "not valid JSON"),
        ('{"subjects": [\n3]}', 2, "must be an object"),
        ('{"subjects": []} x', 1, "follows"),
        ("[" * 100, 1, "nested"),
        ("3", 1, "not a manifest"),
        ("", 1, "the file is empty"),
        ('{"a": 0123}', 1, "not valid JSON"),
    ],
)
def test_faults_of_form_have_lines(text: str, line: int, words: str):
    rows = read_json(text, "m.json", "/")
    list(rows.subjects)
    assert [(fault.line, words in fault.message) for fault in rows.faults] == [(line, True)]


def test_a_line_is_a_subject_and_a_bad_one_hides_no_other():
    lines = ['{"id": "a"}', "", '{"id": ', "[1]", '{"id": "b"}']
    rows = read_jsonl(lines, "m.jsonl", "/")
    assert [(row.value["id"], row.line) for row in rows.subjects] == [("a", 1), ("b", 5)]
    assert [fault.line for fault in rows.faults] == [3, 4]


def test_the_first_line_may_be_the_head():
    lines = ['{"version": 1, "defaults": {"class_noun": "cat"}}', '{"id": "a"}']
    rows = read_jsonl(lines, "m.jsonl", "/")
    assert rows.head.value["defaults"] == {"class_noun": "cat"}
    assert [row.line for row in rows.subjects] == [2]


def test_nothing_gives_nothing():
    rows = read_jsonl([], "m.jsonl", "/")
    assert list(rows.subjects) == []
