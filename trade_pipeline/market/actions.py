"""Splits and dividends of a stock, as its source reports them."""

from typing import Literal, NamedTuple


class Action(NamedTuple):
    """One corporate action, in force from the open of its session.

    Attributes:
        ts_ms: the ex-date at 00:00Z, in ms.
        kind: what happened.
        value: new shares for one old share, or dollars a share before any later split.
    """

    ts_ms: int
    kind: Literal["split", "dividend"]
    value: float
