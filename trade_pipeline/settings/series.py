"""Which series exist: `configs/series.yaml`.

A series is one instrument at one timeframe from one source. Its key is looked up, never parsed.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trade_pipeline.settings.base import Settings, SettingsError, closest, read_settings

KEY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+$"
Timeframe = Literal["1m", "5m", "15m", "1h", "4h", "1d"]
TIMEFRAME_MS: dict[str, int] = {
    "1m": 60_000,
    "5m": 300_000,
    "15m": 900_000,
    "1h": 3_600_000,
    "4h": 14_400_000,
    "1d": 86_400_000,
}


class BokehSampleSource(Settings):
    """Daily stocks shipped inside the PyPI package `bokeh_sampledata`, 2000 to 2013."""

    kind: Literal["bokeh_sample"]
    ticker: Literal["AAPL", "FB", "GOOG", "IBM", "MSFT"]


class Columns(Settings):
    """Which column of the file holds what: a header name, or a 0-based position."""

    ts: str | int
    open: str | int
    high: str | int
    low: str | int
    close: str | int
    volume: str | int
    trades: str | int | None = None
    adj_close: str | int | None = Field(
        default=None, description="Adjusted close; turned into adj_factor, so stocks only."
    )


class FileSource(Settings):
    """CSV or Parquet files on disk, plain, gzipped or zipped."""

    kind: Literal["file"]
    path: str = Field(
        description="File, or glob such as data/*.zip; relative to the configs folder's parent."
    )
    format: Literal["csv", "parquet"] = "csv"
    header: bool = Field(default=True, description="Whether the first CSV line names columns.")
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    columns: Columns
    row_filter: dict[str, str] = Field(
        default_factory=dict,
        description="Keep only rows whose column equals the value, e.g. {tic: AAPL}.",
    )
    time_unit: Literal["s", "ms", "us", "ns", "text", "ms_of_day"] = Field(
        default="text",
        description="Unit of the time column since 1970; `text` is parsed with time_format; "
        "`ms_of_day` counts from midnight of the date in the file's name.",
    )
    time_format: str | None = Field(
        default=None, description="strptime format of a text time; ISO 8601 when absent."
    )
    date_in_name: str | None = Field(
        default=None,
        description=r"Regular expression with one group of YYYYMMDD, for ms_of_day: (\d{8}).",
    )
    timezone: str = Field(default="UTC", description="Timezone of the file's local times.")
    price_scale: float = Field(
        default=1.0, gt=0, description="Prices in the file are divided by this (LEAN: 10000)."
    )
    missing_bars: Literal["unknown", "quiet"] = Field(
        default="unknown",
        description="What a bar absent between the file's first and last one means: unknown, or "
        "quiet when the provider writes every bar in which something traded.",
    )

    @model_validator(mode="after")
    def _time_of_day_needs_a_date(self) -> "FileSource":
        if (self.time_unit == "ms_of_day") != (self.date_in_name is not None):
            raise ValueError("time_unit: ms_of_day and date_in_name go together")
        if self.time_format is not None and self.time_unit != "text":
            raise ValueError("time_format is read only with time_unit: text")
        return self


SourceSettings = Annotated[BokehSampleSource | FileSource, Field(discriminator="kind")]


class CoverageThresholds(Settings):
    """When a day is good enough to train on, and how long a slice must be."""

    max_unknown_fraction: float = Field(
        default=0.02, ge=0, le=1, description="Most unknown bars of a good day, as a fraction."
    )
    max_unknown_bars: int = Field(default=30, ge=0, description="Most unknown bars of a good day.")
    max_unknown_run: int = Field(
        default=5, ge=0, description="More unknown bars in a row than this end a slice."
    )
    min_slice_days: int = Field(default=1, ge=1, description="Fewest good days of a slice.")


class SeriesSettings(Settings):
    """One entry of `configs/series.yaml`."""

    key: str = Field(pattern=KEY_PATTERN, description="<venue>.<symbol>.<timeframe>, unique.")
    source: SourceSettings
    timeframe: Timeframe
    calendar: str = Field(
        default="24/7", description="24/7, or an exchange_calendars name such as XNYS."
    )
    first_year: int = Field(ge=1970, le=2200, description="First year the source has bars of.")
    volume_unit: Literal["base", "quote", "shares"]
    coverage: CoverageThresholds = CoverageThresholds()

    @property
    def timeframe_ms(self) -> int:
        """Length of one bar in milliseconds."""
        return TIMEFRAME_MS[self.timeframe]

    @property
    def is_daily_session(self) -> bool:
        """Whether a bar is an exchange's session rather than a fixed interval."""
        return self.timeframe == "1d" and self.calendar != "24/7"


class SeriesFile(Settings):
    """`configs/series.yaml`."""

    series: tuple[SeriesSettings, ...] = Field(min_length=1)

    @field_validator("series")
    @classmethod
    def _keys_are_unique(cls, series: tuple[SeriesSettings, ...]) -> tuple[SeriesSettings, ...]:
        keys = [one.key for one in series]
        # Two keys that differ only in case would share a file where the disk ignores case.
        repeated = sorted(k for k in keys if [x.lower() for x in keys].count(k.lower()) > 1)
        if repeated:
            raise ValueError(f"series keys are not unique: {', '.join(dict.fromkeys(repeated))}")
        return series


def read_series(path: Path) -> dict[str, SeriesSettings]:
    """All series by key, in the file's order. Raises `SettingsError`."""
    return {one.key: one for one in read_settings(path, SeriesFile).series}


def find_series(series: dict[str, SeriesSettings], key: str, origin: str) -> SeriesSettings:
    """Look one key up. Raises `SettingsError` that names `origin` and the closest key."""
    if key not in series:
        raise SettingsError(f"{origin}: unknown series {key!r}.{closest(key, list(series))}")
    return series[key]


def start_of_year(year: int) -> datetime:
    """Midnight UTC of 1 January."""
    return datetime(year, 1, 1, tzinfo=UTC)
