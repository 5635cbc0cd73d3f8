"""Hostile HTTP: bodies, paths, headers and keys by hand, and bytes that are hardly HTTP at all.

Shared by the tests and by ``benchmarks/hostile.py``.
"""

from __future__ import annotations

import gzip
import json
import random
import string
from collections.abc import Iterator
from typing import Any

__all__ = ["raw_requests", "hostile_requests"]

NAMES = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/",
    "....//....//",
    "/etc/passwd",
    "C:\\windows\\system32",
    "rex/../../keys",
    "rex\0",
    "rex\n",
    "rex@",
    "rex@" + "0" * 32,
    "rex@../../adapters",
    "@" + "a" * 32,
    "hidden",
    "names/globex/hidden",
    "globex/hidden",
    "s3://bucket/adapter",
    "http://169.254.169.254/latest/meta-data",
    "file:///etc/passwd",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "a" * 10_000,
    "",
    " ",
    ".",
    "..",
    "-rf",
    "rex.safetensors",
    "ｒｅｘ",
    "re\u202ex",
    "🐈",
]
NUMBERS: list[Any] = [
    0, -1, 1e308, -1e308, 2**63, 2**64, 10**400, 0.5, -0.0, float("nan"), float("inf"),
    -float("inf"), True, False, None, "5", "NaN", [], {}, [1], "1e999", 1e-320,
]  # fmt: skip
THINGS: list[Any] = [
    None, True, 0, -7, 3.5, "", "x", [], {}, [[]], {"a": 1}, [None] * 50, {"model": "rex"},
    "\0", "\ud800", "a" * 5000, ["rex"], {"$ref": "#"}, "\u202e\u0000",
]  # fmt: skip
FIELDS = [
    "model", "prompt", "n", "size", "response_format", "output_format", "output_compression",
    "quality", "stream", "partial_images", "background", "moderation", "style", "user", "seed",
    "num_inference_steps", "guidance_scale", "negative_prompt", "scheduler", "adapters",
    "adapter_weight", "stream_progress", "safety_identifier", "__proto__", "", "lora_path",
]  # fmt: skip
SIZES = [
    "0x0", "8x8", "99999x99999", "64x", "x64", "64X64", "64x64x64", "-64x64", "1e3x1e3",
    "64×64", "65x65", "96x97", "auto", "٦٤x٦٤", "64x64\n", " 64x64",
]  # fmt: skip


def hostile_bodies(dice: random.Random) -> Iterator[bytes]:
    """One kind of malice after another, without end."""
    base = {"model": "rex", "prompt": "x", "num_inference_steps": 1, "guidance_scale": 1}
    whole = json.dumps(base).encode()
    while True:
        yield encode({**base, "model": dice.choice(NAMES)})
        yield encode({**base, dice.choice(FIELDS): dice.choice(NUMBERS)})
        yield encode({**base, dice.choice(FIELDS): dice.choice(THINGS)})
        yield encode({**base, "size": dice.choice(SIZES)})
        uses = [{"model": dice.choice(NAMES), "weight": dice.choice(NUMBERS)}]
        yield encode({**base, "adapters": uses * dice.randint(1, 6)})
        yield encode({**base, "prompt": "[V]" * dice.randint(1, 300) + dice.choice(NAMES)})
        yield encode({**base, "prompt": f"[V:{dice.choice(NAMES)}]", "stream": dice.random() < 0.3})
        yield whole[: dice.randrange(len(whole))]
        yield bytes(dice.randrange(256) for _ in range(dice.randrange(200)))
        yield b"[" * dice.choice([10, 1000, 50_000])
        yield b'{"a":' * dice.choice([10, 1000, 20_000])
        yield whole.replace(b'"x"', b'"\xff\xfe"')
        yield whole[:-1] + b', "prompt": "twice"}'
        yield encode(dice.choice(THINGS))
        yield b'{"prompt": "x", "seed": ' + b"9" * dice.choice([20, 5000]) + b"}"


def encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def hostile_requests(dice: random.Random, key: str) -> Iterator[dict[str, Any]]:
    """Bodies mostly; bent paths, headers, methods and forged keys between them."""
    good = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    bodies = hostile_bodies(dice)
    generate = {"method": "POST", "path": "/v1/images/generations"}
    kinds = [
        "application/json", "text/plain", "application/xml", "multipart/form-data",
        "application/json; charset=utf-16", "", "application/x-www-form-urlencoded",
    ]  # fmt: skip
    methods = ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
    while True:
        for _ in range(6):
            yield {**generate, "headers": good, "content": next(bodies)}
        name = dice.choice(NAMES)
        quoted = "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass"))
        for path in (f"/v1/models/{quoted}", f"/v1/models/{quoted}/samples/0", f"/v1/{quoted}"):
            yield {"method": "GET", "path": path, "headers": good}
        limit, term = dice.choice(["-1", "1e9", "NaN", "5"]), quoted[:300]
        query = f"limit={limit}&after={term}&search={term}"
        yield {"method": "GET", "path": f"/v1/models?{query}", "headers": good}
        link = f"{quoted}?expires={dice.choice(['9' * 40, '-1', 'x', '0'])}&signature={quoted}"
        yield {"method": "GET", "path": f"/v1/pictures/{link}", "headers": {}}
        yield {**generate, "method": dice.choice(methods), "headers": good}
        yield {
            **generate,
            "headers": {**good, "content-type": dice.choice(kinds)},
            "content": next(bodies),
        }
        forged = "".join(dice.choices(string.hexdigits.lower()[:16], k=16))
        for bad_key in (
            f"Bearer farm_{forged}_{'A' * 43}",
            f"Bearer {key[:-1]}",
            f"Bearer {key}{key}",
            f"Basic {key}",
            "Bearer " + "x" * dice.choice([1, 5000]),
            "",
        ):
            yield {
                **generate,
                "headers": {**good, "authorization": bad_key},
                "content": b'{"prompt": "x"}',
                "expect": 401,
            }
        yield {
            "method": "GET",
            "path": "/" + "".join(dice.choices("/.%2e\\~;?#&=abc", k=dice.randint(1, 40))),
            "headers": {
                "x-request-id": name.encode("ascii", "ignore").decode()[:50].strip() or "x"
            },
        }


# -- raw bytes ---------------------------------------------------------------------------------

POST = "POST /v1/images/generations HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
AS_JSON = "content-type: application/json\r\n"
SMUGGLED = "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"
FRAMINGS = {
    "two lengths": "content-length: 5\r\ncontent-length: 6\r\n\r\n{{}}{{}}{{}}",
    "length and chunks": "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": "transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks not last": "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "another encoding": "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a folded header": "transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab": "transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": "content-length : 4\r\n\r\nGET ",
    "a signed length": "content-length: +4\r\n\r\nGET ",
    "a hexadecimal length": "content-length: 0x4\r\n\r\nGET ",
    "a list of lengths": "content-length: 4, 4\r\n\r\nGET ",
    "a negative length": "content-length: -1\r\n\r\n",
    "an endless length": f"content-length: {'9' * 400}\r\n\r\n",
    "a long length": "content-length: 99999999999999\r\n\r\n{{",
    "a body without a length": "\r\n{{}}",
    "bare line feeds": "content-length: 2\n\n{{}}",
    "a bare carriage return": "x: a\rcontent-length: 4\r\n\r\nGET ",
    "a zero byte": "x: a\0b\r\n\r\n",
    "no colon": "nonsense\r\n\r\n",
    "an empty name": ": x\r\n\r\n",
    "a huge chunk": "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    "an overflowing chunk": f"transfer-encoding: chunked\r\n\r\n{'f' * 40}\r\n",
    "a negative chunk": "transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n",
    "a chunk that is too long": "transfer-encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
    "a trailer of a header": "transfer-encoding: chunked\r\n\r\n0\r\nauthorization: x\r\n\r\n",
    "chunks of one byte": "transfer-encoding: chunked\r\n\r\n" + "1;a=b\r\nx\r\n" * 3_000,
    "an expectation": "content-length: 2\r\nexpect: 100-continue\r\n\r\n{{}}",
    "another expectation": "content-length: 2\r\nexpect: a-miracle\r\n\r\n{{}}",
    "a WebSocket": "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\x81\x7f",
    "HTTP/2 over an upgrade": "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\n"
    "http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    "two hosts": "host: b\r\ncontent-length: 2\r\n\r\n{{}}",
    "many cookies": "cookie: " + "a=b; " * 5_000 + "\r\n\r\n",
    "many ranges": "range: bytes=" + "0-," * 5_000 + "0-\r\n\r\n",
    "many proxies": "x-forwarded-for: " + "1.2.3.4, " * 2_000 + "\r\n\r\n",
    "two keys": "authorization: Bearer x\r\ncontent-length: 2\r\n\r\n{{}}",
}
"""Headers and bodies that end a POST; clients, proxies and servers read them in different ways."""
LINES = (
    "GET /health\r\n\r\n",
    "GET /health HTTP/0.9\r\n\r\n",
    "GET /health HTTP/1.0\r\n\r\n",
    "GET /health HTTP/9.9\r\nhost: a\r\n\r\n",
    "GET http://evil.example/health HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET //evil.example/%2e%2e HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /health HTTP/1.1\r\n\r\n",
    "GET  /health  HTTP/1.1\r\nhost: a\r\n\r\n",
    "CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "HEAD /v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
    "TRACE / HTTP/1.1\r\nhost: a\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "get /health HTTP/1.1\r\nhost: a\r\n\r\n",
    "BREW / HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /%00%0d%0aset-cookie:x HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /?" + "a=b&" * 1_900 + " HTTP/1.1\r\nhost: a\r\n\r\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "\r\n" * 500,
    "GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 20,
    "POST /health HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\n",
)


def raw_requests(key: str) -> Iterator[tuple[str, bytes]]:
    """A name and the bytes of every connection by hand; each is answered or closed."""
    for line in LINES:
        yield repr(line[:30]), line.encode("latin-1")
    head = POST.format(key=key)
    for name, rest in FRAMINGS.items():
        yield name, (head + AS_JSON + rest.format() + SMUGGLED).encode("latin-1")
    bomb = gzip.compress(bytes(200 * 2**20))
    packed = f"content-encoding: gzip\r\ncontent-length: {len(bomb)}\r\n\r\n"
    yield "a packed body", (head + AS_JSON + packed).encode() + bomb
    for form in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        body = b"--x\r\n" * 5_000
        fields = f"content-type: {form}\r\ncontent-length: {len(body)}\r\n\r\n"
        yield form, (head + fields).encode() + body
