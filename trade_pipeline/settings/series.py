"""Which series exist: `configs/series.yaml`.

A series is one instrument at one timeframe from one source. Its key is looked up, never parsed.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from trade_pipeline.settings.base import Settings, SettingsError, closest, read_settings
from trade_pipeline.settings.sources import DerivedSource, SourceSettings

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
    stale_after_hours: PositiveFloat | None = Field(
        default=None,
        description="Warn when bars that should be here have been missing for longer than this; "
        "absent: the series is history and never grows stale.",
    )

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

    @model_validator(mode="after")
    def _derived_series_fit_their_origin(self) -> "SeriesFile":
        known = {one.key: one for one in self.series}
        for one in self.series:
            if isinstance(one.source, DerivedSource):
                find_series(known, one.source.derived_from, f"series {one.key}: derived_from")
                _require_fit(one, known[one.source.derived_from])
        return self


def read_series(path: Path) -> dict[str, SeriesSettings]:
    """All series by key, in the file's order. Raises `SettingsError`."""
    return {one.key: one for one in read_settings(path, SeriesFile).series}


def find_series(series: dict[str, SeriesSettings], key: str, origin: str) -> SeriesSettings:
    """Look one key up. Raises `SettingsError` that names `origin` and the closest key."""
    if key not in series:
        raise SettingsError(f"{origin}: unknown series {key!r}.{closest(key, list(series))}")
    return series[key]


def _require_fit(derived: SeriesSettings, origin: SeriesSettings) -> None:
    about = f"series {derived.key} is derived from {origin.key}"
    if isinstance(origin.source, DerivedSource):
        raise ValueError(f"{about}, which is derived itself; name the series it is made from")
    if derived.timeframe_ms <= origin.timeframe_ms or derived.timeframe_ms % origin.timeframe_ms:
        raise ValueError(
            f"{about}: its timeframe {derived.timeframe} must be longer than {origin.timeframe} "
            "and a multiple of it"
        )
    for name in ("calendar", "first_year", "volume_unit"):
        if getattr(derived, name) != getattr(origin, name):
            raise ValueError(
                f"{about}: {name} is {getattr(derived, name)!r} and must be the origin's "
                f"{getattr(origin, name)!r}"
            )


def start_of_year(year: int) -> datetime:
    """Midnight UTC of 1 January."""
    return datetime(year, 1, 1, tzinfo=UTC)
