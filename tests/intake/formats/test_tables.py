from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from farm.errors import Fault
from farm.intake.formats.tables import read_csv, read_parquet


def csv_rows(text: str) -> tuple[list[dict[str, object]], list[Fault]]:
    rows = read_csv(text, "m.csv", "/")
    return [row.value for row in rows.subjects], rows.faults


def test_columns_with_dots_nest_and_words_become_values():
    rows, faults = csv_rows(
        "id,class_noun,photos,recipe.steps,recipe.flip,recipe.learning_rate,priority\n"
        "007,true,cat,300,false,1e-3,2\n"
    )
    assert not faults
    assert rows == [
        {
            "id": "007",
            "class_noun": "true",
            "photos": "cat",
            "recipe": {"steps": 300, "flip": False, "learning_rate": 1e-3},
            "priority": 2,
        }
    ]


def test_empty_cells_are_absent():
    rows, _ = csv_rows("id,name,recipe.steps\na,,\n")
    assert rows == [{"id": "a"}]


def test_lists_are_divided_by_bars():
    rows, _ = csv_rows("id,photos,sample_prompts\na,x.png | y.png,a [V] cat\n")
    assert rows == [{"id": "a", "photos": ["x.png", "y.png"], "sample_prompts": ["a [V] cat"]}]
    rows, _ = csv_rows('id,photos\na,"[""x.png"", ""y|z.png""]"\nb,"[""x.png"\n')
    assert [row["photos"] for row in rows] == [["x.png", "y|z.png"], '["x.png']


def test_a_cell_below_no_name_is_told():
    _, (fault,) = csv_rows("id,photos,,\na,x.png,,\nb,y.png,note,\n")
    assert (fault.line, fault.remedy) == (3, "name column 3 in line 1, or empty its cells")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_commas_semicolons_and_tabs_divide(mark: str):
    rows, _ = csv_rows(f"\ufeffid{mark}class_noun\r\na{mark}cat\r\n")
    assert rows == [{"id": "a", "class_noun": "cat"}]


def test_the_shorthand_columns_are_known():
    rows, faults = csv_rows("subject,class,live\ncat2,cat,true\ncan,can,false\n")
    assert rows == [
        {"id": "cat2", "class_noun": "cat", "preset": "live"},
        {"id": "can", "class_noun": "can", "preset": "object"},
    ]
    assert not faults


@pytest.mark.parametrize(
    ("header", "right"),
    [
        ("name,noun", "subject,class"),
        ("Subject Name;Type;live", "subject;class;live"),
        ("folder\tcategory", "subject\tclass"),
        ("key,klass", "subject,class"),
        ("id,kind,recipe.steps", "id,class,recipe.steps"),
        ("owner,noun", "owner,class,subject"),
        (
            "name;species;folder;trigger word;lr",
            "subject;class;photos;identifier;recipe.learning_rate",
        ),
        ("name,name,type,path,dir", "subject,name,class,photos,dir"),
    ],
)
def test_a_required_column_under_another_word_is_one_fault_with_the_right_header(
    header: str, right: str
):
    rows, (fault,) = csv_rows(f"{header}\na,b\nc,d\n")
    assert (rows, fault.line, fault.remedy) == ([], 1, f"write it as `{right}`")
    assert ("`subject` is missing" in fault.message) == header.startswith("owner")


@pytest.mark.parametrize("cell", ["1.000", '"1,000"', "12.000"])
def test_a_whole_number_with_marks_between_its_thousands_is_not_guessed(cell: str):
    rows, _ = csv_rows(f"id,recipe.steps,recipe.prior_weight\na,{cell},1.500\n")
    assert rows[0]["recipe"] == {"steps": cell.strip('"'), "prior_weight": 1.5}


@pytest.mark.parametrize("header", ["class,class", "subject,id", "recipe.steps,Recipe.Steps"])
def test_a_field_that_two_columns_give_is_told(header: str):
    _, (fault,) = csv_rows(f"{header},photos\na,b,c\n")
    assert (fault.line, fault.severity) == (1, "error")


def test_faults_of_cells_have_lines():
    rows, faults = csv_rows('id,live,class_noun\na,maybe,cat\n"b\nb",true,cat,extra\nc,true,cat\n')
    assert [fault.line for fault in faults] == [2, 4]
    assert "true or false" in faults[0].message
    assert "4 cells in a table of 3" in faults[1].message
    assert [row["id"] for row in rows] == ["a", "c"]


def test_a_quote_that_never_ends_is_told():
    _, faults = csv_rows('id,class_noun\n"a,cat\n')
    assert "quotes never end" in faults[0].message
    assert faults[0].line == 2


def parquet_rows(table: pa.Table) -> tuple[list[dict[str, object]], list[int | None], list[Fault]]:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    rows = read_parquet(pa.BufferReader(buffer.getvalue()), "m.parquet", "/")
    found = list(rows.subjects)
    return [row.value for row in found], [row.line for row in found], rows.faults


def test_parquet_takes_structs_lists_and_json():
    photos = [{"uri": "x.png", "caption": None}, {"uri": "y.png", "caption": "[V]"}]
    rows, lines, faults = parquet_rows(
        pa.table(
            {
                "id": ["a", "b"],
                "photos": [photos, None],
                "recipe": ['{"steps": 5, "early_stop": null}', None],
                "priority": [1.0, None],  # as pandas writes integers beside nulls
            }
        )
    )
    assert rows[0] == {
        "id": "a",
        "photos": [{"uri": "x.png"}, {"uri": "y.png", "caption": "[V]"}],
        "recipe": {"steps": 5, "early_stop": None},
        "priority": 1,
    }
    assert rows[1] == {"id": "b"}
    assert lines == [1, 2]
    assert not faults


def test_bad_json_in_a_cell_is_told_with_its_row():
    _, _, faults = parquet_rows(pa.table({"id": ["a", "b"], "recipe": [None, "{"]}))
    assert [(fault.line, fault.field) for fault in faults] == [(2, "recipe")]


def test_what_is_no_parquet_is_told():
    rows = read_parquet(io.BytesIO(b"not parquet"), "m.parquet", "/")
    assert list(rows.subjects) == []
    assert "not a Parquet file" in rows.faults[0].message
