"""Which source reads which kind of settings. Start at `source_for(series)`."""

from functools import cache
from importlib import import_module

from trade_pipeline.market.sources.base import Source
from trade_pipeline.settings.series import SeriesSettings

# Module beside this one and class in it; imported on first use.
SOURCES = {
    "alpaca": ("alpaca", "Alpaca"),
    "bokeh_sample": ("bokeh_sample", "BokehSample"),
    "ccxt": ("ccxt_exchange", "CcxtExchange"),
    "derived": ("derived", "Derived"),
    "file": ("file", "Files"),
    "kraken": ("kraken", "Kraken"),
    "schwab": ("schwab", "Schwab"),
    "yahoo": ("yahoo", "Yahoo"),
}


@cache
def _source(kind: str) -> Source:
    module, name = SOURCES[kind]
    found: Source = getattr(import_module(f"{__package__}.{module}"), name)()
    return found


def source_for(series: SeriesSettings) -> Source:
    """The source of a series, by the kind in its settings."""
    return _source(series.source.kind)
