from __future__ import annotations

import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from support.factories import Draw
from support.photos import encoded, picture

from farm.errors import PhotoFault
from farm.intake.photos import archives, files
from farm.intake.photos import bytes as reading
from farm.intake.photos.archives import archive_members, open_archive
from farm.intake.photos.bytes import is_remote, member_uri, read_photo_bytes, split_member_uri
from farm.intake.photos.uris import ALLOW_PRIVATE_HOSTS


def archive_of(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


def refused(uri: str) -> PhotoFault:
    with pytest.raises(PhotoFault) as told:
        read_photo_bytes(uri)
    assert told.value.remedy
    return told.value


@pytest.fixture
def website(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server over the test's folder, on a private address that is allowed."""
    monkeypatch.setenv(ALLOW_PRIVATE_HOSTS, "1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_local_files_are_read(draw: Draw):
    path = draw("a.png")
    assert read_photo_bytes(str(path)) == path.read_bytes()
    assert read_photo_bytes(f"file://{path}") == path.read_bytes()


def test_urls_are_read(draw: Draw, website: str):
    path = draw("a.png")
    assert read_photo_bytes(f"{website}/a.png") == path.read_bytes()
    with fsspec.open("memory://photos/b.png", "wb") as file:
        file.write(b"bytes")
    assert read_photo_bytes("memory://photos/b.png") == b"bytes"


def test_what_is_missing_is_told(tmp_path: Path, website: str):
    assert "no such file" in refused(str(tmp_path / "none.png")).message
    assert "no such file" in refused(f"{website}/none.png").message
    assert "no such file" in refused("memory://none/none.png").message
    assert "folder" in refused(str(tmp_path)).message
    assert "cannot be read" in refused("nosuch://x/y.png").message


def test_a_device_is_no_photo():
    assert "not a regular file" in refused("/dev/zero").message


def test_reading_stops_at_the_limit(tmp_path: Path, website: str, monkeypatch: pytest.MonkeyPatch):
    for module in (reading, files, archives):
        monkeypatch.setattr(module, "MAX_PHOTO_BYTES", 1000)
    (tmp_path / "big.png").write_bytes(bytes(1001))
    (tmp_path / "fits.png").write_bytes(bytes(1000))
    with fsspec.open("memory://photos/big.png", "wb") as file:
        file.write(bytes(1001))
    for place in (str(tmp_path), website, "memory://photos"):
        assert "larger than" in refused(f"{place}/big.png").message
    assert len(read_photo_bytes(str(tmp_path / "fits.png"))) == 1000


def test_a_server_that_fails_now_and_then_is_asked_again(
    draw: Draw, website: str, monkeypatch: pytest.MonkeyPatch
):
    path = draw("a.png")
    calls = []
    bounded = reading.read_bounded

    def flaky(file: io.BufferedReader, *reserve: object) -> bytes:
        calls.append(file)
        if len(calls) < 3:
            raise ConnectionResetError("reset by peer")
        return bounded(file)

    monkeypatch.setattr(reading, "read_bounded", flaky)
    assert read_photo_bytes(f"{website}/a.png") == path.read_bytes()
    assert len(calls) == 3


def test_members_of_archives_are_read_in_place(tmp_path: Path):
    data = encoded(picture())
    archive = archive_of(tmp_path / "cat.zip", **{"cat/0.png": data, "cat/1.png": b"x"})
    uri = member_uri("cat/0.png", archive)
    assert split_member_uri(uri) == ("cat/0.png", archive)
    assert read_photo_bytes(uri) == data
    with fsspec.open(uri) as file:  # and fsspec itself understands the URI
        assert file.read() == data


def test_archives_are_read_over_http(tmp_path: Path, website: str):
    archive_of(tmp_path / "cat.zip", **{"0.png": b"photo"})
    assert read_photo_bytes(member_uri("0.png", f"{website}/cat.zip")) == b"photo"


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path):
    archive = archive_of(tmp_path / "bomb.zip", **{"0.png": bytes(50_000_000)})
    assert Path(archive).stat().st_size < 100_000
    assert "times its packed size" in refused(member_uri("0.png", archive)).message


def test_a_member_larger_than_a_photo_may_be_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (reading, files, archives):
        monkeypatch.setattr(module, "MAX_PHOTO_BYTES", 1000)
    archive = archive_of(tmp_path / "a.zip", **{"0.png": bytes(range(256)) * 8})
    assert "larger than" in refused(member_uri("0.png", archive)).message


@pytest.mark.parametrize(
    "name", ["../0.png", "/etc/0.png", "a/../../0.png", "..\\0.png", "C:/0.png", "\\0.png"]
)
def test_members_that_point_out_of_the_archive_are_refused(tmp_path: Path, name: str):
    archive = archive_of(tmp_path / "a.zip", **{name: b"x"})
    with open_archive(archive) as opened, pytest.raises(PhotoFault, match="points out"):
        archive_members(opened)


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MAX_ARCHIVE_MEMBERS", 3)
    archive = archive_of(tmp_path / "a.zip", **{f"{n}.png": b"x" for n in range(4)})
    with open_archive(archive) as opened, pytest.raises(PhotoFault, match="4 files"):
        archive_members(opened)


def test_litter_of_systems_is_no_member(tmp_path: Path):
    names = ("__MACOSX/._0.png", ".DS_Store", "cat/.hidden.png", "cat/0.png", "cat/")
    archive = archive_of(tmp_path / "a.zip", **dict.fromkeys(names, b""))
    with open_archive(archive) as opened:
        assert archive_members(opened) == ["cat/0.png"]


def test_damaged_archives_are_told(tmp_path: Path):
    archive = Path(archive_of(tmp_path / "a.zip", **{"0.png": bytes(range(256)) * 40}))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert "not a whole zip" in refused(member_uri("0.png", str(archive))).message
    spoilt = bytearray(whole)
    spoilt[60] ^= 0xFF
    archive.write_bytes(bytes(spoilt))
    assert "damaged" in refused(member_uri("0.png", str(archive))).message
    assert "no such file" in refused(member_uri("0.png", f"{tmp_path}/none.zip")).message


def test_a_member_that_is_not_there_is_told(tmp_path: Path):
    archive = archive_of(tmp_path / "a.zip", **{"0.png": b"x"})
    assert "no such member" in refused(member_uri("1.png", archive)).message


def test_an_encrypted_member_is_told(tmp_path: Path):
    archive = Path(archive_of(tmp_path / "a.zip", **{"0.png": b"x"}))
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(bytes(data))
    assert "encrypted" in refused(member_uri("0.png", str(archive))).message


def test_remote_is_what_leaves_this_machine():
    assert is_remote("s3://bucket/a.png")
    assert is_remote(member_uri("a.png", "s3://bucket/a.zip"))
    assert not is_remote("/a.png")
    assert not is_remote("file:///a.png")
    assert not is_remote(member_uri("a.png", "/a.zip"))
