"""Headerless CSV members of large ZIPs, read in place: no archive is unpacked or held in memory.

Knows nothing of bars and of no venue. Start at `find_members`, then `rows` of one.
"""

import difflib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import polars as pl

from trade_pipeline.market.sources.base import SourceError, Surroundings
from trade_pipeline.market.sources.unpack import ENCRYPTED, encrypted, require_matching

BLOCK_BYTES = 4 << 20  # of a member's text at a time
LONGEST_LINE = 1 << 16
# Rows of numbers shrink to a third, or to a tenth when they repeat: what shrinks more than this
# and is large was made to fill a memory.
MOST_COMPRESSED, LARGE_BYTES = 200, 4 << 30
SMALL_BYTES = 10 << 20  # what is less, and no ZIP, is a page that was saved in its place
_TIME = re.compile(rb"(\d{10})(?:\.(\d{1,9}))?")


class Member(NamedTuple):
    """One table inside one archive.

    Attributes:
        path: of the archive.
        inside: the member's full name in the archive.
        label: archive and member, for people.
        key: the series, for error messages.
    """

    path: Path
    inside: str
    label: str
    key: str


def find_members(
    pattern: str, wanted: str, about: str, key: str, around: Surroundings
) -> list[Member]:
    """The members of this basename, one an archive, in the order of the archives' names.

    Of several archives some may lack it, as those before a pair was listed do; the log says so.

    Args:
        pattern: path or glob of the archives, relative to `around.base`.
        wanted: basename of the member, its case as given; it may be in a folder.
        about: what it should hold, for error messages: "pair XBTUSD".
        key: the series, likewise.
        around: folder and log.

    Raises:
        SourceError: no archive; one that is no ZIP, damaged, or has the member twice, encrypted
            or compressed beyond belief; none has it.
    """
    found: list[Member] = []
    without: dict[str, list[str]] = {}
    for name, path in require_matching(pattern, around.base, key):
        with _opened(path, f"{name}: series {key}") as archive:
            infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            listed = [info.filename for info in archive.infolist() if not info.is_dir()]
        same = [inside for inside in listed if _basename(inside) == wanted]
        if len(same) > 1:
            raise SourceError(
                f"{name}: series {key}: {wanted} is in the archive {len(same)} times "
                f"({', '.join(same[:5])}), and nothing says which one holds; remove the others."
            )
        if same:
            _refuse_unreadable(infos[same[0]], f"{name}/{same[0]}", key)
            found.append(Member(path, same[0], f"{name}/{same[0]}", key))
        else:
            without[name] = [_basename(inside) for inside in listed]
    if not found:
        near = _closest(wanted, {one for members in without.values() for one in members})
        raise SourceError(
            f"{', '.join(without)}: series {key}: no member {wanted}, which {about} would be in; "
            f"{near}. Correct the symbol, or fetch the archive that has it."
        )
    for name in without:
        around.log(f"{key}: {name} has no member {wanted}; the other archives have")
    return found


def rows(member: Member, columns: Mapping[str, pl.DataType]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Block after block of a member: the 1-based row of its first line, and its rows.

    Args:
        member: a CSV table without a header and without quotes.
        columns: name and type of each field of a line; numbers only.

    Raises:
        SourceError: the member is empty or damaged, or a line is not these numbers; NaN is one.
    """
    first = 1
    for block in _blocks(member):
        table = _parsed(member, columns, block, first)
        yield first, table
        first += table.height


def bounds_ns(member: Member) -> tuple[int, int]:
    """Times of the first and the last line, whose first field is in seconds since 1970.

    Reads the member once, until the archive's size or time changes.

    Raises:
        SourceError: as `rows`, of these two lines; or the last one is the earlier one.
    """
    status = member.path.stat()
    return _bounds_ns(member, status.st_size, status.st_mtime_ns)


def refuse(member: Member, row: int, found: object, fault: str) -> SourceError:
    """An error that names archive, member, series and row."""
    return SourceError(
        f"{member.label}: series {member.key}: row {row} {fault}: found {found!r}. The archive "
        "is damaged or was edited; fetch it again."
    )


@lru_cache(maxsize=256)
def _bounds_ns(member: Member, size: int, mtime_ns: int) -> tuple[int, int]:
    # Size and time are there for the cache: another file under the same name is another entry.
    lines, ends = 0, [b"", b""]
    for block in _blocks(member):
        stripped = block.rstrip(b"\n")
        ends = [ends[0] or block.split(b"\n", 1)[0], stripped[stripped.rfind(b"\n") + 1 :]]
        lines += block.count(b"\n") + (not block.endswith(b"\n"))
    times = []
    for row, line in zip((1, lines), ends, strict=True):
        read = _TIME.fullmatch(line.split(b",", 1)[0])
        if read is None:
            raise refuse(member, row, _shown(line), "does not start with seconds since 1970")
        times.append(int(read[1] + (read[2] or b"").ljust(9, b"0")))
    if times[0] > times[1]:
        raise refuse(member, lines, _shown(ends[1]), "is earlier than the first row")
    return times[0], times[1]


def _blocks(member: Member) -> Iterator[bytes]:
    """The member's text, cut at ends of lines."""
    about = f"{member.label}: series {member.key}"
    rest = block = b""
    with _opened(member.path, about) as archive, archive.open(member.inside) as stream:
        while chunk := stream.read(BLOCK_BYTES):
            cut = chunk.rfind(b"\n") + 1
            if cut:
                block, rest = rest + chunk[:cut], chunk[cut:]
                yield block
            else:
                rest += chunk
            if len(rest) > LONGEST_LINE and not cut:
                raise SourceError(
                    f"{about}: a line of this member is longer than {LONGEST_LINE} bytes, so it is "
                    f"no table of numbers: {_shown(rest)!r}. Fetch the archive again."
                )
    if rest:
        yield rest
    elif not block:
        raise SourceError(f"{about}: this member of the archive is empty; fetch it again.")


def _parsed(
    member: Member, columns: Mapping[str, pl.DataType], block: bytes, first: int
) -> pl.DataFrame:
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        # What cannot be read becomes null: looking for it costs less than reading as text.
        table = pl.read_csv(
            block, has_header=False, schema=columns, quote_char=None, ignore_errors=True
        )
    except pl.exceptions.PolarsError:  # a line with too many fields, or a first one with too few
        table = pl.DataFrame(schema=columns)
    unread = table.select(pl.any_horizontal(pl.all().is_null())).to_series()
    if table.height == lines and not unread.any():
        return table
    # Rows of the table are lines of the block only when polars skipped none, as it does empty ones.
    null = set(unread.arg_true()) if table.height == lines else set()
    fields = len(columns)
    for at, line in enumerate(block.split(b"\n")[:lines]):
        if at in null or line.count(b",") != fields - 1:
            fault = f"is not the {fields} numbers {', '.join(columns)}"
            raise refuse(member, first + at, _shown(line), fault)
    raise refuse(member, first, _shown(block), "or one of those after it cannot be read as CSV")


@contextmanager
def _opened(path: Path, about: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        NotImplementedError,  # a compression that Python lacks
    ) as error:
        raise _no_archive(path, about, error) from error


def _no_archive(path: Path, about: str, error: Exception) -> SourceError:
    """What kind of file was found instead of a whole ZIP."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return SourceError(f"{about}: cannot be read ({error}); make the file readable.")
    if start.startswith(b"PK"):
        return SourceError(
            f"{about}: cannot be read as a ZIP of {size} bytes ({error}); it is damaged, or was "
            "not downloaded to its end. Fetch it again."
        )
    if size == 0:
        return SourceError(f"{about}: the file is empty; fetch it again.")
    html = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
    if html or size < SMALL_BYTES:
        return SourceError(
            f"{about}: the download page was saved instead of the archive ({size} bytes, no ZIP, "
            f"starting with {start[:20]!r}); open the link in a browser and confirm the download."
        )
    return SourceError(f"{about}: this is no ZIP ({error}); correct the path, or fetch it again.")


def _refuse_unreadable(info: zipfile.ZipInfo, label: str, key: str) -> None:
    if info.flag_bits & ENCRYPTED:
        raise encrypted(label, key)
    if info.file_size > LARGE_BYTES and info.file_size > MOST_COMPRESSED * info.compress_size:
        raise SourceError(
            f"{label}: series {key}: {info.compress_size} bytes would unpack to {info.file_size}, "
            f"more than {MOST_COMPRESSED} times as many; no table of a market does. Fetch the "
            "archive from the venue itself."
        )


def _basename(inside: str) -> str:
    return re.split(r"[/\\]", inside)[-1]  # some programs write backslashes


def _closest(wanted: str, known: set[str]) -> str:
    by_lower = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(wanted.lower(), by_lower, n=5, cutoff=0.5)
    if not near:
        return f"none of its {len(known)} members has a name like it"
    return f"the closest members are {', '.join(by_lower[name] for name in near)}"


def _shown(line: bytes) -> str:
    return line[:80].decode(errors="replace").rstrip("\r")
