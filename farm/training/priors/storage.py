"""Prior sets in the store: generated in parts, written as Parquet with tensor columns.

Owns the files of a prior set, how one part is generated, and how a set is read. ``builder`` decides
which sets are generated. Uses no Ray.

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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.errors import FarmError, StoreError, UserError
from farm.intake.errors import PhotoFault
from farm.intake.job import PriorSpec
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.decode import crop_frames, crops, open_photo
from farm.keys import bytes_digest, derive_seed
from farm.storage import Store
from farm.training.slots.job import PriorSet

__all__ = [
    "CLAIMS",
    "Part",
    "PartRecord",
    "PriorArrays",
    "as_prior_set",
    "commit_prior_set",
    "generate_part",
    "is_ready",
    "parts_of",
    "read_prior_set",
    "write_part",
    "write_prompt",
]

PART_IMAGES = 32
"""Images of one part: generated in two batches. At most one part is lost if a worker dies."""
GENERATION_BATCH = 16
"""Images generated together; fixed, so that a rerun repeats exactly the same passes."""

Array = NDArray[Any]
Arrays = Mapping[str, Array]
PriorArrays = dict[str, Array]
"""``moments`` [M, 2, C, H, W], ``tokens`` [1, T], ``hidden`` [1, T, D]; for some bases
``tokens.*`` of further text encoders, ``extra.*`` and ``frames`` [M, 6]. Plain arrays, so that Ray
shares one copy among all lanes of a node."""
CLAIMS = "claims"
"""The folder with the locks of a set, beside its attempts."""
FIRST_TOKENS = "text_encoder"
"""The encoder whose tokens are in the column ``tokens``."""


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


# -- generating ---------------------------------------------------------------------------------


def generate_part(base: Base, spec: PriorSpec, part: Part) -> PriorArrays:
    """Generate the images of one part, or read the user's own, and encode them.

    Returns:
        ``id`` and ``seed`` int64 [M], ``image`` uint8 [M, P, P, 3], ``moments`` [M, 2, C, H, W] in
        float32, or float16 where the base's own precision is half; ``frames`` [M, 6] of the user's
        own images, for bases that read them.

    Raises:
        UserError: if one of the user's own images is not the one that was checked.
    """
    ids = range(part.first, part.stop)
    seeds = [derive_seed(spec.seed, "prior", number) for number in ids]
    frames: PriorArrays = {}
    if spec.is_brought:
        brought = [_user_image(spec, number) for number in ids]
        images_MPP3 = torch.from_numpy(np.stack([image for image, _ in brought]))
        if base.uses_frames:
            frames["frames"] = np.stack([frame for _, frame in brought])
    else:
        images_MPP3 = generate_images(
            base,
            [spec.class_prompt] * len(seeds),
            seeds,
            batch=GENERATION_BATCH,
            steps=spec.steps,
            guidance=spec.guidance,
            width_px=spec.resolution_px,
            height_px=spec.resolution_px,
            scheduler=spec.scheduler,
        )
    starts = range(0, len(images_MPP3), GENERATION_BATCH)
    moments = [_encode(base, images_MPP3[start : start + GENERATION_BATCH]) for start in starts]
    return {
        "id": np.arange(part.first, part.stop, dtype=np.int64),
        "seed": np.asarray(seeds, dtype=np.int64),
        "image": images_MPP3.numpy(),
        "moments": torch.cat(moments).numpy(),
        **frames,
    }


def _encode(base: Base, images_MPP3: torch.Tensor) -> torch.Tensor:
    pixels_M3PP = images_MPP3.permute(0, 3, 1, 2).float() / 127.5 - 1
    kept = torch.float32 if base.dtype == torch.float32 else torch.float16
    return base.encode_photos(pixels_M3PP).to("cpu", kept)


def _user_image(spec: PriorSpec, number: int) -> tuple[Array, Array]:
    """The centre crop of one of the user's own class images, uint8 [P, P, 3], and its frame."""
    uri = spec.image_uris[number]
    try:
        data = read_photo_bytes(uri)
        if bytes_digest(data) != spec.image_digests[number]:
            raise PhotoFault("it changed since it was checked", "run `farm check` again")
        whole = open_photo(data)
        crop: Array = crops(whole, spec.resolution_px)[0]
    except PhotoFault as error:
        raise UserError(f"class image {uri}: {error.message}", error.remedy) from error
    return crop, crop_frames(whole.size, spec.resolution_px)[0]


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
    store.write(f"priors/{spec.key}/{attempt}/prompt.parquet", data)
    return PartRecord(spec.key, "prompt.parquet", 0, bytes_digest(data))


def commit_prior_set(
    store: Store, spec: PriorSpec, attempt: str, records: Sequence[PartRecord]
) -> bool:
    """Write the marker of a complete set; False if another attempt was committed first. Either way,
    remove what other attempts left.

    Raises:
        StoreError: if parts are missing.
    """
    parts = sorted(records, key=lambda record: record.file)
    expected = [part.file for part in parts_of(spec)] + ["prompt.parquet"]
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


def as_prior_set(arrays: Arrays, base: Base) -> PriorSet:
    """The arrays as the trainer takes them; the moments are not copied."""
    extra, tokens = {}, {}
    for column, value in arrays.items():
        kind, _, name = column.partition(".")
        if kind == "extra":
            extra[name] = torch.from_numpy(np.array(value)).to(base.device, base.dtype)
        elif kind == "tokens":
            tokens[name or FIRST_TOKENS] = torch.from_numpy(np.array(value)).long()
    if MASK in extra:
        extra[MASK] = extra[MASK].bool()
    hidden_1TD = torch.from_numpy(np.array(arrays["hidden"])).to(base.device, base.dtype)
    frames = torch.from_numpy(np.array(arrays["frames"])) if "frames" in arrays else None
    conditioning = Conditioning(hidden_1TD, extra)
    return PriorSet(arrays["moments"], conditioning, TokenIds(tokens), frames)
