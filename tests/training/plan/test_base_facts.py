"""The kept facts of the package's bases are those of the bases themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import pytest

from farm.base.fingerprint import VERSION_FILES, fingerprint_build, library_version
from farm.base.loading import load_base
from farm.errors import BaseModelError
from farm.training.plan import base_facts as module
from farm.training.plan.base_facts import FILE, KEPT, base_facts, loaded_facts, written


@pytest.mark.parametrize("name", KEPT)
def test_the_kept_facts_are_those_of_the_base(name: str) -> None:
    assert base_facts(name) == loaded_facts(name), "run: python -m farm.training.plan.base_facts"
    assert json.loads(FILE.read_text())[name] == json.loads(json.dumps(written(name)))


def test_facts_of_other_weights_are_read_from_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = base_facts("embedded")
    stale = {"embedded": replace(facts, fingerprint="0" * 64, resolution_px=1)}
    monkeypatch.setattr(module, "_kept", lambda: stale)
    assert base_facts("embedded") == facts


def test_a_base_that_is_not_kept_has_facts_too() -> None:
    facts = base_facts("tiny-v")
    assert facts.fingerprint == load_base("tiny-v", device="meta").fingerprint
    assert facts.modules == replace(base_facts("tiny").modules, base="tiny-v")


@pytest.mark.parametrize("name", ["embedded", "tiny"])
def test_kept_bases_have_no_revisions(name: str) -> None:
    with pytest.raises(BaseModelError, match="has no revisions"):
        base_facts(name, "main")


def test_a_builds_fingerprint_has_the_versions_that_the_libraries_state() -> None:
    for library in VERSION_FILES:
        assert library_version(library) == import_module(library).__version__
    assert fingerprint_build("tiny") != fingerprint_build("tiny-v")
