"""Numbers of a page in few bytes, and without loss.

What a page holds most of are times on a grid and prices in ticks: whole numbers after a shift and
a scale, which need one to four bytes each rather than eight. Equal arrays are kept once.
Start at `Packer`; the page's script reads what it writes.
"""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_DECIMALS = 8
LARGEST_EXACT = 2.0**53  # whole numbers up to here are exact in float64, so in JavaScript
COUNTERS = ("u1", "u2", "u4")


class Packer:
    """Collects the arrays of a page; `default` is for `json.dumps`.

    Attributes:
        arrays: JSON-able, each `{"dtype", "bdata"}` with base64 of little-endian numbers n, and
            for whole numbers `offset`, `step` and `scale`: the value is (offset + step n) / scale.
    """

    def __init__(self) -> None:
        self.arrays: list[dict[str, Any]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}

    def default(self, value: Any) -> dict[str, int]:
        """Reference to an array, which is kept.

        Raises:
            TypeError: the value is no array.
        """
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} has no JSON; give numbers, text or arrays")
        packed = pack(value)
        number = self._numbers.setdefault(tuple(packed.values()), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(packed)
        return {"array": number}


def pack(values: npt.NDArray[Any]) -> dict[str, Any]:
    """An array as JSON-able values; float32 stays float32, all else comes back to the last bit."""
    whole = _whole(values)
    if whole is None:
        kind = "f4" if values.dtype == np.float32 else "f8"
        return {"dtype": kind, "bdata": _text(values.astype(f"<{kind}"))}
    numbers, scale = whole
    offset = int(numbers.min()) if numbers.size else 0
    rest = numbers - offset
    step = int(np.gcd.reduce(rest)) or 1
    counts = rest // step
    largest = int(counts.max(initial=0))
    for kind in COUNTERS:
        if largest <= np.iinfo(kind).max:
            shape = {"offset": offset, "step": step, "scale": scale}
            return {"dtype": kind, "bdata": _text(counts.astype(f"<{kind}")), **shape}
    return {"dtype": "f8", "bdata": _text(values.astype("<f8"))}


def in_ticks(values: npt.NDArray[Any]) -> bool:
    """Whether `pack` needs few bytes for these numbers."""
    return _whole(values) is not None


def _whole(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], int] | None:
    """Whole numbers and the power of ten that divides them; None where there is none."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64), 1
    if values.dtype == np.float32 or not np.isfinite(values).all():
        return None
    for decimals in range(MOST_DECIMALS + 1):
        scale = 10**decimals
        scaled = np.rint(values * scale)
        if (np.abs(scaled) >= LARGEST_EXACT).any():
            return None
        if (scaled / scale == values).all():
            return scaled.astype(np.int64), scale
    return None


def _text(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
