"""Files that are not text are named by their form, at little cost."""

from __future__ import annotations

import io
import zipfile

import pytest

from farm.intake.parsing import text_files
from farm.intake.parsing.text_files import foreign_form


def archive_of(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return data.getvalue()


def test_a_workbook_is_named_and_an_archive_with_a_large_directory_is_not_looked_into(
    monkeypatch: pytest.MonkeyPatch,
):
    workbook = archive_of("xl/workbook.xml", *(f"xl/{number}.xml" for number in range(20)))
    form = foreign_form(workbook)
    assert form is not None
    assert form[0] == "an Excel workbook (.xlsx)"
    monkeypatch.setattr(text_files, "MAX_DIRECTORY_BYTES", 500)
    assert foreign_form(workbook) == ("a zip archive", "unpack it")
