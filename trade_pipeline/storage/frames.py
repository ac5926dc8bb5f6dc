"""Frames in the store: one parquet file a partition, named by what it holds.

Knows polars and files, nothing of bars or features. Start at `write_frame` and `read_frame`;
hold `frame_lock` around a read, merge and write of the same partition.
"""

import fcntl
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import polars as pl

from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.storage.location import ArtifactLocation, make_folder, replacing, writable
from trade_pipeline.storage.location import StorageError as StorageError

_NUMBERS = {pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Float32, pl.Float64}
_NUMBERS |= {pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64}
_TIMES = {pl.Date, pl.Datetime, pl.Duration, pl.Time}
_TEXTS = {pl.String, pl.Binary}
_ARROW_SCHEMA = "ARROW:schema"  # parquet metadata that polars writes for itself
_CONTENT_HASH = "content_hash"  # key of the file\'s metadata, beside those of the caller


def content_hash(frame: pl.DataFrame, metadata: Mapping[str, str] | None = None) -> str:
    """Hash of what a frame says, not of how it lies in memory or in a file.

    Equal for equal names, dtypes, values in order, and metadata: chunks, slices, bytes below
    nulls and the payload of NaN do not enter. 0.0 and -0.0 differ, since they divide differently.

    Returns:
        64 hexadecimal digits of a SHA-256.

    Raises:
        StorageError: a column is nested, decimal, categorical, 128-bit or of Python objects.
    """
    header = {
        "height": frame.height,
        "columns": [[series.name, _dtype_name(series)] for series in frame],
        "metadata": dict(metadata or {}),
    }
    text = canonical_json(header).encode()
    # Header length first, then parts whose lengths follow from the header: no two frames can
    # feed the same bytes.
    digest = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    for series in frame:
        digest.update(_validity(series))
        for part in _buffers(series):
            digest.update(part)
    return digest.hexdigest()


def write_frame(
    location: ArtifactLocation, frame: pl.DataFrame, metadata: Mapping[str, str] | None = None
) -> str:
    """Write one parquet file atomically; its key-value metadata carries `metadata`.

    Returns:
        `content_hash(frame, metadata)`, which a later read gives again.

    Raises:
        StorageError: a column has a dtype that `content_hash` refuses.
    """
    try:
        digest = content_hash(frame, metadata)
    except StorageError as error:
        raise StorageError(f"{location}: {error}") from None
    written = {**(metadata or {}), _CONTENT_HASH: digest}
    content = io.BytesIO()
    frame.write_parquet(content, compression="zstd", metadata=written)
    with replacing(location) as temporary:
        # Not by polars: of a full disk it says that the parquet file is out of specification.
        temporary.write_bytes(content.getbuffer())
    return digest


class StoredFrame(NamedTuple):
    """A file's frame, the metadata given with it, and the hash of both."""

    frame: pl.DataFrame
    metadata: dict[str, str]
    content_hash: str


def read_whole(location: ArtifactLocation) -> StoredFrame:
    """Read one file and compare its content with the hash that was written with it.

    Its bytes are read once, so that a writer who replaces the file meanwhile mixes nothing.

    Raises:
        StorageError: it is missing, damaged, or not what was written.
    """
    _require_file(location)
    try:
        content = location.path.read_bytes()
        frame = pl.read_parquet(io.BytesIO(content))
        written = pl.read_parquet_metadata(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(location, error) from error
    written.pop(_ARROW_SCHEMA, None)
    digest = written.pop(_CONTENT_HASH, "")
    if digest != content_hash(frame, written):
        raise StorageError(
            f"{location}: its content is not what was written there; a byte of the file was "
            "changed. Materialize the partition again."
        )
    return StoredFrame(frame, written, digest)


def read_frame(location: ArtifactLocation) -> pl.DataFrame:
    """The frame of `read_whole`. Raises `StorageError` likewise."""
    return read_whole(location).frame


def read_frames(locations: Sequence[ArtifactLocation]) -> pl.DataFrame:
    """Read frames of one schema and stack them in the order given.

    Raises:
        StorageError: none is given, one is missing or damaged, or schemas differ.
    """
    if not locations:
        raise StorageError("no frame to read: the list of locations is empty; name at least one.")
    frames = [read_frame(location) for location in locations]
    for location, frame in zip(locations, frames, strict=True):
        if frame.schema != frames[0].schema:
            raise StorageError(
                f"{location}: schema {dict(frame.schema)} differs from {dict(frames[0].schema)} of "
                f"{locations[0]}; materialize both again, so that one version of the code wrote "
                "them."
            )
    return pl.concat(frames)


def read_metadata(location: ArtifactLocation) -> dict[str, str]:
    """The metadata given to `write_frame`. Raises `StorageError` when it cannot be read."""
    metadata = _all_metadata(location)
    metadata.pop(_CONTENT_HASH, None)
    return metadata


def read_hash(location: ArtifactLocation) -> str:
    """The content hash written with a frame; `read_frame` is what compares it.

    Raises:
        StorageError: the file is missing, damaged, or was not written by `write_frame`.
    """
    try:
        return _all_metadata(location)[_CONTENT_HASH]
    except KeyError:
        raise StorageError(
            f"{location}: holds no content hash; materialize the partition again."
        ) from None


def _all_metadata(location: ArtifactLocation) -> dict[str, str]:
    _require_file(location)
    try:
        metadata = pl.read_parquet_metadata(location.path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(location, error) from error
    return {key: value for key, value in metadata.items() if key != _ARROW_SCHEMA}


@contextmanager
def frame_lock(
    location: ArtifactLocation, waits: Callable[[], None] | None = None
) -> Iterator[None]:
    """Wait until no other process or thread holds the lock of this location, then hold it.

    `waits` is called once where it is held.

    The lock ends with its holder, killed or not. Not re-entrant. The empty file
    `.<name>.lock` beside the location stays: removing it would let two writers in.
    """
    path = location.path
    with writable(location):
        make_folder(path.parent)
        file = path.with_name(f".{path.name}.lock").open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waits is not None:
                waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(location: ArtifactLocation) -> bool:
    """Whether somebody holds `frame_lock` of this location now."""
    try:
        with location.path.with_name(f".{location.path.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _dtype_name(series: pl.Series) -> str | list[str]:
    """Our own spelling of a dtype, so that a polars release cannot change every hash."""
    dtype = series.dtype
    name = type(dtype).__name__
    if isinstance(dtype, pl.Datetime):
        return [name, dtype.time_unit, dtype.time_zone or ""]
    if isinstance(dtype, pl.Duration):
        return [name, dtype.time_unit]
    if isinstance(dtype, pl.Enum):
        return [name, *dtype.categories]
    if dtype.base_type() in _NUMBERS | _TIMES | _TEXTS | {pl.Boolean, pl.Null}:
        return name
    raise StorageError(
        f"column {series.name!r} has dtype {dtype}, which the store does not keep; "
        "cast it to a number, time, String or Enum, or spread it over columns."
    )


def _validity(series: pl.Series) -> bytes:
    """One bit a value, most significant first: whether it is there."""
    if series.null_count():
        return np.packbits(series.is_not_null().to_numpy()).tobytes()
    whole, rest = divmod(len(series), 8)
    return b"\xff" * whole + (bytes([0xFF << (8 - rest) & 0xFF]) if rest else b"")


def _buffers(series: pl.Series) -> Iterator[bytes | memoryview]:
    """The values of a column as bytes, with 0 or nothing in place of nulls."""
    dtype = series.dtype
    if dtype == pl.Null or series.null_count() == len(series):
        return  # the bits before say all
    if dtype in _TEXTS:
        values = series.cast(pl.Binary).fill_null(b"")
        yield np.ascontiguousarray(values.bin.size().cast(pl.UInt64).to_numpy()).data
        yield b"".join(values.to_list())
    elif dtype == pl.Boolean:
        yield np.packbits(series.fill_null(False).to_numpy()).data
    else:
        # An Enum's codes are as wide as its categories need; one width, for 65,536 of them.
        codes = pl.UInt16 if dtype == pl.Enum else series.to_physical().dtype
        numbers = series.to_physical().cast(codes)
        # Most columns have neither nulls nor NaN, and need no copy to be rid of them.
        if numbers.null_count():
            numbers = numbers.fill_null(0)
        if dtype.is_float() and numbers.is_nan().any():
            numbers = numbers.fill_nan(float("nan"))
        yield np.ascontiguousarray(numbers.to_numpy()).data


def _require_file(location: ArtifactLocation) -> None:
    if not location.path.is_file():
        raise StorageError(f"{location}: no such frame; materialize the partition that writes it.")


def _unreadable(location: ArtifactLocation, error: Exception) -> StorageError:
    return StorageError(f"{location}: cannot be read ({error}); materialize the partition again.")
