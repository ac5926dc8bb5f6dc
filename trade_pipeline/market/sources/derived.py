"""Bars of a longer timeframe, made from what is stored of another series.

Sends no request and knows no venue. Only complete bars come out, labelled at their open, and they
replace what was stored, so that a corrected origin leaves nothing behind. Start at `Derived.fetch`.
"""

from collections.abc import Iterator, Mapping

import polars as pl

from trade_pipeline.market.actions import Action
from trade_pipeline.market.bars import empty_bars
from trade_pipeline.market.calendars import ALWAYS
from trade_pipeline.market.resample import resample
from trade_pipeline.market.sources.base import (
    Capabilities,
    Interval,
    Leg,
    SourceBars,
    SourceError,
    Surroundings,
    Wanted,
    require_route,
    split_years,
    year_interval,
    years_of,
)
from trade_pipeline.market.stored import read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import DerivedSource
from trade_pipeline.storage import layout
from trade_pipeline.storage.location import ArtifactLocation


class Derived:
    """Reads whole stored years of the origin."""

    implementation = 1

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """The store."""
        return {"store": Capabilities(None, True, "none", False)}

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """Whole years, whatever part of them is wanted: a derived year is made at once."""
        require_route(series, route, self.routes(series))
        years = years_of(wanted.start_ms, wanted.end_ms)
        return [Leg("store", year_interval(years[0])[0], year_interval(years[-1])[1])]

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """One batch a year. Raises `SourceError` when nothing of the origin is stored."""
        assert isinstance(series.source, DerivedSource)
        origin = around.all_series[series.source.derived_from]
        years = years_of(leg.start_ms, leg.end_ms)
        stored = [year for year in years if _location(around, origin, year).path.exists()]
        if not stored:
            raise SourceError(
                f"series {series.key}: nothing of {origin.key}, which it is derived from, is "
                f"stored for {years[0]} to {years[-1]}; materialize ohlcv of {origin.key} first."
            )
        for year in years:
            if year not in stored:
                around.log(f"{series.key}: {origin.key} of {year} is not stored yet")
            yield _derive(series, origin, year, around)


def _derive(
    series: SeriesSettings, origin: SeriesSettings, year: int, around: Surroundings
) -> SourceBars:
    # A session of an exchange may open in the UTC year before its date.
    near = (year,) if series.calendar == ALWAYS else (year - 1, year, year + 1)
    frames: list[pl.DataFrame] = []
    confirmed: list[Interval] = []
    actions: list[Action] = []
    for one in near:
        location = _location(around, origin, one)
        if location.path.exists():
            part = read_partition(location)
            frames.append(part.bars)
            confirmed.extend(part.confirmed)
            actions.extend(part.actions)
    bars = pl.concat([empty_bars(), *frames])
    try:
        derived, complete = resample(bars, confirmed, origin, series.timeframe)
    except ValueError as error:
        raise SourceError(f"series {series.key}: {error}") from error
    whole = SourceBars(
        derived,
        tuple(complete),
        origin=f"stored bars of {origin.key}",
        actions=tuple(actions),
        replaces=year_interval(year),
    )
    return split_years(whole, [year])[year]


def _location(around: Surroundings, origin: SeriesSettings, year: int) -> ArtifactLocation:
    return layout.ohlcv(around.store, origin.key, year)
