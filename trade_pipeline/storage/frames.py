"""Frames in the store: one parquet file a partition, named by what it holds.

Knows polars and files, nothing of bars or features. Start at `write_frame` and `read_frame`;
hold `frame_lock` around a read, merge and write of the same partition.
"""

import fcntl
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import polars as pl

from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.storage.location import ArtifactLocation, make_folder, replacing
from trade_pipeline.storage.location import StorageError as StorageError

_NUMBERS = {pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Float32, pl.Float64}
_NUMBERS |= {pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64}
_TIMES = {pl.Date, pl.Datetime, pl.Duration, pl.Time}
_TEXTS = {pl.String, pl.Binary}
_ARROW_SCHEMA = "ARROW:schema"  # parquet metadata that polars writes for itself


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
        digest.update(np.packbits(series.is_not_null().to_numpy()).data)
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
    with replacing(location) as temporary:
        frame.write_parquet(temporary, compression="zstd", metadata=dict(metadata or {}))
    return digest


def read_frame(location: ArtifactLocation) -> pl.DataFrame:
    """Read one frame. Raises `StorageError` when it is missing or damaged."""
    return read_frames([location])


def read_frames(locations: Sequence[ArtifactLocation]) -> pl.DataFrame:
    """Read frames of one schema and stack them in the order given.

    Raises:
        StorageError: none is given, one is missing or damaged, or schemas differ.
    """
    if not locations:
        raise StorageError("no frame to read: the list of locations is empty; name at least one.")
    for location in locations:
        _require_file(location)
    try:
        # Keys are names, not patterns, so no globs.
        paths = [location.path for location in locations]
        return pl.scan_parquet(paths, glob=False).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StorageError(_explain(locations, error)) from error


def read_metadata(location: ArtifactLocation) -> dict[str, str]:
    """The metadata given to `write_frame`. Raises `StorageError` as `read_frame` does."""
    _require_file(location)
    try:
        metadata = pl.read_parquet_metadata(location.path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StorageError(_explain([location], error)) from error
    return {key: value for key, value in metadata.items() if key != _ARROW_SCHEMA}


@contextmanager
def frame_lock(location: ArtifactLocation) -> Iterator[None]:
    """Wait until no other process or thread holds the lock of this location, then hold it.

    The lock ends with its holder, killed or not. Not re-entrant. The empty file
    `.<name>.lock` beside the location stays: removing it would let two writers in.
    """
    path = location.path
    make_folder(path.parent)
    with path.with_name(f".{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _buffers(series: pl.Series) -> Iterator[bytes | memoryview]:
    """The values of a column as bytes, with 0 or nothing in place of nulls."""
    dtype = series.dtype
    if dtype == pl.Null:
        return
    if dtype in _TEXTS:
        values = series.cast(pl.Binary).fill_null(b"")
        yield np.ascontiguousarray(values.bin.size().cast(pl.UInt64).to_numpy()).data
        yield b"".join(values.to_list())
    elif dtype == pl.Boolean:
        yield np.packbits(series.fill_null(False).to_numpy()).data
    else:
        # An Enum's codes are as wide as its categories need; one width keeps this simple.
        codes = pl.UInt32 if dtype == pl.Enum else series.to_physical().dtype
        numbers = series.to_physical().cast(codes).fill_null(0)
        if dtype.is_float():
            numbers = numbers.fill_nan(float("nan"))
        yield np.ascontiguousarray(numbers.to_numpy()).data


def _require_file(location: ArtifactLocation) -> None:
    if not location.path.is_file():
        raise StorageError(f"{location}: no such frame; materialize the partition that writes it.")


def _explain(locations: Sequence[ArtifactLocation], error: Exception) -> str:
    """Name the file that cannot be read, or the first whose schema differs from the first file."""
    found = error
    schemas: list[dict[str, pl.DataType]] = []
    for location in locations:
        try:
            schemas.append(dict(pl.read_parquet_schema(location.path)))
        except (pl.exceptions.PolarsError, OSError) as damage:
            found = damage
            break
        if schemas[-1] != schemas[0]:
            return (
                f"{location}: schema {schemas[-1]} differs from {schemas[0]} of {locations[0]}; "
                "materialize both again, so that one version of the code wrote them."
            )
    return f"{location}: cannot be read ({found}); materialize the partition again."
