"""Jobs that people start from the launchpad: import a range of some series, or remove one.

Both act on stored bars as the `ohlcv` asset does, and record one materialization a partition, so
that what follows from it is stale. A wrong request is one sentence, and nothing is touched.
Start at `build_backfill` and `build_prune`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import dagster as dg
from pydantic import Field

from trade_pipeline.defs.ohlcv import (
    KEY,
    evaluations,
    imported,
    materialization,
    materializations,
    refusal_message,
    unrecorded,
)
from trade_pipeline.defs.resources import Store
from trade_pipeline.market.importing import CONTENT_HASH, SeriesYear
from trade_pipeline.market.pruning import prune, whole_bars
from trade_pipeline.market.sources.base import (
    Interval,
    SourceError,
    require_route,
    year_interval,
    years_of,
)
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import find_series, start_of_year
from trade_pipeline.storage.location import StorageError

BACKFILL_JOB, BACKFILL_OP = "backfill_bars", "backfill"
PRUNE_JOB, PRUNE_OP = "prune_bars", "prune"
AUTO = "auto"


class RangeConfig(dg.Config):
    """Which series, and which time of them."""

    series: list[str] = Field(description="Keys of configs/series.yaml.")
    start: str = Field(
        alias="from", description="First bar: a date, or a date and time; UTC where no zone stands."
    )
    end: str = Field(
        default="", alias="to", description="Exclusive end, written likewise; empty: up to now."
    )


class BackfillConfig(RangeConfig):
    """What to import."""

    route: str = Field(
        default=AUTO,
        description="How to ask the source: auto lets it plan; otherwise one of its routes alone, "
        "such as file, zip, trades or rest.",
    )


class PruneConfig(RangeConfig):
    """What to remove."""

    confirm: bool = Field(
        default=False, description="Must be true: the bars of the range are removed from the store."
    )


class _Chosen(NamedTuple):
    """A request that makes sense."""

    series: tuple[str, ...]
    window: Interval

    def partitions(self) -> list[SeriesYear]:
        """What it touches, series by series."""
        return [SeriesYear(key, year) for key in self.series for year in years_of(*self.window)]


def backfill_config(series: str, first_year: int, route: str = AUTO) -> dict[str, Any]:
    """Run config that imports all of a series up to now."""
    chosen = {"series": [series], "from": f"{first_year}-01-01", "to": "", "route": route}
    return {"ops": {BACKFILL_OP: {"config": chosen}}}


def build_backfill(project: Project, ohlcv: dg.AssetsDefinition) -> dg.JobDefinition:
    """The job that imports a range."""
    version = _code_version(ohlcv)

    @dg.op(name=BACKFILL_OP, out={}, description="Import a range of some series.")
    def backfill(
        context: dg.OpExecutionContext, config: BackfillConfig, store: Store
    ) -> Iterator[Any]:
        with _sentences():
            chosen = _chosen(project, config, time.time_ns() // 1_000_000, context.log.info)
            route = None if config.route in ("", AUTO) else config.route
            for key in chosen.series:
                series = project.series[key]
                require_route(series, route, source_for(series).routes(series))
        outcome = yield from imported(
            context, project, store.path, chosen.partitions(), version, chosen.window, route
        )
        yield from materializations(outcome, version)
        yield from evaluations(project, store.path)
        if outcome.refused:
            raise dg.Failure(refusal_message(outcome), allow_retries=False)

    first = next(iter(project.series))
    this_year = f"{datetime.now(UTC).year}-01-01"
    default = {"series": [first], "from": this_year, "to": "", "route": AUTO}

    @dg.job(
        name=BACKFILL_JOB,
        config={"ops": {BACKFILL_OP: {"config": default}}},
        description="Import bars of some series from one date to another, by a route of choice. "
        "Bars that are stored already are kept; of these nothing is asked for again.",
    )
    def job() -> None:
        backfill()

    return job


def build_prune(project: Project, ohlcv: dg.AssetsDefinition) -> dg.JobDefinition:
    """The job that removes a range."""
    version = _code_version(ohlcv)

    @dg.op(name=PRUNE_OP, out={}, description="Remove a range of some series from the store.")
    def prune_range(
        context: dg.OpExecutionContext, config: PruneConfig, store: Store
    ) -> Iterator[Any]:
        with _sentences():
            end_of_year = year_interval(datetime.now(UTC).year)[1]
            chosen = _chosen(project, config, end_of_year, context.log.info)
        windows = {key: whole_bars(project.series[key], chosen.window) for key in chosen.series}
        spans = {key: _span(window) for key, window in windows.items()}
        if not config.confirm:
            going = "; ".join(f"{key} {span}" for key, span in spans.items())
            raise _failure(
                f"This would remove the bars of {going}; nothing was touched. Set confirm: true "
                "to remove them."
            )
        for key, span in spans.items():
            wider = "" if windows[key] == chosen.window else ", widened to whole bars"
            context.log.info(f"{key}: bars {span} are removed{wider}")
        removed = 0
        for one in chosen.partitions():
            with _sentences():
                pruned = prune(store.path, project.series[one.series], one.year, chosen.window)
            if pruned is None:
                # A run that was killed may have removed it without recording that.
                yield from unrecorded(context.instance, store.path, [one], version)
                continue
            went = "unknown" if pruned.removed_bars is None else pruned.removed_bars
            removed += pruned.removed_bars or 0
            context.log.info(f"{one.key}: {went} bars removed, {pruned.rows} left")
            metadata = {
                CONTENT_HASH: pruned.content_hash,
                "dagster/row_count": pruned.rows,
                "removed_bars": went,
                "source": f"{PRUNE_JOB} {spans[one.series]}",
            }
            yield materialization(one, metadata, version)
        context.log.info(f"{removed} bars removed")
        yield from evaluations(project, store.path)

    first = next(iter(project.series))
    default = {"series": [first], "from": "", "to": "", "confirm": False}

    @dg.job(
        name=PRUNE_JOB,
        config={"ops": {PRUNE_OP: {"config": default}}},
        description="Remove stored bars of some series from one date to another, with what is "
        "known of that time, so that a backfill asks the source for all of it again. The range is "
        "widened to whole bars: UTC days for daily ones and for hours of an exchange.",
    )
    def job() -> None:
        prune_range()

    return job


def _code_version(ohlcv: dg.AssetsDefinition) -> str:
    version = ohlcv.get_asset_spec(KEY).code_version
    assert version is not None
    return version


def _chosen(
    project: Project, config: RangeConfig, latest_ms: int, log: Callable[[str], None]
) -> _Chosen:
    """Check a request; its end is cut to `latest_ms`.

    Raises:
        SettingsError: series or times are wrong.
    """
    known = ", ".join(project.series)
    if not config.series:
        raise SettingsError(f"series is empty; name at least one of {known}.")
    keys = tuple(dict.fromkeys(config.series))
    series = [find_series(project.series, key, "series") for key in keys]
    start_ms = _instant_ms("from", config.start)
    end_ms = _instant_ms("to", config.end) if config.end else latest_ms
    if end_ms > latest_ms:
        log(f"to {config.end} lies in the future; cut to {_text(latest_ms)}")
        end_ms = latest_ms
    for one in series:
        if start_ms < year_interval(one.first_year)[0]:
            raise SettingsError(
                f"from {config.start} is before series {one.key} begins; its first_year is "
                f"{one.first_year}. Start at {start_of_year(one.first_year):%Y-%m-%d}, or correct "
                "first_year."
            )
    if start_ms >= end_ms:
        raise SettingsError(
            f"from {_text(start_ms)} must come before to {_text(end_ms)}, which is not part of the "
            "range."
        )
    return _Chosen(keys, (start_ms, end_ms))


def _instant_ms(name: str, text: str) -> int:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            f"{name} is {text!r}, which is no date; write it as 2024-01-31, or with a time as "
            "2024-01-31T06:00 (UTC)."
        ) from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return round(instant.timestamp() * 1000)


@contextmanager
def _sentences() -> Iterator[None]:
    """What is wrong with a request or the store, as the run's failure."""
    try:
        yield
    except (SettingsError, SourceError, StorageError) as error:
        raise _failure(str(error)) from None


def _failure(sentence: str) -> dg.Failure:
    return dg.Failure(sentence, allow_retries=False)


def _span(window: Interval) -> str:
    return f"from {_text(window[0])} to {_text(window[1])}"


def _text(ms: int) -> str:
    instant = datetime.fromtimestamp(ms / 1000, UTC)
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC" if instant.second else f"{instant:%Y-%m-%d %H:%M} UTC"
