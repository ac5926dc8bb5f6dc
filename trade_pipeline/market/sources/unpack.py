"""The files that a pattern matches, and the tables inside one: plain, gzipped or zipped.

Knows nothing of bars. Start at `require_matching`, then `members`, which unpacks in memory.
"""

import glob
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trade_pipeline.market.sources.base import SourceError

# What browsers and copying programs call a file until it is whole.
UNFINISHED = (".part", ".tmp", ".crdownload", ".download")
ENCRYPTED = 0x1  # bit of a ZIP member's flags


def matching(pattern: str, base: Path) -> list[tuple[str, Path]]:
    """Name for people and path of each file of a path or glob, in the order of the names.

    A glob matches no hidden file and none whose name says that it is unfinished.
    """
    return [(name, path) for name, path in _found(pattern, base) if not _unfinished(name, pattern)]


def require_matching(pattern: str, base: Path, key: str) -> list[tuple[str, Path]]:
    """As `matching`, but at least one. Raises `SourceError` that names the series `key`."""
    if files := matching(pattern, base):
        return files
    left_out = [name for name, _ in _found(pattern, base)]
    seen = f" ({', '.join(left_out[:5])}: hidden or unfinished)" if left_out else ""
    raise SourceError(
        f"{pattern}: series {key}: no file matches in {base}{seen}; correct the path in the "
        "series' source, or put the file there."
    )


def _found(pattern: str, base: Path) -> list[tuple[str, Path]]:
    # A path that exists is taken as it is, so that a bracket in a name is no glob.
    # Path.glob refuses absolute patterns, and would read brackets in `base` as one.
    found = [pattern] if (base / pattern).is_file() else glob.glob(pattern, root_dir=base)  # noqa: PTH207
    return sorted((Path(one).as_posix(), base / one) for one in found if (base / one).is_file())


def _unfinished(name: str, pattern: str) -> bool:
    last = PurePosixPath(name).name
    # Whoever writes out such a name means it.
    named = last == PurePosixPath(pattern).name
    return not named and (last.startswith(".") or last.lower().endswith(UNFINISHED))


def members(name: str, content: bytes, key: str) -> Iterator[tuple[str, bytes]]:
    """Label and bytes of each table of a file, members of a ZIP in the order of their names.

    Args:
        name: the file's name; its ending `.gz` or `.zip` says how it is packed.
        content: the file's bytes.
        key: the series, for error messages.

    Raises:
        SourceError: empty, truncated, encrypted, or an HTML page under another name.
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
            tables = list(_zip_members(name, content, key))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
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


def encrypted(label: str, key: str) -> SourceError:
    """What is said of a member of a ZIP that asks for a password."""
    return SourceError(
        f"{label}: series {key}: this member of the ZIP is encrypted, and only plain ones are "
        "read; unpack it with its password, and zip it again without one."
    )


def _zip_members(name: str, content: bytes, key: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = [
            one
            for one in archive.infolist()
            if not one.is_dir() and not one.filename.startswith("__MACOSX/")
        ]
        names = [one.filename for one in infos]
        for one in infos:
            if one.flag_bits & ENCRYPTED:
                raise encrypted(f"{name}/{one.filename}", key)
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
