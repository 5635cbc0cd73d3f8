"""Ray starts with a long temporary path, or an error explains the path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from farm.errors import UserError
from farm.training.cluster.ray_folder import MAX_SOCKET_BYTES, ray_folder_options

LONG = "/tmp/" + "a-batch-schedulers-own-folder-" * 3


@pytest.fixture(autouse=True)
def _no_ray_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_short_temporary_folder_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_folder_options() == {}
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert ray_folder_options() == {}


def test_below_a_long_temporary_folder_the_sockets_get_a_short_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", LONG)
    options = ray_folder_options()
    folder = Path(options["_temp_dir"])
    assert len(str(folder)) < 40
    assert folder.stat().st_mode & 0o777 == 0o700
    assert options["object_spilling_directory"].startswith(LONG)  # large files stay there


def test_a_long_folder_that_was_named_for_ray_is_named_as_the_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    with pytest.raises(UserError) as caught:
        ray_folder_options()
    assert f"RAY_TMPDIR={LONG}" in caught.value.message
    assert str(MAX_SOCKET_BYTES) in caught.value.message
    assert "at most" in caught.value.remedy


@pytest.mark.slow
def test_ray_starts_below_a_long_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    script = (
        "import ray\nfrom farm.training.cluster.start import start_ray\n"
        "start_ray(num_cpus=1, include_dashboard=False)\n"
        "print(ray.get(ray.remote(lambda: 17).remote()))\nray.shutdown()\n"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "TMPDIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "17"


def test_a_thread_that_outlives_ray_does_not_start_it_again() -> None:
    code = (
        "import ray\n"
        "from farm.training.cluster.start import keep_ray_stopped\n"
        "keep_ray_stopped()\n"
        "try:\n"
        "    ray.put(1)\n"
        "except ray.exceptions.RayError:\n"
        "    print(ray.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
