"""The sensor that keeps derived series up with the series they are made from.

A derived year is made again when the content of its origin's year is another than the one it was
last made from, and once that content is recorded: never from an import that is still writing.
Start at `build_derived_sensor`.
"""

import json
from pathlib import Path
from typing import NamedTuple

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.defs.ohlcv import recorded_hash
from trade_pipeline.market.calendars import ALWAYS
from trade_pipeline.market.importing import SeriesYear
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import DerivedSource
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import json_hash
from trade_pipeline.storage.frames import read_hash
from trade_pipeline.storage.location import StorageError

INTERVAL_S = 60
HASH_DIGITS = 16
DAMAGED = "damaged"


class Made(NamedTuple):
    """What a derived year was last made from, and how often it was asked for.

    Without the count, an origin that returns to what it was would give a run key that Dagster has
    seen, for which it starts nothing.
    """

    origin: str
    turn: int


def build_derived_sensor(
    project: Project, store: Path, refresh: UnresolvedAssetJobDefinition
) -> dg.SensorDefinition:
    """One sensor over all derived series; its cursor holds `Made` by `<series>|<year>`."""
    derived = [one for one in project.series.values() if isinstance(one.source, DerivedSource)]

    @dg.sensor(
        name="derived_bars",
        job=refresh,
        minimum_interval_seconds=INTERVAL_S,
        description="Makes derived series again where the bars they are made from have changed.",
    )
    def derived_bars(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if not derived:
            return dg.SkipReason("no series of configs/series.yaml is derived")
        known = {key: Made(*made) for key, made in json.loads(context.cursor or "{}").items()}
        origins = _Origins(store, context.instance)
        made: dict[str, Made] = {}
        requests = []
        for series in derived:
            for year in origins.years(series):
                one = SeriesYear(series.key, year)
                before = made[one.key] = known.get(one.key, Made("", 0))
                content = origins.content(series, year)
                if content == before.origin or not origins.are_recorded(series, year):
                    continue
                made[one.key] = Made(content, before.turn + 1)
                requests.append(
                    dg.RunRequest(
                        run_key=f"{one.key}:{content}:{before.turn + 1}",
                        partition_key=dg.MultiPartitionKey(
                            {"series": one.series, "year": str(one.year)}
                        ),
                    )
                )
        cursor = json.dumps({key: list(one) for key, one in made.items()})
        reason = "; ".join(dict.fromkeys(origins.notes))
        if requests:
            context.log.info(reason or "their origins have changed")
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        up = "derived series are up with what they are made from"
        return dg.SensorResult(skip_reason=reason or up, cursor=cursor)

    return derived_bars


class _Origins:
    """What is stored of the series that others are derived from; each file is looked at once."""

    def __init__(self, store: Path, instance: dg.DagsterInstance) -> None:
        self.store, self.instance = store, instance
        self.notes: list[str] = []
        self._hashes: dict[SeriesYear, str | None] = {}

    def years(self, series: SeriesSettings) -> list[int]:
        """Stored years of a derived series' origin, rising."""
        folder = layout.ohlcv(self.store, _origin(series), 0).path.parent
        years = sorted(int(path.stem) for path in folder.glob("*.parquet"))
        return [year for year in years if year >= series.first_year]

    def content(self, series: SeriesSettings, year: int) -> str:
        """Hash of all that a derived year is made from."""
        hashes = {one.key: self._hash(one) for one in _near(series, year)}
        return json_hash(hashes)[:HASH_DIGITS]

    def are_recorded(self, series: SeriesSettings, year: int) -> bool:
        """Whether the event log knows what is stored; otherwise a note says which it does not."""
        for one in _near(series, year):
            stored = self._hash(one)
            if stored == DAMAGED:
                return False
            if stored is not None and stored != recorded_hash(self.instance, one):
                self.notes.append(
                    f"{one.key}: its bars are not recorded yet: an import is running, or was "
                    "killed (then materialize the partition again)"
                )
                return False
        return True

    def _hash(self, one: SeriesYear) -> str | None:
        if one not in self._hashes:
            location = layout.ohlcv(self.store, one.series, one.year)
            try:
                self._hashes[one] = read_hash(location) if location.path.exists() else None
            except StorageError as error:  # no reason to leave the other series waiting
                self.notes.append(str(error))
                self._hashes[one] = DAMAGED
        return self._hashes[one]


def _near(series: SeriesSettings, year: int) -> list[SeriesYear]:
    """Years of the origin that a derived year is made from.

    Sessions of an exchange may open in the year before their date, so those beside count.
    """
    years = (year,) if series.calendar == ALWAYS else (year - 1, year, year + 1)
    return [SeriesYear(_origin(series), one) for one in years]


def _origin(series: SeriesSettings) -> str:
    assert isinstance(series.source, DerivedSource)
    return series.source.derived_from
