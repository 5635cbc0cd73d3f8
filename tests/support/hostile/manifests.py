"""Hostile manifests: deep, long, aliased, lying and mutated, of every form; and hostile URIs."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from functools import cache

from support.hostile.files import NAMES

__all__ = ["GOOD", "URIS", "hostile_manifest"]

Dice = random.Random
GOOD = {
    "m.yaml": "defaults: {class_noun: &c cat}\nsubjects:\n  - {id: a, photos: [x.png]}\n",
    "m.json": '{"defaults": {"class_noun": "cat"}, "subjects": [{"id": "a", "photos": ["x.png"]}]}',
    "m.jsonl": '{"defaults": {"class_noun": "cat"}}\n{"id": "a", "photos": "x.png"}\n',
    "m.csv": "subject;class;photos;recipe.steps\na;cat;x.png|y.png;1,5\n",
    "m.toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\nclass_tokens = "sks cat"\n',
}
URIS = (
    "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/proc/self/root/etc/passwd",
    "file:///dev/zero", "file:///etc/passwd", "file://localhost/etc/passwd", "/etc/shadow",
    "http://127.0.0.1:1/x.png", "http://127.1:1/x.png", "http://0x7f.1:1/x.png",
    "http://2130706433:1/x.png", "http://017700000001:1/x.png", "http://0:1/x.png",
    "http://[::1]:1/x.png", "http://[::ffff:127.0.0.1]:1/x.png", "http://[::127.0.0.1]:1/x.png",
    "http://[64:ff9b::7f00:1]:1/x.png", "http://[2002:7f00:1::]:1/x.png", "http://[fe80::1]:1/x",
    "http://169.254.169.254/latest/meta-data", "http://localhost:1/x.png", "http://x.localhost:1/",
    "http://10.0.0.1.nip.invalid/x.png", "http://user:pass@127.0.0.1:1/x.png", "http:///x.png",
    "http://127.0.0.1:99999/x.png", "http://127.0.0.1:-1/x.png", "http://[/x.png", "http://%00/",
    "https://①②⑦.⓪.⓪.①:1/x.png", "HTTP://127.0.0.1:1/x.png", "hTTps://[::1]:1/x.png",
    "zip://x.png::/dev/zero", "zip://x.png::http://127.0.0.1:1/x.zip", "zip://a::zip://b::c.zip",
    "zip://::x.zip", "zip://*::x.zip", "zip://", "zip://../x.png::x.zip", "tar://x::y.tar",
    "simplecache::http://127.0.0.1:1/x.png", "filecache::file:///etc/passwd", "jupyter://x/y",
    "reference://x.png::refs.json", "github://a:b@c/d", "ftp://127.0.0.1:1/x", "sftp://127.0.0.1/x",
    "smb://127.0.0.1/x", "hdfs://127.0.0.1:1/x", "local:///etc/passwd", "dir::file:///etc",
    "data:image/png;base64,AAAA", "data://x", "blockcache::s3://x/y", "dask://x", "git://x",
    "generic://x", "pyarrow://x", "libarchive://x::y", "root://x", "oci://x", "hf://x/y", "x\0.png",
    "\\\\server\\share\\x.png", "C:\\x.png", "~root/.ssh/id_rsa", "~/x.png",
    "../" * 40 + "etc/passwd",
    "/**/*", "/proc/**/*", "/sys/**/*.png", "**/" * 30 + "*", "[" * 5_000, "*" * 5_000,
    "{a,b}" * 20, "?" * 300, "", " ", ".", "/", "//", "\ud800.png", "a" * 100_000, *NAMES,
)  # fmt: skip

PIECES = ("\0", "\ud800", '"', "{", "]", ": ", "\n", "- ", "&a ", "*a", "\u202e")


def _deep(dice: Dice) -> tuple[str, str]:
    depth = dice.choice([30, 2_000, 100_000])
    opening = dice.choice(["[", '{"a":', "- ", "? ", "{a: ", "!!python/object/apply:os.system ["])
    name = dice.choice(["m.yaml", "m.json", "m.jsonl"])
    return name, dice.choice(["", "subjects: ", '{"subjects": ']) + opening * depth


def _deep_toml(dice: Dice) -> tuple[str, str]:
    deep = ["a = " + "[" * 50_000, "[" + "a." * 50_000 + "a]", "a." * 50_000 + "a = 1"]
    deep += ["a = " + "{a=" * 3_000, "[[a]]\n" * 50_000, 'a = "' + "\\u0041" * 50_000 + '"']
    return "m.toml", dice.choice(deep)


def _aliases(dice: Dice) -> tuple[str, str]:
    if dice.random() < 0.5:
        lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
        return "m.yaml", "\n".join(lines) + "\nsubjects: *a39\n"
    merged = "x: &x {a: 1}\n" + "".join(f"y{n}: &y{n} {{<<: [*x, *x]}}\n" for n in range(2_000))
    return "m.yaml", merged + "subjects: [{<<: *y1}]\n"


def _long(dice: Dice) -> tuple[str, str]:
    size = dice.choice([10_000, 500_000])
    return dice.choice(
        (
            ("m.csv", "id,class\n" + "a" * size * 4 + ",cat\n"),
            ("m.csv", ",".join(["c"] * size) + "\n"),
            ("m.csv", 'id,class\n"' + "a\n" * size),
            ("m.csv", "id,class,photos\n" + "a,cat,x.png\n" * (size // 10)),
            ("m.json", '{"subjects": [' + '{"id": "a"},' * (size // 10) + "{}]}"),
            ("m.json", '{"subjects": ' + "9" * size + "}"),
            ("m.jsonl", '{"id": "' + "a" * size + '"}\n'),
            ("m.jsonl", '{"id": "a", "a": 1, "a": 2}\n' * (size // 100)),
            ("m.yaml", "subjects:\n  - id: " + "a" * size + "\n"),
            ("m.yaml", "subjects: [{id: " + "9" * (size // 10) + "}]\n"),
            ("m.yaml", "a: " + "&" * size),
            ("m.yaml", "---\n" * (size // 10)),
            ("m.yaml", "%TAG ! tag:\n" * 100 + "subjects: !x []\n"),
        )
    )


def _of_uri(dice: Dice) -> tuple[str, str]:
    """Subjects whose photos are where no photo may be."""
    rows = [
        {"id": f"s{n}", "class_noun": "cat", "photos": dice.choice(URIS)[:20_000]} for n in range(4)
    ]
    text = "\n".join(map(json.dumps, rows))
    return "m.jsonl", text


def _of_values(dice: Dice) -> tuple[str, str]:
    values: list[object] = [None, True, -1, 1e308, "x" * 5_000, [], {}, [[]], {"uri": {}}, *NAMES]
    fields = ["id", "class_noun", "photos", "captions", "recipe", "name", "namespace", "identifier"]
    fields += ["instance_prompt", "sample_prompts", "class_images", "prior", "priority"]
    row = {"id": "a", "class_noun": "cat", "photos": "x.png"}
    row |= {dice.choice(fields): dice.choice(values) for _ in range(3)}  # type: ignore[dict-item]
    words = [float("nan"), float("inf"), 10**400, 1e-400]
    recipe = {"recipe": {dice.choice(["steps", "rank", "learning_rate"]): dice.choice(words)}}
    return "m.jsonl", json.dumps(row | (recipe if dice.random() < 0.3 else {})) + "\n"


@cache
def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"] * 50, "photos": [["x"]] * 50}), file)
    return file.getvalue()


@cache
def _dictionary_bomb() -> bytes:
    """A million rows that share one long text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), ["x" * 900_000])
    pq.write_table(pa.table({"id": long, "photos": long}), file)
    return file.getvalue()


def _hostile_parquet(dice: Dice) -> bytes:
    if dice.random() < 0.1:
        return _dictionary_bomb()
    data = bytearray(_parquet())
    for _ in range(dice.randint(1, 6)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    if dice.random() < 0.3:  # a footer of another length
        data[-8:-4] = struct.pack("<I", dice.choice([0, 2**31 - 1, 2**32 - 1, len(data)]))
    return bytes(data)


def _mutated(dice: Dice) -> tuple[str, str]:
    name = dice.choice(sorted(GOOD))
    text = GOOD[name]
    for _ in range(dice.randint(1, 5)):
        at = dice.randrange(len(text) + 1)
        piece = dice.choice(
            ["\0", "\ud800", '"', "{", "]", ": ", "\n", "- ", "&a ", "*a", "\u202e"]
        )
        text = text[:at] + piece + text[at + dice.randrange(8) :]
    return name, text


_TEXTS: tuple[Callable[[Dice], tuple[str, str]], ...] = (
    _deep, _deep_toml, _aliases, _long, _of_uri, _of_values, _mutated, _mutated, _of_uri,
)  # fmt: skip


def hostile_manifest(number: int) -> tuple[str, bytes]:
    """The file name and the bytes of one hostile manifest; the same for the same number."""
    dice = random.Random(number)
    kind = number % (len(_TEXTS) + 1)
    if kind == len(_TEXTS):
        return "m.parquet", _hostile_parquet(dice)
    name, text = _TEXTS[kind](dice)
    return name, text.encode("utf-8", "surrogatepass")
