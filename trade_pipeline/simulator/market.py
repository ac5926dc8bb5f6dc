"""The bars a simulation steps through, checked once.

Knows nothing of accounts. Start at `Market`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class MarketError(ValueError):
    """Bars that no simulation can use; the message names the row and the instrument."""


BAR = np.dtype(
    [(name, np.float64) for name in ("open", "high", "low", "close", "volume", "funding")]
    + [("close_ts", np.int64), ("traded", np.bool_)],
    align=True,
)
LOWEST_PRICE, HIGHEST_PRICE, HIGHEST_VOLUME = 1e-15, 1e15, 1e30  # beyond, floats lose too much
BAR_NUMBERS = ("open", "high", "low", "close", "volume", "funding")


class Market:
    """Bars of N instruments on common rows, checked, copied and made read-only.

    All that a step reads of a bar lies in one record of 64 bytes, so that a step costs the same
    however long the data is; the properties are views of the records.

    Attributes:
        ts: int64 [T] bar opens, ms UTC, strictly increasing.
        bars: BAR [T, N].
    """

    def __init__(
        self,
        ts: IntArray,
        close_ts: IntArray,
        open: FloatArray,
        high: FloatArray,
        low: FloatArray,
        close: FloatArray,
        volume: FloatArray,
        traded: BoolArray,
        funding: FloatArray | None = None,
    ) -> None:
        """Check and copy.

        Args:
            ts: int64 [T].
            close_ts: int64 [T] when each bar is visible, ms UTC, after its open, rising.
            open: float64 [T, N] quote currency; likewise high, low, close.
            high: as open.
            low: as open.
            close: as open.
            volume: float64 [T, N] traded quantity.
            traded: bool [T, N]; False is a filler bar on which nothing fills.
            funding: float64 [T, N] sum of a perpetual's funding rates stamped from the previous
                bar's close up to, not including, this bar's; None is 0.

        Raises:
            MarketError: if shapes differ or a row breaks a rule.
        """
        shape = np.shape(close)
        if len(shape) != 2 or not shape[0] or not shape[1]:
            raise MarketError(f"close has shape {shape}; [T, N] with at least one row is expected")
        if funding is None:
            funding = np.zeros(shape)
        self.ts = _times("ts", ts, shape[:1])
        self.bars = _records(shape)
        columns = (open, high, low, close, volume, funding, traded)
        for name, column in zip((*BAR_NUMBERS, "traded"), columns, strict=True):
            self.bars[name] = _shaped(name, column, shape)
        self.bars["close_ts"] = _times("close_ts", close_ts, shape[:1])[:, np.newaxis]
        given = np.asarray(traded)
        if given.dtype.kind != "b" and not np.isin(given, (0, 1)).all():
            raise MarketError(f"traded has values of {given.dtype} other than True and False")
        self.ts.flags.writeable = self.bars.flags.writeable = False
        self._check_times()
        self._check_numbers()

    @property
    def rows(self) -> int:
        """T, the number of bars."""
        return int(self.bars.shape[0])

    @property
    def instruments(self) -> int:
        """N, the number of instruments."""
        return int(self.bars.shape[1])

    @property
    def close_ts(self) -> IntArray:
        """Int64 [T] ms UTC."""
        return self.bars["close_ts"][:, 0]

    @property
    def open(self) -> FloatArray:
        """Float64 [T, N] quote currency."""
        return self.bars["open"]

    @property
    def high(self) -> FloatArray:
        """Float64 [T, N] quote currency."""
        return self.bars["high"]

    @property
    def low(self) -> FloatArray:
        """Float64 [T, N] quote currency."""
        return self.bars["low"]

    @property
    def close(self) -> FloatArray:
        """Float64 [T, N] quote currency."""
        return self.bars["close"]

    @property
    def volume(self) -> FloatArray:
        """Float64 [T, N] traded quantity."""
        return self.bars["volume"]

    @property
    def funding(self) -> FloatArray:
        """Float64 [T, N] sum of the rates of the interval that ends with the bar."""
        return self.bars["funding"]

    @property
    def traded(self) -> BoolArray:
        """Bool [T, N]."""
        return self.bars["traded"]

    def pair(self, row: int) -> "Market":
        """Rows `row` and `row + 1` alone: all that one step needs."""
        if not 0 <= row < self.rows - 1:
            raise MarketError(f"row {row} and the next do not lie in the market's {self.rows} rows")
        market = object.__new__(Market)
        market.ts, market.bars = self.ts[row : row + 2], self.bars[row : row + 2]
        return market

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and unpickled markets are read-only, too."""
        self.__dict__.update(state)
        self.ts.flags.writeable = self.bars.flags.writeable = False

    def _check_times(self) -> None:
        for name, times in (("ts", self.ts), ("close_ts", self.close_ts)):
            late = np.flatnonzero(np.diff(times) <= 0)
            if late.size:
                row = int(late[0]) + 1
                raise MarketError(
                    f"row {row}: {name} {times[row]} does not come after row {row - 1}'s "
                    f"{times[row - 1]}; rows must be sorted and unique"
                )
        overlapping = np.flatnonzero(self.close_ts[:-1] > self.ts[1:])
        if overlapping.size:
            row = int(overlapping[0])
            raise MarketError(
                f"row {row}: it closes at {self.close_ts[row]}, after the next bar has opened at "
                f"{self.ts[row + 1]}; what is decided on its close would trade before it"
            )
        early = np.flatnonzero(self.close_ts <= self.ts)
        if early.size:
            row = int(early[0])
            raise MarketError(
                f"row {row}: close_ts {self.close_ts[row]} is not after ts {self.ts[row]}; "
                "a bar is visible only after it opened"
            )

    def _check_numbers(self) -> None:
        for name in ("open", "high", "low", "close"):
            prices = getattr(self, name)
            self._refuse(~(np.isfinite(prices) & (prices > 0)), name, "is not a positive price")
            sensible = (prices >= LOWEST_PRICE) & (prices <= HIGHEST_PRICE)
            self._refuse(~sensible, name, f"is not between {LOWEST_PRICE:g} and {HIGHEST_PRICE:g}")
        wrong_volume = ~((self.volume >= 0) & (self.volume <= HIGHEST_VOLUME))
        self._refuse(wrong_volume, "volume", "is not a quantity of zero or more")
        wrong_funding = ~(np.isfinite(self.funding) & (np.abs(self.funding) < 1))
        self._refuse(wrong_funding, "funding", "is not a rate between -1 and 1")
        self._refuse(
            self.low > np.minimum(self.open, self.close), "low", "is above the open or the close"
        )
        self._refuse(
            self.high < np.maximum(self.open, self.close), "high", "is below the open or the close"
        )

    def _refuse(self, wrong: BoolArray, name: str, rule: str) -> None:
        if wrong.any():
            row, instrument = (int(index) for index in np.argwhere(wrong)[0])
            raise MarketError(
                f"row {row} (ts {self.ts[row]}), instrument {instrument}: {name} "
                f"{getattr(self, name)[row, instrument]} {rule}; drop or repair the bar"
            )


def _records(shape: tuple[int, ...]) -> npt.NDArray[np.void]:
    """Zeroed BAR records that each lie in one cache line."""
    size = int(np.prod(shape)) * BAR.itemsize
    room = np.zeros(size + BAR.itemsize, np.uint8)
    start = -room.ctypes.data % BAR.itemsize
    return room[start : start + size].view(BAR).reshape(shape)


def _shaped(name: str, values: npt.ArrayLike, wanted: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.shape != wanted:
        raise MarketError(f"{name} has shape {array.shape}; {wanted} is expected")
    return array


def _times(name: str, values: npt.ArrayLike, wanted: tuple[int, ...]) -> IntArray:
    array = _shaped(name, values, wanted)
    if array.dtype.kind not in "iu":
        raise MarketError(
            f"{name} has dtype {array.dtype}; milliseconds UTC as int64 are needed, such as "
            "`times.astype('datetime64[ms]').astype(np.int64)`"
        )
    return np.array(array, np.int64)
