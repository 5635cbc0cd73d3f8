"""Prior sets in the store: written in parts, as Parquet with tensor columns.

Owns the files of a prior set and how a set is read. ``generate`` makes the parts, ``builder``
decides which sets are generated. Uses no Ray and no torch: the dispatcher reads sets without it.

    priors/<key>/<attempt>/part-000000.parquet   id, seed, image [P, P, 3], moments [2, C, H, W]
    priors/<key>/<attempt>/prompt.parquet        one row: the class prompt's embedding and tokens
    priors/<key>/prior.json                      the parts with their digests, written last

Each attempt writes to its own folder, so that parts of a killed attempt are never mixed in. Parts
are ranges of image numbers, and an image depends only on its own seed, so a rerun gives the same
set.

Legend: M images, C channels, H W latent, P pixels, T tokens, D width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from farm.errors import FarmError, StoreError
from farm.intake.job import PriorSpec
from farm.keys import bytes_digest
from farm.storage import Store

if TYPE_CHECKING:
    from farm.base.interface import Base

__all__ = [
    "CLAIMS",
    "Part",
    "PartRecord",
    "PriorArrays",
    "commit_prior_set",
    "is_ready",
    "parts_of",
    "read_prior_set",
    "write_part",
    "write_prompt",
]

PART_IMAGES = 32
"""Images of one part: generated in two batches. At most one part is lost if a worker dies."""
PROMPT_FILE = "prompt.parquet"
FIRST_TOKENS = "text_encoder"
"""The encoder whose tokens are in the column ``tokens``."""

Array = NDArray[Any]
Arrays = Mapping[str, Array]
PriorArrays = dict[str, Array]
"""``moments`` [M, 2, C, H, W], ``tokens`` [1, T], ``hidden`` [1, T, D]; for some bases
``tokens.*`` of further text encoders, ``extra.*`` and ``frames`` [M, 6]. Plain arrays, so that Ray
shares one copy among all lanes of a node."""
CLAIMS = "claims"
"""The folder with the locks of a set, beside its attempts."""


@dataclass(frozen=True, slots=True)
class Part:
    """Images ``first`` to ``stop - 1`` of one prior set."""

    prior_key: str
    number: int
    first: int
    stop: int

    @property
    def file(self) -> str:
        """Its file name in the attempt's folder."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part in the store."""

    prior_key: str
    file: str
    num_images: int
    sha256: str


def parts_of(spec: PriorSpec, part_images: int = PART_IMAGES) -> list[Part]:
    """The parts of a prior set, in order."""
    starts = range(0, spec.num_images, part_images)
    return [
        Part(spec.key, number, first, min(first + part_images, spec.num_images))
        for number, first in enumerate(starts)
    ]


def write_part(store: Store, attempt: str, part: Part, arrays: Arrays) -> PartRecord:
    """Write one part to its attempt's folder."""
    data = _parquet(arrays)
    store.write(f"priors/{part.prior_key}/{attempt}/{part.file}", data)
    return PartRecord(part.prior_key, part.file, len(arrays["id"]), bytes_digest(data))


def write_prompt(store: Store, attempt: str, base: Base, spec: PriorSpec) -> PartRecord:
    """Write the class prompt's embedding and tokens to the attempt's folder."""
    tokens = base.tokenize([spec.class_prompt])
    conditioning = base.encode_prompts([spec.class_prompt])
    arrays: PriorArrays = {"hidden": conditioning.hidden_RTD.float().cpu().numpy()}
    for name, ids_1T in tokens.tensors.items():
        column = "tokens" if name == FIRST_TOKENS else f"tokens.{name}"
        arrays[column] = ids_1T.cpu().numpy()
    for name, value in conditioning.extra.items():
        arrays[f"extra.{name}"] = value.float().cpu().numpy()
    data = _parquet(arrays)
    store.write(f"priors/{spec.key}/{attempt}/{PROMPT_FILE}", data)
    return PartRecord(spec.key, PROMPT_FILE, 0, bytes_digest(data))


def commit_prior_set(
    store: Store, spec: PriorSpec, attempt: str, records: Sequence[PartRecord]
) -> bool:
    """Write the marker of a complete set; False if another attempt was committed first. Either way,
    remove what other attempts left.

    Raises:
        StoreError: if parts are missing.
    """
    parts = sorted(records, key=lambda record: record.file)
    expected = [part.file for part in parts_of(spec)] + [PROMPT_FILE]
    if [record.file for record in parts] != expected:
        raise StoreError(f"prior set {spec.key}: {len(parts)} of {len(expected)} parts are there")
    body = {
        "prior_key": spec.key,
        "spec": spec.model_dump(mode="json"),
        "attempt": attempt,
        "num_images": sum(record.num_images for record in parts),
        "parts": [asdict(record) for record in parts],
        "created": datetime.now(UTC).isoformat(),
    }
    # exclusive: a marker that replaced another one would name an attempt that may be removed by now
    is_first = store.create(_marker(spec.key), json.dumps(body, indent=2).encode())
    with suppress(FarmError, OSError):
        _remove_other_attempts(store, spec.key)
    return is_first


def _remove_other_attempts(store: Store, prior_key: str) -> None:
    folder, marker = f"priors/{prior_key}", _marker(prior_key)
    kept = {CLAIMS, marker.rpartition("/")[2], store.read_json(marker)["attempt"]}
    for name in store.list(folder):
        if name not in kept:
            store.delete(f"{folder}/{name}")


def _parquet(arrays: Arrays) -> bytes:
    columns = {
        name: pa.array(value)
        if value.ndim == 1
        else pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(value))
        for name, value in arrays.items()
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


# -- reading --------------------------------------------------------------------------------------


def is_ready(store: Store, prior_key: str) -> bool:
    """Whether the complete set is in the store."""
    return store.exists(_marker(prior_key))


def _marker(prior_key: str) -> str:
    return f"priors/{prior_key}/prior.json"


def read_prior_set(store: Store, prior_key: str) -> PriorArrays:
    """The arrays of a prior set that training needs; the images themselves are not read.

    Raises:
        StoreError: if the set is incomplete or damaged.
    """
    try:
        body = store.read_json(_marker(prior_key))
        folder = f"priors/{prior_key}/{body['attempt']}"
        parts = [
            _read(store, f"{folder}/{part['file']}", part["sha256"], ["id", "moments", "frames"])
            for part in body["parts"]
            if part["num_images"]
        ]
        prompt = next(part for part in body["parts"] if not part["num_images"])
        arrays = _read(store, f"{folder}/{prompt['file']}", prompt["sha256"], None)
    except FileNotFoundError as error:
        raise StoreError(
            f"prior set {prior_key} is incomplete: {error}", f"remove priors/{prior_key} and rerun"
        ) from error
    order = np.argsort(np.concatenate([part["id"] for part in parts]))
    for name in ("moments", "frames"):
        if name in parts[0]:
            arrays[name] = np.concatenate([part[name] for part in parts])[order]
    return arrays


def _read(store: Store, path: str, sha256: str, columns: list[str] | None) -> PriorArrays:
    data = store.read(path)
    if bytes_digest(data) != sha256:
        raise StoreError(f"{path} is not the file that was committed", "remove the set and rerun")
    if columns is not None:
        there = pq.read_schema(io.BytesIO(data)).names
        columns = [name for name in columns if name in there]
    table = pq.read_table(io.BytesIO(data), columns=columns)
    return {name: _as_array(table.column(name)) for name in table.column_names}


def _as_array(column: pa.ChunkedArray) -> Array:
    chunk = column.combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):  # pyarrow before 17 keeps extension chunks apart
        chunk = pa.concat_arrays(chunk.chunks)
    if isinstance(chunk, pa.FixedShapeTensorArray):
        tensors: Array = chunk.to_numpy_ndarray()
        return tensors
    values: Array = chunk.to_numpy(zero_copy_only=False)
    return values
