from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from support.photos import encoded, picture

from farm.errors import ManifestError, PhotoFault
from farm.intake.manifest import read_manifest
from farm.intake.photos.bytes import member_uri, read_photo_bytes
from farm.intake.photos.find import find_photos
from farm.intake.photos.uris import ALLOW_PRIVATE_HOSTS, is_public

TABLE = (b"subject,class,photos\nto", b"m,cat,https://x.example/1.png\n")
DOCUMENT = (b'{"subjects": [\n{"id": "tom", "class_noun": "cat",', b' "photos": "1.png"}]}\n')
EXPORTS = {
    "export?format=csv&gid=0": TABLE,
    "pub?gid=0&single=true&output=csv": TABLE,
    "download?id=5": TABLE,
    "download?id=6": DOCUMENT,
    "edit": (b"<!DOCTYPE html><html>", b"</html>"),
    "export?format=tsv": (b"x" * 1000, b"y" * 1000),
}


class Handler(http.server.BaseHTTPRequestHandler):
    asked: list[str]
    target: str

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/endless.csv":
            self.send_response(206)
            self.send_header("content-length", str(10**12))
            self.end_headers()
            with suppress(OSError):
                while self.command == "GET":
                    self.wfile.write(bytes(2**20))
            return
        if "/d/" in self.path:  # as an online spreadsheet: in pieces, and without a length
            self.send_response(200)
            self.end_headers()
            for part in EXPORTS[self.path.rpartition("/")[2]] if self.command == "GET" else ():
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(0.02)
            return
        if self.path == "/redirect.png":
            self.send_response(302)
            self.send_header("location", self.target)
            self.end_headers()
            return
        data = encoded(picture())
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    Handler.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.target = f"http://127.0.0.1:{server.server_port}/secret.png"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0"]
)
def test_a_private_host_is_never_connected_to_however_it_is_spelt(
    host: str, server: http.server.ThreadingHTTPServer
):
    for uri in (
        f"http://{host}:{server.server_port}/a.png",
        member_uri("a.png", f"http://{host}:{server.server_port}/a.zip"),
    ):
        with pytest.raises(PhotoFault) as told:
            read_photo_bytes(uri)
        if host in {"127.0.0.1", "localhost", "0.0.0.0"}:
            assert "not a public address" in told.value.message
            assert "--allow-private-hosts" in told.value.remedy
    with pytest.raises(PhotoFault):
        find_photos(f"http://{host}:{server.server_port}/a.zip", "/")
    assert Handler.asked == []


def test_a_redirect_to_a_private_host_is_not_followed(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
):
    from farm.intake.photos import uris

    # the first host counts as public here, the target of its redirect does not
    Handler.target = f"http://127.0.0.2:{server.server_port}/secret.png"
    monkeypatch.setattr(uris, "is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(PhotoFault, match=r"127\.0\.0\.2"):
        read_photo_bytes(f"http://127.0.0.1:{server.server_port}/redirect.png")
    assert set(Handler.asked) == {"/redirect.png"}


def test_a_name_that_resolves_to_a_private_host_is_refused(monkeypatch: pytest.MonkeyPatch):
    # not ``socket.getaddrinfo``, which uvloop does not call, and older uvicorns make it the loop
    # of everything in the process
    async def resolved(_: object, host: str, port: int = 0, family: int = 0) -> object:
        found = {"hostname": host, "host": "10.1.2.3", "port": port}
        return [{**found, "family": socket.AF_INET, "proto": 6, "flags": socket.AI_NUMERICHOST}]

    monkeypatch.setattr(aiohttp.DefaultResolver, "resolve", resolved)
    with pytest.raises(PhotoFault, match=r"10\.1\.2\.3"):
        read_photo_bytes("http://photos.example.org/a.png")


def test_private_hosts_are_read_where_the_operator_allows_them(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(ALLOW_PRIVATE_HOSTS, "1")
    assert read_photo_bytes(f"http://127.0.0.1:{server.server_port}/redirect.png")


@pytest.mark.parametrize("name", list(EXPORTS))
def test_an_address_without_a_suffix_is_read_by_its_query_and_content(
    name: str, server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("farm.intake.formats.open.MAX_MANIFEST_BYTES", 500)
    address = f"http://127.0.0.1:{server.server_port}/d/1/{name}"
    if name in {"edit", "export?format=tsv"}:
        problem = "it is a web page" if name == "edit" else "is larger than"
        with pytest.raises(ManifestError) as told:
            read_manifest(address)
        assert problem in str([told.value.message, *told.value.faults])
        return
    (subject,) = read_manifest(address, strict=False).resolved
    assert (subject.id, subject.base) == ("tom", address.rpartition("/")[0])


def test_a_table_that_a_manifest_names_by_an_export_is_under_the_rules_of_hosts(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
):
    address = f"http://127.0.0.1:{server.server_port}/d/1/export?format=csv&gid=0"
    (tmp_path / "m.yaml").write_text(f"subjects: {address}\n")
    manifest = read_manifest(str(tmp_path / "m.yaml"), strict=False)
    assert "not a public address" in manifest.errors[0].message
    assert Handler.asked == []


def test_a_server_that_sends_more_than_was_requested_is_cut_off(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv(ALLOW_PRIVATE_HOSTS, "1")
    address = f"http://127.0.0.1:{server.server_port}/endless.csv"
    (tmp_path / "m.yaml").write_text(f"subjects: {address}\n")
    manifest = read_manifest(str(tmp_path / "m.yaml"), strict=False)
    assert "more than was requested" in manifest.errors[0].message


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1"]
    + ["fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"]
    + ["::7f00:1", "224.0.0.1", "255.255.255.255", "::", "fec0::1", "64:ff9b:1::a00:1"]
    + ["192.0.0.192", "168.63.129.16", "192.88.99.1", "5f00::1", "::ffff:0:127.0.0.1"],
)
def test_addresses_that_are_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str):
    assert is_public(address)
