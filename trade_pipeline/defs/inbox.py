"""The inbox sensor: a file dropped into the folder `inbox` is imported once, by its content.

A series takes part when the files that its source names lie there. Since a source reads all files
of its pattern at once, a series waits until each of them has stopped growing. The cursor keeps, per
file, what was seen of it and its hash, so that gigabytes are read once and never within one tick.
A content counts as imported once a run that read it succeeded. Runs are found by their run key,
which names all contents that the series reads: where such a run failed, the same contents are not
asked for again, and others are. Start at `build_inbox_sensor`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import dagster as dg
from dagster._core.storage.tags import RUN_KEY_TAG

from trade_pipeline.defs.backfill import backfill_config
from trade_pipeline.market.sources.unpack import UNFINISHED, matching
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import FileSource, KrakenSource

FOLDER = "inbox"
INTERVAL_S = 30
QUIET_S = 30
TICK_S = 20  # of reading; Dagster ends a tick after a minute
BLOCK, CHUNK = 1 << 28, 1 << 20  # bytes
HASH_DIGITS = 32
# Dagster stores the cursor with every tick, so it has to stay small: files that lie there, each
# counted once a series that reads it, and contents that lie there no more.
MOST_FILES, MOST_GONE = 1000, 500
MOST_NAMED = 5


class _Watched(NamedTuple):
    """A series, the paths and globs of its source that lie in the inbox, and their route."""

    series: SeriesSettings
    paths: tuple[str, ...]
    route: str


class _Seen(NamedTuple):
    """What was seen of a file; the digest is of its first `hashed` bytes."""

    size: int
    mtime_ns: int
    hashed: int = 0
    digest: str = ""

    @property
    def is_hashed(self) -> bool:
        return bool(self.digest) and self.hashed == self.size


class _Asked(NamedTuple):
    """A run that was asked for a series, and the contents that it reads, by `_named`."""

    run_key: str
    contents: list[str]


@dataclass
class _Cursor:
    """What one tick tells the next; Dagster keeps it as text.

    Attributes:
        files: those that lie in the inbox now.
        imported: contents that a successful run read, by `_named`.
        asked: by series, the run that had not ended when it was last looked at.

    What an older release wrote under `taken` may have failed, so it is asked for once more.
    """

    files: dict[str, _Seen] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)
    asked: dict[str, _Asked] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> "_Cursor":
        content = json.loads(text or "{}")
        files = {name: _Seen(*seen) for name, seen in content.get("files", {}).items()}
        asked = {series: _Asked(*one) for series, one in content.get("asked", {}).items()}
        return cls(files, content.get("imported", []), asked)

    def text(self) -> str:
        files = {name: list(seen) for name, seen in self.files.items()}
        asked = {series: list(one) for series, one in self.asked.items()}
        return json.dumps({"files": files, "imported": self.imported, "asked": asked})


def build_inbox_sensor(project: Project, backfill: dg.JobDefinition) -> dg.SensorDefinition:
    """One sensor over all series whose files are dropped into the inbox."""
    watched = [_watched(series, project.base) for series in project.series.values()]
    watched = [one for one in watched if one.paths]

    @dg.sensor(
        name="inbox",
        job=backfill,
        minimum_interval_seconds=INTERVAL_S,
        description=f"Imports files dropped into {FOLDER}/, beside the configs folder, once each.",
    )
    def inbox(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if not watched:
            return dg.SkipReason(f"no series of configs/series.yaml reads files of {FOLDER}/")
        tick = _Tick(project.base, _Cursor.parse(context.cursor), partial(_runs, context.instance))
        requests = [request for one in watched for request in tick.requests(one)]
        notes = [*tick.notes, *_unmatched(project.base, tick.matched)]
        reason = "; ".join(dict.fromkeys(notes)) or f"nothing new in {FOLDER}/"
        cursor = tick.cursor().text()
        if requests:
            context.log.info(reason)
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        return dg.SensorResult(skip_reason=reason, cursor=cursor)

    return inbox


def _watched(series: SeriesSettings, base: Path) -> _Watched:
    source = series.source
    paths: tuple[str | None, ...] = ()
    if isinstance(source, FileSource):
        paths = (source.path,)
    elif isinstance(source, KrakenSource):
        paths = (source.ohlcvt_zip, source.trades_zip)
    inside = (path for path in paths if path and (base / path).is_relative_to(base / FOLDER))
    return _Watched(series, tuple(inside), "file" if source.kind == "file" else "zip")


def _runs(instance: dg.DagsterInstance, run_key: str) -> Sequence[dg.DagsterRun]:
    """Runs of a request, newest first; executing one again keeps its tags."""
    return instance.get_runs(filters=dg.RunsFilter(tags={RUN_KEY_TAG: run_key}))


class _Tick:
    """One look at the inbox."""

    def __init__(
        self, base: Path, before: _Cursor, runs: Callable[[str], Sequence[dg.DagsterRun]]
    ) -> None:
        self.base, self.before, self.runs = base, before, runs
        self.now = _Cursor(imported=list(before.imported))
        self.lying: set[str] = set()  # names of contents that are in the inbox now
        self.matched: set[str] = set()  # names of the files that a series reads
        self.looks = 0
        self.notes: list[str] = []
        self.until, self.has_read = time.monotonic() + TICK_S, False

    def cursor(self) -> _Cursor:
        """What the next tick is to know."""
        imported = list(dict.fromkeys(self.now.imported))
        gone = [one for one in imported if one not in self.lying][-MOST_GONE:]
        still = [one for one in imported if one in self.lying]
        return _Cursor(self.now.files, [*gone, *still], self.now.asked)

    def requests(self, watched: _Watched) -> Iterator[dg.RunRequest]:
        """A run when all files of a series are whole, and the content of one of them is new."""
        key = watched.series.key
        if key in self.before.asked:
            self._settle(key, self.before.asked[key])
        files = [path for one in watched.paths for _, path in matching(one, self.base)]
        self.matched.update(self._name(path) for path in files)
        self.looks += len(files)
        if self.looks > MOST_FILES:
            self.notes.append(
                f"{key} waits: more than {MOST_FILES} files lie in {FOLDER}/; {_way_out(watched)}"
            )
            return
        seen = [self._look(path) for path in files]
        digests = {_named(key, one.digest): one.digest for one in seen if one is not None}
        self.lying.update(digests)
        if None in seen or key in self.now.asked or self._are_imported(digests):
            return
        contents = sorted(digests.values())
        content = contents[0] if len(contents) == 1 else _digest("".join(contents))
        request = _Asked(f"{key}:{content}", sorted(digests))
        status = self._settle(key, request)
        if status == dg.DagsterRunStatus.FAILURE:
            self.notes.append(
                f"{key}: the import of the {len(files)} files that lie there now failed; it is "
                "asked for again when one of them is corrected or removed, or another comes. "
                "Executing the run again tries them as they are, and so does a backfill"
            )
        if status is not None:
            return
        new = len(set(digests) - set(self.now.imported))
        self.notes.append(f"{key}: {new} of {len(files)} files are new")
        self.now.asked[key] = request
        yield dg.RunRequest(
            run_key=request.run_key,
            run_config=backfill_config(key, watched.series.first_year, watched.route),
        )

    def _are_imported(self, contents: Iterable[str]) -> bool:
        return set(contents) <= set(self.now.imported)

    def _settle(self, key: str, asked: _Asked) -> dg.DagsterRunStatus | None:
        """What became of a request: success, started, failure; None where there is no run of it."""
        runs = self.runs(asked.run_key)
        if any(run.is_success for run in runs):
            self.now.imported.extend(asked.contents)
            return dg.DagsterRunStatus.SUCCESS
        if going := [run for run in runs if not run.is_finished]:
            self.now.asked[key] = asked
            self.notes.append(f"{key}: run {going[0].run_id[:8]} is importing")
            return dg.DagsterRunStatus.STARTED
        return dg.DagsterRunStatus.FAILURE if runs else None

    def _look(self, path: Path) -> _Seen | None:
        """The file with its hash; None, and a note why, while it cannot be taken."""
        name = self._name(path)
        if name not in self.now.files:
            try:
                seen, note = self._seen(name, path)
            except OSError as error:  # it went away, or may not be read
                self.notes.append(f"{name}: {error}")
                return None
            self.now.files[name] = seen
            if note:
                self.notes.append(f"{name} {note}")
        seen = self.now.files[name]
        return seen if seen.is_hashed else None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()

    def _seen(self, name: str, path: Path) -> tuple[_Seen, str]:
        stat = path.stat()
        fresh = _Seen(stat.st_size, stat.st_mtime_ns)
        before = self.before.files.get(name)
        if before is None or before[:2] != fresh[:2]:
            return fresh, "is new or still growing"
        if before.is_hashed:
            return before, ""
        # A time to come is another machine's clock, and tells nothing.
        if 0 <= time.time() - stat.st_mtime < QUIET_S:
            return before, f"was written to within the last {QUIET_S} s"
        if self.has_read and time.monotonic() > self.until:
            return before, "is read at the next tick"
        self.has_read = True
        seen = _hash_on(path, before, self.until)
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) != seen[:2]:
            return fresh, "is still growing"
        if not seen.is_hashed:
            return seen, f"is being read: {seen.hashed >> 20} of {seen.size >> 20} MiB"
        return seen, ""


def _hash_on(path: Path, seen: _Seen, until: float) -> _Seen:
    """Hash further blocks until the time is over, one at least.

    A file of one block has its plain SHA-256; in a longer one each block's hash starts with the
    one before it, since the state of a hash itself cannot be kept.
    """
    hashed, digest = seen.hashed, seen.digest
    with path.open("rb") as file:
        file.seek(hashed)
        while True:
            state = hashlib.sha256(digest.encode())
            stop = min(hashed + BLOCK, seen.size)
            while hashed < stop:
                chunk = file.read(min(CHUNK, stop - hashed))
                if not chunk:  # it was cut; its size tells at the next tick
                    return seen
                state.update(chunk)
                hashed += len(chunk)
            digest = state.hexdigest()[:HASH_DIGITS]
            if hashed == seen.size or time.monotonic() > until:
                return seen._replace(hashed=hashed, digest=digest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _named(series: str, digest: str) -> str:
    """A name for a content as one series reads it; short, for the cursor."""
    return _digest(f"{series}:{digest}")[:16]


def _way_out(watched: _Watched) -> str:
    """What to do about too many files."""
    source = watched.series.source
    if isinstance(source, FileSource) and source.columns.adj_close is not None:
        return (
            "join them into fewer files, or move those away that were imported but for the newest "
            "one: adj_factor goes on from a bar that is stored and stands in a file as well"
        )
    return "move those away that were imported"


def _unmatched(base: Path, matched: set[str]) -> Iterator[str]:
    """A note of the files in the inbox that no series reads."""
    files = (path.relative_to(base) for path in (base / FOLDER).rglob("*") if path.is_file())
    strange = sorted(
        file.as_posix()
        for file in files
        if file.as_posix() not in matched
        and not any(part.startswith(".") for part in file.parts)
        and not file.name.lower().endswith(UNFINISHED)
    )
    if strange:
        more = f" and {len(strange) - MOST_NAMED} more" if len(strange) > MOST_NAMED else ""
        yield (
            f"no series reads {', '.join(strange[:MOST_NAMED])}{more}; name it as the path of a "
            "source in configs/series.yaml"
        )
