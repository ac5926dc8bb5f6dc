"""Zips and folders from anywhere: what is packed, and what is refused on the way in."""

import io
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.storage.archives import ArchiveError, Limits, new_file, pack, receive
from trade_pipeline.storage.bundles import seal, staging, verify
from trade_pipeline.storage.location import ArtifactLocation

KNOWN = ("spec.json", "tb/*", "weights")
SMALL = Limits(member_bytes=2**21, total_bytes=3 * 2**20, members=5, ratio=10)


@pytest.fixture
def bundle(tmp_path: Path) -> ArtifactLocation:
    location = staging(tmp_path, "policy")
    (location.path / "tb").mkdir()
    for name, text in (("weights", "w"), ("spec.json", "{}"), ("tb/log", "it went well")):
        (location.path / name).write_text(text)
    return seal(location, ["weights", "spec.json"]).location


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_packed_twice_is_the_same_file(bundle: ArtifactLocation, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "one.zip")
    for path in bundle.path.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    pack(bundle, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_what_was_packed_is_received_byte_by_byte(
    bundle: ArtifactLocation, tmp_path: Path, packed: bool
) -> None:
    source = bundle.path
    if packed:
        source = tmp_path / "one.zip"
        pack(bundle, source)
    received = ArtifactLocation(tmp_path, "received")
    hashes = receive(source, received.path, KNOWN)
    assert files(received.path) == files(bundle.path)
    index = verify(received)
    assert {one["name"]: one["sha256"] for one in index["members"]}.items() <= hashes.items()


def test_a_damaged_bundle_is_not_packed(bundle: ArtifactLocation, tmp_path: Path) -> None:
    (bundle.path / "weights").write_text("x")
    with pytest.raises(Exception, match="'weights' is not the file that was sealed"):
        pack(bundle, tmp_path / "one.zip")


def archive(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for entry, content in entries:
            packed.writestr(entry, content)
    return path


def entry(name: str, mode: int = 0, method: int = 0) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    made.compress_type = method
    return made


def named(*names: str) -> Callable[[Path], Path]:
    return lambda path: archive(path, *((entry(name), b"text") for name in names))


def holding(content: bytes) -> Callable[[Path], Path]:
    return lambda path: archive(path, ("weights", content))


def changed(change: Callable[[bytearray], object]) -> Callable[[Path], Path]:
    """A good archive whose bytes are changed afterwards."""

    def make(path: Path) -> Path:
        content = bytearray(archive(path, ("weights", b"w" * 1000), method=8).read_bytes())
        change(content)
        path.write_bytes(content)
        return path

    return make


def both_headers(offset: int, value: bytes) -> Callable[[bytearray], object]:
    """Write a field into the member's own header and, 2 bytes further in, the list's."""

    def change(content: bytearray) -> None:
        for at in (offset, content.index(b"PK\x01\x02") + offset + 2):
            content[at : at + len(value)] = value

    return change


def understate(content: bytearray) -> None:
    """Both headers claim that 2 MiB + 1 of zeros are 7 bytes."""
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w", 8) as packed:
        packed.writestr("weights", bytes(2**21 + 1))
    content[:] = inside.getvalue()
    both_headers(22, struct.pack("<I", 7))(content)


def doubled() -> bytes:
    """Two members of one name."""
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr("weights", "one")
        packed.writestr("weights", "two")
    return inside.getvalue()


def payload(name: str) -> bytes:
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as packed:
        packed.writestr(name, b"\x80\x04.")
    return inside.getvalue()


REFUSALS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parent": (named("../outside"), r"'\.\./outside' cannot be a member"),
    "parent inside": (named("tb/../../outside"), "cannot be a member"),
    "absolute": (named("/etc/passwd"), "'/etc/passwd' cannot be a member"),
    "drive": (named("C:weights"), "'C:weights' cannot be a member"),
    "backslash": (named("..\\outside"), "cannot be a member"),
    "dot": (named("./weights"), "cannot be a member"),
    "doubled slash": (named("tb//log"), "cannot be a member"),
    "control character": (named("tb/\x1b[2Jlog"), r"'tb/\\x1b\[2Jlog' cannot be a member"),
    "letter that looks like another": (named("w\u0435ights"), r"'w\\u0435ights' cannot be"),
    "folder": (named("tb/"), r"'tb/' is a folder, link or no plain file"),
    "link": (
        lambda path: archive(path, (entry("weights", stat.S_IFLNK | 0o777), b"/etc/passwd")),
        "'weights' is a folder, link",
    ),
    "device": (
        lambda path: archive(path, (entry("weights", stat.S_IFCHR), b"")),
        "'weights' is a folder, link",
    ),
    "twice": (
        changed(lambda content: content.__setitem__(slice(None), doubled())),
        "'weights' is there twice",
    ),
    "case": (named("tb/log", "tb/Log"), "differ only in case"),
    "case of folders": (named("tb/a", "TB/b"), "differ only in case"),
    "below a file": (named("tb/a", "tb/a/b"), "'tb/a/b' lies below another member"),
    "unknown": (named("weights", "setup.py"), r"'setup\.py' is unknown; taken are bundle\.json"),
    "too many": (named(*(f"tb/{n}" for n in range(6))), "more than 5 members"),
    "list too long": (named(*(f"tb/{n}" for n in range(60))), "more than 5 members"),
    "encrypted": (changed(both_headers(6, b"\x01\x00")), "'weights' is encrypted"),
    "odd compression": (
        lambda path: archive(path, (entry("weights", method=zipfile.ZIP_LZMA), b"text")),
        "compressed by method 14",
    ),
    "unknown compression": (changed(both_headers(8, b"\x63\x00")), "compressed by method 99"),
    "member too large": (
        holding(os.urandom(2**20) * 2 + b"x"),
        "'weights' is larger than 2097152 bytes",
    ),
    "all too large": (
        lambda path: archive(path, *((f"tb/{n}", os.urandom(2**20)) for n in range(4))),
        r"has \d+ bytes, more than 3145728",
    ),
    "all too large unpacked": (
        lambda path: archive(path, *((f"tb/{n}", bytes(2**20)) for n in range(4)), method=8),
        "'tb/3' it unpacks to more than 3145728 bytes",
    ),
    "over-compressed": (
        lambda path: archive(path, ("weights", bytes(2**21)), method=8),
        "unpacks to more than 10 times",
    ),
    "a size that is a lie": (changed(understate), "cannot be unpacked"),
    "a size far too large": (
        changed(both_headers(22, b"\xf0\xff\xff\xff")),
        "larger than 2097152 bytes",
    ),
    "a changed byte": (
        changed(lambda content: content.__setitem__(45, content[45] ^ 1)),
        "cannot be unpacked",
    ),
    "two names for one": (
        changed(lambda content: content.__setitem__(30, ord("v"))),
        "cannot be unpacked",
    ),
    "truncated": (changed(lambda content: content.__delitem__(slice(-40, None))), "no plain zip"),
    "something before it": (
        changed(lambda content: content.__setitem__(slice(0, 0), b"#!/bin/sh\n")),
        "no plain zip",
    ),
    "something behind it": (changed(lambda content: content.extend(b"more")), "no plain zip"),
    "no archive": (lambda path: path.write_text("hello") and path, "no plain zip"),
    "empty file": (lambda path: path.write_text("") or path, "no plain zip"),
    "nothing there": (lambda path: path, "cannot be read as a zip or folder"),
    "pickle": (holding(b"\x80\x04\x95rest"), "'weights' is a pickle"),
    "old pickle": (holding(b"cposix\nsystem\n(S'true'\ntR."), "'weights' is a pickle"),
    "older pickle": (holding(b"(S'true'\nios\nsystem\n."), "'weights' is a pickle"),
    "torch": (holding(payload("archive/data.pkl")), "'weights' is a zip inside"),
    "joblib": (holding(b"x\x9crest"), "'weights' is compressed once more"),
    "gzip": (holding(b"\x1f\x8brest"), "'weights' is compressed once more"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_is_refused_leaves_nothing(tmp_path: Path, refusal: str) -> None:
    make, message = REFUSALS[refusal]
    (tmp_path / "given").mkdir()
    source = make(tmp_path / "given" / "policy.zip")
    folder = tmp_path / "store" / "quarantine"
    folder.parent.mkdir()
    with pytest.raises(ArchiveError, match=message):
        receive(source, folder, KNOWN, SMALL)
    assert list(folder.parent.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"given", "store"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tb/link").symlink_to("/etc/passwd"), "'tb/link' is a link"),
        (lambda folder: (folder / "more").symlink_to("/etc"), "'more' is a link"),
        (lambda folder: os.mkfifo(folder / "tb/pipe"), "'tb/pipe' is a link or no plain file"),
        (lambda folder: (folder / "tb/a b").touch(), "'tb/a b' cannot be a member"),
        (lambda folder: (folder / "setup.py").touch(), "is unknown"),
        (lambda folder: os.truncate(folder / "weights", 2**40), "larger than 2097152"),
        (lambda folder: (folder / "weights").write_bytes(b"\x80\x05rest"), "is a pickle"),
    ],
)
def test_a_folder_is_refused_for_the_same(
    bundle: ArtifactLocation,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    spoil(bundle.path)
    with pytest.raises(ArchiveError, match=message):
        receive(bundle.path, tmp_path / "received", KNOWN, SMALL)
    assert not (tmp_path / "received").exists()


def test_small_members_may_be_compressed_well(tmp_path: Path) -> None:
    source = archive(tmp_path / "one.zip", ("tb/log", b"the same line\n" * 50_000), method=8)
    receive(source, tmp_path / "received", KNOWN, SMALL)
    assert (tmp_path / "received/tb/log").stat().st_size == 700_000


@given(at=st.integers(0, 10_000), value=st.integers(0, 255), more=st.binary(max_size=3))
def test_any_bytes_are_taken_or_refused_in_a_sentence(at: int, value: int, more: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = archive(folder / "one.zip", ("weights", b"w" * 99), ("tb/log", b"x"), method=8)
        content = bytearray(source.read_bytes())
        content[at % len(content)] = value
        content[at % len(content) : at % len(content)] = more
        source.write_bytes(content)
        try:
            receive(source, folder / "received", KNOWN, SMALL)
        except ArchiveError as error:
            assert str(source) in str(error)
            assert not (folder / "received").exists()
        else:
            assert files(folder / "received").keys() <= {"weights", "tb/log"}


def test_a_file_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "my policy.zip"
    with new_file(path, force=False) as target:
        target.write_text("first")
    with (
        pytest.raises(ArchiveError, match="is there already; choose another name or give --force"),
        new_file(path, force=False),
    ):
        pytest.fail("nothing is to be written")
    with new_file(path, force=True) as target:
        target.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_came_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "one.zip"
    with (
        pytest.raises(ArchiveError, match="is there already"),
        new_file(path, force=False) as target,
    ):
        target.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_file(tmp_path / "one.zip", force=False) as target:
        target.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(ArchiveError, match="is a folder; name the file"),
        new_file(tmp_path, force=True),
    ):
        pytest.fail("nothing is to be written")
