"""How times are written in sentences and pages. Start at `instant`."""

from datetime import UTC, datetime

from trade_pipeline.market.calendars import DAY_MS


def day(ms: int) -> str:
    """The UTC day of an instant."""
    return f"{datetime.fromtimestamp(int(ms) / 1000, UTC):%Y-%m-%d}"


def instant(ms: int) -> str:
    """An instant as people write it: a day alone where it is midnight."""
    at = datetime.fromtimestamp(int(ms) / 1000, UTC)
    return day(ms) if ms % DAY_MS == 0 else f"{at:%Y-%m-%d %H:%M}"
