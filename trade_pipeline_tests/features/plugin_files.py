"""Drop-in files that tests write."""

from pathlib import Path

HEAD = '''
import numpy as np

from trade_pipeline.features.indicator import Indicator
from trade_pipeline.settings.base import Settings


class NoParameters(Settings):
    """None."""


'''
CHANGE = "np.append(np.nan, close[1:] / close[:-1] - 1)[: close.size]"


def drop_in(
    name: str = "change",
    value: str = CHANGE,
    *,
    before: str = "",
    lookback: str = "1",
    outputs: str | None = None,
    more: str = "",
) -> str:
    """A file with one indicator of the close.

    Args:
        name: of the indicator and its column.
        value: expression over `close` and `bars`.
        before: lines of `compute` before that.
        lookback: expression.
        outputs: expression; default: the one column.
        more: further arguments of `Indicator`.
    """
    return f'''{HEAD}
def compute(bars, parameters):
    close = bars["close"]
    {before}
    return {{"{name}": {value}}}


MADE = Indicator(
    name="{name}",
    parameters=NoParameters,
    inputs=("close",),
    outputs=lambda parameters: {outputs or f'("{name}",)'},
    lookback=lambda parameters: {lookback},
    compute=compute,
    {more}
)
'''


def write(folder: Path, **files: str) -> Path:
    """Write files by stem into a folder, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text, encoding="utf-8")
    return folder
