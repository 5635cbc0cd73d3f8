"""A run has one driver: another one is refused before it loads anything, and when it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.manifests import QUICK, request, write_manifest

from farm.errors import UserError
from farm.locks import StoreLock
from farm.training.execute import prepare_run, run_manifest
from farm.training.run.driver import write_run_files
from farm.training.run.earlier import refuse_driven


def test_a_run_has_one_driver(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    prepared = prepare_run(request(manifest, tmp_path / "store"))
    other = StoreLock.take(prepared.store, f"runs/{prepared.run_id}/drivers", ttl_s=60)
    assert other is not None
    with pytest.raises(UserError, match="is already driven by process"):
        run_manifest(request(manifest, tmp_path / "store"))
    mine = request(manifest, tmp_path / "store")
    refuse_driven(mine)  # nothing of that run is in the store yet
    write_run_files(prepared, other)
    with pytest.raises(UserError, match=f"run {prepared.run_id} is already driven by process"):
        refuse_driven(mine)
    refuse_driven(replace(mine, recipe=QUICK | {"seed": 1}))  # another run of the same manifest
    summary = run_manifest(replace(mine, take_over=True))
    assert summary.committed == 1
    assert not other.renew()
    refuse_driven(mine)  # its driver has ended
