from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import polars as pl
import pytest
from hmmlearn.hmm import GaussianHMM
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.features.causality_check import (
    CHECK_SCHEMA,
    CausalityCheck,
    Part,
    Sampling,
    check_feature_set,
    check_parts,
)
from trade_pipeline.features.indicator import (
    PRICES_AND_VOLUME,
    Array,
    Bars,
    Indicator,
    forgetting,
    reference_column,
)
from trade_pipeline.features.indicators import SHIPPED
from trade_pipeline.features.registry import FeatureSet, Member, resolve
from trade_pipeline.settings.base import Settings, read_yaml
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline_tests.features.conftest import minutes

CONFIGS = Path(__file__).parents[2] / "configs" / "features"
ROWS = 300
OTHER = "sample.MSFT.1d"
MINUTE_MS = 60_000


class NoParameters(Settings):
    """None."""


def walk(rows: int = ROWS, seed: int = 3) -> pl.DataFrame:
    """Minutes of a random walk; every seventh bar is quiet."""
    generator = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(generator.normal(0, 1e-2, rows)))
    opened = np.concatenate([close[:1], close[:-1]])
    volume = np.where(np.arange(rows) % 7 == 6, 0.0, generator.exponential(5.0, rows))
    bars = minutes(
        open=opened,
        high=np.maximum(opened, close) * 1.001,
        low=np.minimum(opened, close) / 1.001,
        close=close,
        volume=volume,
    )
    return bars.with_columns(close_ts=pl.col("ts") + pl.duration(minutes=1))


def feature_set(
    compute: Callable[[Bars], Array], lookback: int, *inputs: str, name: str = "planted"
) -> FeatureSet:
    """One plug-in with one column."""
    indicator = Indicator(
        name,
        NoParameters,
        inputs or ("close",),
        lambda _: (name,),
        lambda _: lookback,
        lambda bars, _: {name: compute(bars)},
    )
    return FeatureSet((Member(indicator, NoParameters()),), "none")


def check(bars: pl.DataFrame, given: FeatureSet, **sampling: Any) -> CausalityCheck:
    return check_feature_set([bars], given, Sampling(**sampling))


def kinds(found: CausalityCheck) -> list[tuple[str, str, int]]:
    return found.violations.select("kind", "column", "row").rows()


def lagged(values: Array, bars: int) -> Array:
    """Values `bars` ago, NaN before; of later bars if negative."""
    moved = np.full(values.size, np.nan)
    if bars >= 0:
        moved[bars:] = values[: max(values.size - bars, 0)]
    else:
        moved[:bars] = values[-bars:]
    return moved


def change(bars: Bars) -> Array:
    return bars["close"] / lagged(bars["close"], 1) - 1


def centred(bars: Bars) -> Array:
    """Mean of five bars around each."""
    return sum((lagged(bars["close"], bars_ago) for bars_ago in range(-2, 3)), np.zeros(1)) / 5


def scaled(bars: Bars) -> Array:
    """Standardised over all that is given."""
    return (bars["close"] - bars["close"].mean()) / (bars["close"].std() + 1)


def smoothing(bars: Bars) -> Array:
    """Probability of the wild state, given all bars before and after."""
    model = GaussianHMM(n_components=2, covariance_type="diag", init_params="")
    model.startprob_ = np.array([0.5, 0.5])
    model.transmat_ = np.array([[0.9, 0.1], [0.1, 0.9]])
    model.means_ = np.zeros((2, 1))
    model.covars_ = np.array([[5e-5], [2e-4]])
    column = np.full(bars["close"].size, np.nan)
    if column.size > 1:
        column[1:] = model.predict_proba(change(bars)[1:, np.newaxis])[:, 1]
    return column


def labelled_at_start(bars: Bars) -> Array:
    """Close of the five-minute bar that a minute lies in, over its own close."""
    group = bars["ts"] // (5 * MINUTE_MS)
    last = np.searchsorted(group, group, side="right") - 1
    return bars["close"][last] / bars["close"]


def filled_backwards(bars: Bars) -> Array:
    """Size of the last trade; quiet bars take that of the next bar that traded."""
    column = np.where(bars["volume"] == 0, np.nan, bars["volume"])
    filled: Array = pl.Series(column).fill_nan(None).backward_fill().to_numpy()
    return filled


def filled_warm_up(bars: Bars) -> Array:
    """Change over three bars; the first three take that of the fourth."""
    column = bars["close"] / lagged(bars["close"], 3) - 1
    column[:3] = column[3] if column.size > 3 else np.nan
    return column


def next_change(bars: Bars) -> Array:
    return lagged(change(bars), -1)


@pytest.mark.parametrize(
    ("compute", "lookback", "first_row"),
    [
        # The first four bars have no middle yet; the fifth one gives it to row 2.
        (centred, 4, 2),
        (scaled, 0, 0),
        # The third bar changes what is thought of the second.
        (smoothing, 20, 1),
        (labelled_at_start, 5, 0),
        # Rows 6, 13, ... are quiet.
        (filled_backwards, 3, 6),
        (filled_warm_up, 3, 0),
        (next_change, 1, 0),
    ],
)
def test_a_planted_leak_is_caught_with_its_column_and_first_bad_row(
    compute: Callable[[Bars], Array], lookback: int, first_row: int
) -> None:
    bars = walk()
    found = check(bars, feature_set(compute, lookback, "close", "volume", "ts"))
    assert not found.passed
    assert found.violations.schema == CHECK_SCHEMA
    row = found.violations.filter(kind="look-ahead").row(0, named=True)
    assert (row["column"], row["segment"], row["row"]) == ("planted", 0, first_row)
    assert row["ts"] == bars["ts"][first_row]
    # The proof can be repeated by hand from what is told.
    columns = {name: bars[name].to_numpy() for name in ("close", "volume")}
    columns["ts"] = bars["ts"].dt.epoch("ms").cast(float).to_numpy()
    prefix = compute({name: values[: row["cut"]] for name, values in columns.items()})[first_row]
    np.testing.assert_equal([row["whole"], row["prefix"]], [compute(columns)[first_row], prefix])
    assert str(row["cut"]) in row["problem"]


@pytest.mark.parametrize("compute", [centred, scaled, labelled_at_start, next_change])
def test_a_leak_is_caught_in_the_middle_of_many_bars_and_among_honest_columns(
    compute: Callable[[Bars], Array],
) -> None:
    honest = resolve(
        FeatureSetSettings.model_validate({"indicators": [{"name": "rsi"}, {"name": "atr"}]}), "x"
    )
    planted = feature_set(compute, 5, "close", "ts")
    both = FeatureSet((*honest.members, *planted.members), "none")
    found = check(walk(5_000), both)
    assert set(found.violations["column"]) == {"planted"}
    assert "look-ahead" in set(found.violations["kind"])


@settings(max_examples=40, deadline=None)
@given(leak=st.integers(0, 999), many=st.booleans())
def test_a_leak_of_one_row_in_a_thousand_is_caught_wherever_it_lies(leak: int, many: bool) -> None:
    bars = walk(4_000 if many else 1_001)

    def reads_next_bar(bars: Bars) -> Array:
        column = change(bars)
        rows = np.flatnonzero((bars["ts"] // MINUTE_MS) % 1_000 == offset)
        rows = rows[rows < column.size - 1]
        column[rows] = bars["close"][rows + 1]
        return column

    offset = (bars["ts"].dt.epoch("ms")[0] // MINUTE_MS + leak) % 1_000
    found = check(bars, feature_set(reads_next_bar, 1, "close", "ts"), prefixes=0, excerpts=0)
    assert [(kind, column, row % 1_000) for kind, column, row in kinds(found)] == [
        ("look-ahead", "planted", leak)
    ]


def test_a_leak_smaller_than_a_stored_value_tells_is_caught() -> None:
    def slightly(bars: Bars) -> Array:
        column = change(bars)
        column[:-1] *= 1 + 1e-14 * np.sign(next_change(bars)[:-1])
        return column

    bars = walk()
    values = {"close": bars["close"].to_numpy()}
    stored = [compute(values)[1:-1].astype(np.float32) for compute in (slightly, change)]
    np.testing.assert_array_equal(*stored)
    assert kinds(check(bars, feature_set(slightly, 1)))[0][:2] == ("look-ahead", "planted")


def test_a_leak_that_reaches_beyond_the_stretch_is_caught_by_whole_prefixes() -> None:
    far = feature_set(lambda bars: lagged(bars["close"], -2_000), 0)
    bars = walk(5_000)
    assert check(bars, far, prefixes=0).passed
    assert kinds(check(bars, far))[0][:2] == ("look-ahead", "planted")


def test_a_leak_elsewhere_in_the_data_is_caught_by_excerpts() -> None:
    bars = walk(10_000)
    quiet_ms = float(bars["ts"].dt.epoch("ms")[8_000])

    def at_the_end(bars: Bars) -> Array:
        return np.where(bars["ts"] >= quiet_ms, next_change(bars), change(bars))

    late = feature_set(at_the_end, 1, "close", "ts")
    assert check(bars, late, prefixes=0, excerpts=0).passed
    (found,) = kinds(check(bars, late, prefixes=1))
    assert found[:2] == ("look-ahead", "planted")
    assert found[2] >= 8_000


def test_several_short_segments_share_the_stretch() -> None:
    bars = walk(900)
    segments = [bars.slice(0, 200), bars.slice(200, 3), bars.slice(300, 600)]

    def once(bars: Bars) -> Array:
        return np.where(bars["ts"] == leak_ms, next_change(bars), change(bars))

    for segment, row in ((0, 77), (2, 500)):
        leak_ms = float(segments[segment]["ts"].dt.epoch("ms")[row])
        found = check_feature_set(segments, feature_set(once, 1, "close", "ts")).violations
        assert found.select("segment", "row", "ts").rows() == [
            (segment, row, segments[segment]["ts"][row])
        ]


def test_a_lookback_that_is_too_short_is_caught_as_warm_up_not_as_look_ahead() -> None:
    def average(bars: Bars) -> Array:
        column = bars["close"].copy()
        for row in range(1, column.size):
            column[row] = 0.9 * column[row - 1] + 0.1 * column[row]
        return column / bars["close"]

    bars = walk(400)
    assert check(bars, feature_set(average, forgetting(0.1)), stretch=50).passed
    found = check(bars, feature_set(average, 20), stretch=50)
    assert [kind for kind, *_ in kinds(found)] == ["warm-up"]
    assert "declare a longer lookback" in found.violations["problem"][0]


def test_chance_is_told_apart_from_looking_ahead() -> None:
    generator = np.random.default_rng(0)
    found = check(walk(), feature_set(lambda bars: generator.random(bars["close"].size), 0))
    assert kinds(found) == [("repeat", "planted", 0)]


@pytest.mark.parametrize(
    ("compute", "kind", "words"),
    [
        (lambda bars: next_change(bars)[:-1], "rows", "has shape"),
        (lambda bars: change(bars)[np.isfinite(change(bars))], "rows", "has shape"),
        (lambda bars: np.sort(bars["close"][:-60:]), "rows", "has shape"),
        (lambda bars: bars["close"].sort(), "error", "read-only"),
        (lambda bars: change(bars) if bars["close"].size != 150 else 1 / 0, "error", "on 150 bars"),
    ],
)
def test_rows_that_vanish_and_errors_are_found(
    compute: Callable[[Bars], Any], kind: str, words: str
) -> None:
    found = check(walk(), feature_set(compute, 1))
    assert set(found.violations["kind"]) == {kind}
    assert words in found.violations["problem"][0]


def test_a_column_that_vanishes_is_found() -> None:
    def compute(columns: Mapping[str, Array]) -> dict[str, Array]:
        close = columns["close"]
        return {"kept": close} | ({"gone": close} if close.size < 200 else {})

    found = check_parts([walk()], [Part(("kept", "gone"), 0, compute)])
    assert found.violations.select("kind", "column").rows() == [("rows", "gone")]


def params(indicator: Indicator[Any]) -> dict[str, Any]:
    """The least that an indicator must be told: another series, wherever it asks for one."""
    fields = indicator.parameters.model_fields.items()
    return {
        name: (OTHER,) if get_origin(field.annotation) is tuple else OTHER
        for name, field in fields
        if field.is_required()
    }


@pytest.mark.parametrize("indicator", SHIPPED, ids=lambda one: one.name)
def test_every_shipped_indicator_passes(
    indicator: Indicator[Any], apple: pl.DataFrame, thin: pl.DataFrame
) -> None:
    content = {"indicators": [{"name": indicator.name, "params": params(indicator)}]}
    given = resolve(FeatureSetSettings.model_validate(content), "test.yaml")
    for bars, closes_after in ((apple, 21 * 60), (thin, 1)):
        other = walk(bars.height)
        bars = bars.with_columns(
            *(other[name].alias(reference_column(name, OTHER)) for name in PRICES_AND_VOLUME),
            close_ts=pl.col("ts") + pl.duration(minutes=closes_after),
        )
        found = check(bars, given, stretch=300, excerpts=50)
        assert found.passed, found.violations
        assert found.cuts > 350
        assert found.decay["column"].to_list() == list(given.names)
        assert not found.decay["suspect"].any(), found.decay


def test_the_minute_set_with_an_hourly_indicator_passes_on_real_minutes(
    bitcoin: pl.DataFrame,
) -> None:
    content = read_yaml(CONFIGS / "minute.yaml")
    content["timeframe"] = "1m"
    content["indicators"].append({"name": "rsi", "params": {"period": 14}, "timeframe": "1h"})
    given = resolve(FeatureSetSettings.model_validate(content), "minute.yaml")
    segments = [bitcoin.head(16_000), bitcoin.slice(17_000, 500), bitcoin.slice(18_003)]
    found = check_feature_set(segments, given)
    assert found.passed, found.violations
    assert found.rows == bitcoin.height - 1_000 - 503
    assert found.decay["column"].to_list() == list(given.names)
    # The last return foretells the next a little; no column does as one that looks ahead would.
    assert not found.decay["suspect"].any(), found.decay


def test_a_higher_timeframe_passes_and_its_lookback_is_honest() -> None:
    content = {
        "timeframe": "1m",
        "indicators": [{"name": "rsi", "params": {"period": 5}, "timeframe": "5m"}],
    }
    given = resolve(FeatureSetSettings.model_validate(content), "test.yaml")
    found = check(walk(3_000), given, stretch=100)
    assert found.passed, found.violations


Step = Callable[[Array], Array]


def random_step(generator: np.random.Generator) -> tuple[Step, int]:
    """A computation over a window that ends with the bar itself, and its lookback."""
    bars = int(generator.integers(1, 20))
    weights = generator.normal(size=bars + 1)
    kind = generator.integers(4)

    def weighted(values: Array) -> Array:
        return sum((w * lagged(values, ago) for ago, w in enumerate(weights)), np.zeros(1))

    def highest(values: Array) -> Array:
        return np.max([lagged(values, ago) for ago in range(bars + 1)], axis=0)

    def places(values: Array) -> Array:
        return sum((values > lagged(values, ago) for ago in range(1, bars + 1)), np.zeros(1))

    def difference(values: Array) -> Array:
        return np.tanh(values - lagged(values, bars))

    return (weighted, highest, places, difference)[kind], bars


@pytest.mark.parametrize("seed", range(30))
def test_honest_functions_raise_no_alarm(seed: int) -> None:
    generator = np.random.default_rng(seed)
    source = str(generator.choice(["open", "high", "low", "close", "volume"]))
    steps = [random_step(generator) for _ in range(generator.integers(1, 4))]

    def compute(bars: Bars) -> Array:
        values = bars[source]
        for step, _ in steps:
            values = step(values)
        return np.where(np.arange(values.size) < lookback, np.nan, values)

    lookback = sum(bars for _, bars in steps)
    found = check(walk(1_500, seed), feature_set(compute, lookback, source))
    assert found.passed, found.violations


def test_one_nan_is_as_good_as_another() -> None:
    def warm_up(bars: Bars) -> Array:
        sign = -1.0 if bars["close"].size % 2 else 1.0
        column = change(bars)
        column[:1] = np.copysign(np.nan, sign)
        return column

    assert check(walk(), feature_set(warm_up, 1)).passed


def test_the_same_bars_are_checked_in_the_same_places() -> None:
    given = feature_set(smoothing, 20)
    one, other = (check(walk(600), given, stretch=50) for _ in range(2))
    assert one.violations.equals(other.violations)
    assert one.decay.equals(other.decay)
    assert (one.rows, one.cuts) == (other.rows, other.cuts) == (600, one.cuts)


def test_the_clock_says_how_long_it_took() -> None:
    clock = iter([10.0, 12.5]).__next__
    assert check_feature_set([walk()], feature_set(change, 1), clock=clock).seconds == 2.5


@pytest.mark.parametrize("heights", [[], [0], [1], [5, 1]])
def test_too_few_bars_are_no_violation(heights: list[int]) -> None:
    segments = [walk().head(height) for height in heights]
    found = check_feature_set(segments, feature_set(change, 1))
    assert found.passed
    assert found.rows == sum(heights)
