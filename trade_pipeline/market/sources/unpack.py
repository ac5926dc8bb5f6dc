"""The tables inside a file: plain, gzipped, or members of a ZIP, all read in memory.

Knows nothing of bars. Start at `members`.
"""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from trade_pipeline.market.sources.base import SourceError


def members(name: str, content: bytes, key: str) -> Iterator[tuple[str, bytes]]:
    """Label and bytes of each table of a file, members of a ZIP in the order of their names.

    Args:
        name: the file's name; its ending `.gz` or `.zip` says how it is packed.
        content: the file's bytes.
        key: the series, for error messages.

    Raises:
        SourceError: empty, truncated, or an HTML page under another name.
    """
    about = f"{name}: series {key}"
    _refuse_empty_and_html(content, about)
    packing = PurePosixPath(name).suffix.lower()
    if packing not in (".gz", ".zip"):
        yield name, content
        return
    try:
        if packing == ".gz":
            tables = [(name, gzip.decompress(content))]
        else:
            tables = list(_zip_members(name, content))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,  # an encrypted member
        NotImplementedError,  # a compression that Python lacks
    ) as error:
        raise SourceError(
            f"{about}: cannot be unpacked as {packing} ({error}); the file is damaged or was "
            "not downloaded to its end. Fetch it again."
        ) from error
    if not tables:
        raise SourceError(f"{about}: the ZIP holds no file.")
    for label, table in tables:
        _refuse_empty_and_html(table, f"{label}: series {key}")
        yield label, table


def _zip_members(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [
            one.filename
            for one in archive.infolist()
            if not one.is_dir() and not one.filename.startswith("__MACOSX/")
        ]
        for member in sorted(names):
            label = name if len(names) == 1 else f"{name}/{member}"
            yield label, archive.read(member)


def _refuse_empty_and_html(content: bytes, about: str) -> None:
    start = content[:200].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start and not content.strip():
        raise SourceError(f"{about}: the file is empty.")
    if start.startswith(b"<"):
        raise SourceError(
            f"{about}: this is an HTML page ({start[:20].decode(errors='replace')!r}), not data; "
            "the server answered with a page instead of the file. Download it again by hand."
        )
