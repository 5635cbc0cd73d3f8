"""One reference, caption mapping or folder makes a check look at a bounded number of names."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from support.hostile.files import KINDS, NAMES, hostile_photo, hostile_zip, overlapping_zip
from support.hostile.manifests import URIS, hostile_manifest
from support.photos import encoded, picture

from farm.errors import FarmError, PhotoFault
from farm.intake.check import check_manifest
from farm.intake.manifest import read_manifest
from farm.intake.photos import budget, fields, listings
from farm.intake.photos.find import find_photos

CHECK = """
import json, sys
from farm.intake.check import check_manifest
from farm.intake.manifest import read_manifest
report = check_manifest(read_manifest(sys.argv[1], strict=False), workers=16)
with open("/proc/self/status") as status:  # ru_maxrss would count the parent before the exec
    (peak_kib,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
peak_mib = int(peak_kib) // 1024
print(json.dumps([report.num_photos, len(report.facts), len(report.errors), peak_mib]))
"""
MAX_CHECK_MIB = 1126
MEASURE = """
import json, sys
from contextlib import contextmanager
from pathlib import Path
from PIL import Image
from farm.intake.photos import budget, inspect
reserved = []
reserve = budget.MemoryBudget.reserve
def noted(self, amount):
    reserved.append(amount)
    return reserve(self, amount)
budget.MemoryBudget.reserve = noted
def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
Image.new("L", (64, 64)).save(sys.argv[1] + ".png")
inspect.inspect_photos([sys.argv[1] + ".png"])  # imports
taken = []
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    reserved.clear()
    budget._give_back()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = mib("VmRSS")
    inspect.judge_photo(data)
    taken.append([mib("VmHWM") - before, sum(reserved) / 2**20])
print(json.dumps(taken))
"""
SLACK_MIB = 24
"""What one thread may take beyond its reservation: texts, a profile, and rows of a decoder."""
LARGE_KINDS = {
    "1-bit PNG of 90 megapixels": 2,
    "16-bit PNG of 40 megapixels": 1,
    "palette PNG of 99 megapixels": 2,
    "packed TIFF": 2,
    "progressive JPEG": 4,
    "JPEG scan by scan": 4,
    "JPEG without an end": 2,
    "AVIF larger than it says": 4,
}
"""Kinds that take the most memory, in the order of ``KINDS``, and copies of each in one check."""


def checked(path: Path, **options: object) -> list[str]:
    """The messages of all faults."""
    manifest = read_manifest(str(path), strict=False)
    report = check_manifest(manifest, **options)  # type: ignore[arg-type]
    return [fault.message for fault in report.faults]


# -- patterns and folders --------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["**/*", "*/*/*", "**/x/**/x/**/*", "*"])
def test_a_pattern_over_too_many_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(listings, "MAX_NAMES", 30)
    for number in range(8):
        for inner in range(4):
            folder = tmp_path / f"{number}" / "x" / f"{inner}"
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(b"x")
            (tmp_path / f"{number}-{inner}.png").write_bytes(b"x")
    with pytest.raises(PhotoFault, match="more than 30 names"):
        find_photos(pattern, str(tmp_path))


def test_a_folder_of_too_many_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_NAMES", 5)
    for number in range(6):
        (tmp_path / f"{number}.txt").write_bytes(b"x")
    with pytest.raises(PhotoFault, match="more than 5 names"):
        find_photos(".", str(tmp_path))


def test_a_pattern_follows_no_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encoded(picture()))
    for number in range(3):
        (tmp_path / f"in/loop{number}").symlink_to(tmp_path)
    found = find_photos("**/*.png", str(tmp_path))
    assert [uri.rsplit("/", 1)[-1] for uri in found.uris] == ["a.png"]


def test_a_folder_linked_below_a_pattern_is_reported(tmp_path: Path) -> None:
    for name in ("own", "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "own/link").symlink_to(tmp_path / "others")
    found = find_photos("**/*", str(tmp_path / "own"))
    assert len(found.uris) == 1
    assert found.outside == ["link"]


@pytest.mark.parametrize("uri", sorted(set(URIS)), ids=ascii)
def test_a_hostile_address_is_one_fault_in_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setattr(listings, "MAX_NAMES", 2_000)
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "a", "class_noun": "cat", "photos": uri}) + "\n")
    started_s = time.monotonic()
    faults = checked(path)
    assert faults
    assert not any("root:x:" in fault for fault in faults)  # of /etc/passwd
    assert time.monotonic() - started_s < 20


# -- a whole manifest -------------------------------------------------------------------------


def rows_of(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps({"class_noun": "cat", **row}) for row in rows))
    return path


def test_photos_missing_from_a_large_folder_are_found_missing_in_little_time(
    tmp_path: Path,
) -> None:
    for number in range(1_000):
        (tmp_path / f"photo-{number}.txt").touch()
    named = [{"id": f"n{n}", "photos": f"photo-{n}.png"} for n in range(1_000)]
    beside: list[dict[str, object]] = [{"id": f"photo-{n}"} for n in range(1_000)]
    path = rows_of(tmp_path / "m.jsonl", [*named, *beside])
    started_s = time.process_time()
    assert len(read_manifest(str(path), strict=False).errors) == 2_000
    assert time.process_time() - started_s < 10  # a second; minutes if each searched for a name


@pytest.mark.parametrize("photos", ["all", "**/*", "all.zip"])
def test_the_references_of_a_manifest_together_look_at_a_bounded_number_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: str
) -> None:
    monkeypatch.setattr(budget, "MAX_LOOKS", 3_000)
    (tmp_path / "all").mkdir()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number in range(400):
            (tmp_path / f"all/{number}.png").touch()
            archive.writestr(f"{number}.png", b"")
    rows = [{"id": f"s{number}", "photos": photos} for number in range(30)]
    messages = checked(rows_of(tmp_path / "m.jsonl", rows))
    refused = [message for message in messages if "too many names in all" in message]
    assert 10 <= len(refused) < 30  # the first subjects are read


def test_the_wrong_values_of_one_subject_are_reported_up_to_a_number(tmp_path: Path) -> None:
    unknown = {f"key{number}": 1 for number in range(5_000)}
    row: dict[str, object] = {"id": "a", "photos": ".", "recipe": dict(unknown), **unknown}
    path = rows_of(tmp_path / "m.jsonl", [row])
    started_s = time.process_time()
    faults = read_manifest(str(path), strict=False).errors
    assert 100 < len(faults) < 300
    assert any("more values are wrong" in fault.message for fault in faults)
    assert time.process_time() - started_s < 5


# -- captions --------------------------------------------------------------------------------


def test_a_mapping_of_many_captions_is_matched_in_little_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3_000):
            archive.writestr(f"{'d/' * (number % 5)}{number}.png", b"x")
    captions = {f"{number}": "[V]" for number in range(3_000)}
    captions |= {f"missing-{number}" + "x" * 500: "[V]" for number in range(2_000)}
    row = {"id": "a", "class_noun": "cat", "photos": "a.zip", "captions": captions}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    started_s = time.monotonic()
    manifest = read_manifest(str(tmp_path / "m.jsonl"), strict=False)
    assert time.monotonic() - started_s < 20
    assert sum("captions no photo" in fault.message for fault in manifest.faults) >= 1


def test_too_many_patterns_of_captions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "MAX_COMPARISONS", 10)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded(picture()))
    captions = {f"*{number}*": "[V]" for number in range(20)}
    row = {"id": "a", "class_noun": "cat", "photos": ".", "captions": captions}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    assert any("too many patterns" in message for message in checked(tmp_path / "m.jsonl"))


def test_tables_of_captions_beyond_a_number_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    for number in range(25):
        (tmp_path / f"{number:02d}.csv").write_text("file_name,text\nb.png,x\n")
    found = find_photos(".", str(tmp_path))
    assert any("25 tables here; the first 20 are read" in fault.message for fault in found.faults)


# -- files -----------------------------------------------------------------------------------


def test_hostile_photos_together_stay_within_memory(tmp_path: Path) -> None:
    """A sample of ``benchmarks/hostile.py``, which checks a thousand."""
    folder = tmp_path / "s"
    folder.mkdir()
    for number, kind in enumerate(KINDS):
        data = hostile_photo(number)[1]
        for copy in range(LARGE_KINDS.get(kind, 1)):
            (folder / f"{copy}-{number:02d}.png").write_bytes(data)
    for name in NAMES:
        (folder / name).write_bytes(b"x")
    (tmp_path / "lap.zip").write_bytes(overlapping_zip(10))
    archives = ["lap.zip"]
    for number in (0, 1, 2):
        archives.append(f"{number}.zip")
        (tmp_path / archives[-1]).write_bytes(hostile_zip(number))
    rows = [{"id": "s", "class_noun": "cat"}]
    rows += [{"id": name[:-4], "class_noun": "cat", "photos": name} for name in archives]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-c", CHECK, str(tmp_path / "m.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    num_photos, num_good, num_errors, peak_mib = json.loads(done.stdout)
    assert num_photos > 40
    assert 0 < num_good < num_photos
    assert num_errors > 20
    assert peak_mib <= MAX_CHECK_MIB


def test_no_photo_takes_more_memory_than_is_reserved_for_it(tmp_path: Path) -> None:
    for kind in LARGE_KINDS:
        number = list(KINDS).index(kind)
        (tmp_path / f"{number:02d}").write_bytes(hostile_photo(number)[1])
    command = [sys.executable, "-c", MEASURE, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)
    assert len(taken) == len(LARGE_KINDS)
    for kind, (used_mib, reserved_mib) in zip(LARGE_KINDS, taken, strict=True):
        assert used_mib <= reserved_mib + SLACK_MIB, kind


def test_hostile_manifests_are_refused_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_NAMES", 2_000)
    for number in range(30):
        name, data = hostile_manifest(number)
        path = tmp_path / name
        path.write_bytes(data)
        started_s = time.monotonic()
        with suppress(FarmError):
            checked(path, workers=4)
        assert time.monotonic() - started_s < 30, (number, name)
