"""`indicators check`: what is dishonest is named, what is hostile ends in a sentence."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trade_pipeline.features.indicators import SHIPPED
from trade_pipeline.features.plugins.check import LIMIT_S, Line, check_plugin, passed
from trade_pipeline.features.plugins.importing import Source
from trade_pipeline.features.plugins.process import MOST_PRINTED, run_child
from trade_pipeline.features.plugins.sample import sample_bars
from trade_pipeline.features.plugins.trial import try_indicator
from trade_pipeline_tests.features.plugin_files import drop_in, write
from trade_pipeline_tests.processes import is_running

HERE = "trade_pipeline_tests.features.test_plugin_check"
RETURN = "np.append(np.nan, close[1:] / close[:-1] - 1)[: close.size]"
EMA = (
    "mean = close.copy()\n"
    "    for row in range(1, close.size):\n"
    "        mean[row] = mean[row - 1] + (close[row] - mean[row - 1]) / 10"
)


def tried(folder: Path, text: str, **parameters: Any) -> dict[str, list[str]]:
    """The lines of a trial in this process: check to what was said of it, verdict first."""
    said: list[Any] = []
    path = write(folder, tried=text) / "tried.py"
    try_indicator(
        {"source": Source("file", str(path)), "position": 0, "parameters": parameters}, said.append
    )
    assert said[-1] == {"at": "end"}
    found: dict[str, list[str]] = {}
    for check, verdict, detail in (one["line"] for one in said if "line" in one):
        found.setdefault(check, []).append(f"{verdict}: {detail}")
    return found


def test_a_sound_indicator_holds_in_every_line(tmp_path: Path) -> None:
    found = tried(tmp_path, drop_in("change", RETURN))
    assert list(found) == [
        "specification", "outputs", "inputs", "deterministic", "finite", "speed", "causal",
        "lookback", "price level",
    ]  # fmt: skip
    assert all(one.startswith("holds: ") for lines in found.values() for one in lines)
    assert "1,000 bars in a row" in found["causal"][0]


CENTRED = (
    "np.convolve(np.append(close, 1.0), np.ones(5) / 5, 'same')[:-1][: close.size] / close - 1"
)
LEAK = (
    "change = np.append(np.nan, close[1:] / close[:-1] - 1)[: close.size]\n"
    "    change[3000:3001] = close[3001:3002] / close[3000:3001] - 1 if close.size > 3001 else 0.0"
)


# What a leak may wait for: true of the next bar, given this one's close.
RARE = {
    "rise": "after['close'] > 1.2 * close",
    "fall": "after['close'] < 0.8 * close",
    "gap up": "after['open'] > 1.2 * close",
    "gap down": "after['open'] < 0.8 * close",
    "volume": "after['volume'] > 1_000",
    "limit": "(after['high'] == after['low']) & (after['low'] > 1.09 * close)",
}


def leak_before(event: str) -> str:
    """An honest return, but 0.5 before a rare event."""
    return drop_in(
        value=f"np.where(np.append({RARE[event]}, False), 0.5, change)",
        before=f"change = {RETURN}\n"
        "    if not close.size: return {'change': change}\n"
        "    after = {name: values[1:] for name, values in bars.items()}\n"
        "    close = close[:-1]",
    ).replace('"close",)', '"open", "high", "low", "close", "volume")')


@pytest.mark.parametrize(
    ("check", "text", "words"),
    [
        ("causal", drop_in(value=CENTRED, lookback="4"), "changes when bars after the first"),
        ("causal", drop_in(value="close / close[-1:].sum() - 1"), "change, row"),
        *(("causal", leak_before(event), "changes when bars after") for event in RARE),
        ("lookback", drop_in(value="close / mean - 1", before=EMA, lookback="20"), "longer"),
        ("outputs", drop_in(value="close.astype(np.float32)"), "float32 of shape"),
        ("outputs", drop_in(value="close[1:]"), "of shape (0,) on 1 bars"),
        ("outputs", drop_in(value="close[0] + close"), "on 0 bars it raises IndexError"),
        ("outputs", drop_in().replace('{"change":', '{"other":'), "declares ['change']"),
        ("inputs", drop_in(value="close", before="close *= 2"), "writes to its input close"),
        ("deterministic", drop_in(value="np.random.random(close.size)"), "computed twice"),
        ("finite", drop_in(value="0 * close / (close - np.roll(close, 1))"), "nothing moves"),
        ("finite", drop_in(value="np.where(close > 0, np.inf, 0.0)"), "inf at row 1,"),
        ("finite", drop_in(lookback="0"), "nan at row 0, after the lookback of 0"),
        ("finite", drop_in(lookback="0"), "so declare a lookback of 1"),
        ("specification", drop_in("rsi"), "name of one that ships"),
        ("specification", drop_in(lookback="10**9"), "cannot be tried"),
        ("specification", drop_in(outputs="(1,)"), "its outputs are (1,)"),
        ("outputs", drop_in(value="bars['volume']"), "'volume', which is not among its inputs (c"),
        ("outputs", drop_in(value="bars['vwap']"), "raises KeyError: 'vwap'"),
        ("outputs", drop_in(before="compute(bars, parameters)"), "RecursionError"),
        ("outputs", drop_in(before="raise SystemExit(0)"), "SystemExit"),
    ],
)
def test_each_dishonesty_fails_its_own_check(
    tmp_path: Path, check: str, text: str, words: str
) -> None:
    found = tried(tmp_path, text)
    failing = {name for name, lines in found.items() if lines[0].startswith("fails")}
    assert failing == {check}, found
    assert words in found[check][0]


def test_a_leak_of_the_next_bar_is_suspect_even_where_it_is_hidden_from_prefixes(
    tmp_path: Path,
) -> None:
    # As a file of tomorrow's news would: it does not read the bars that the check cuts off.
    stolen = (
        "from trade_pipeline.features.plugins.sample import START_MS, sample_bars\n"
        "KNOWN = sample_bars(100_001, ())['close'].to_numpy()\n"
    )
    text = drop_in(
        value="KNOWN[at + 1 :][: close.size] / close - 1",
        before="at = int(bars['ts'][0] - START_MS) // 60_000 if close.size else 0",
        lookback="0",
    )
    found = tried(tmp_path, stolen + text.replace('"close",)', '"close", "ts")'))
    assert any("foretells the next bar" in one for one in found["causal"])


@pytest.mark.parametrize(
    ("check", "text", "words"),
    [
        ("price level", drop_in(value="close * 1.0", lookback="0"), "1,000 times as high"),
        ("lookback", drop_in("change", RETURN, lookback="400"), "so do values from"),
        ("outputs", drop_in(value="close * 0.0 + 7", lookback="0"), "change is 7 on all 6,000"),
    ],
)
def test_what_is_only_unwise_is_a_warning(
    tmp_path: Path, check: str, text: str, words: str
) -> None:
    found = tried(tmp_path, text)
    warned = {name for name, lines in found.items() if not lines[-1].startswith("holds")}
    assert warned == {check}
    assert found[check][-1].startswith("warns")
    assert words in found[check][-1]


def test_parameters_take_the_place_of_defaults_and_wrong_ones_are_named(tmp_path: Path) -> None:
    text = drop_in("scaled", "close * 0.0 + parameters.factor", lookback="0")
    text = text.replace('    """None."""', "    factor: float")
    assert "scaled" in tried(tmp_path, text, factor=2.0)["specification"][0]
    assert "factor have no default" in tried(tmp_path, text)["specification"][0]
    assert "'factr'" in tried(tmp_path, text, factor=1.0, factr=2.0)["specification"][0]


@pytest.mark.parametrize("name", ["relative_strength", "turbulence", "session", "macd"])
def test_shipped_indicators_hold_also_those_that_read_other_series(name: str) -> None:
    # One of each sort; the others are checked where they are defined.
    module = next(one.compute.__module__ for one in SHIPPED if one.name == name)
    said: list[Any] = []
    source = Source("module", module)
    names: list[str] = []
    run = {"source": source, "parameters": {}}
    from trade_pipeline.features.plugins.importing import import_indicators

    names = [one.indicator.name for one in import_indicators(source)]
    try_indicator({**run, "position": names.index(name)}, said.append)
    lines = [one["line"] for one in said if "line" in one]
    assert [line for line in lines if line[1] == "fails"] == []
    assert len(lines) >= 9


def test_sample_bars_are_bars_and_hold_what_breaks_indicators() -> None:
    bars = sample_bars(6_000, ["sample.ONE.1m"])
    prices = bars.select("open", "high", "low", "close")
    assert prices.min_horizontal().equals(bars["low"].alias("open"), check_names=False)
    assert prices.max_horizontal().equals(bars["high"].alias("open"), check_names=False)
    assert (bars["open"][1:] == bars["close"][:-1]).all()
    quiet = bars["volume"] == 0
    assert 0.1 < quiet.mean() < 0.5  # type: ignore[operator]
    assert int(quiet.cast(pl.Int64)[2_000:2_700].sum()) == 700
    assert not np.array_equal(bars["close"], bars["close@sample.ONE.1m"])
    assert sample_bars(100, ()).equals(sample_bars(200, ()).head(100))


def test_rare_moves_are_among_the_bars_whose_every_prefix_is_tried() -> None:
    bars = sample_bars(6_000, (), rare=True)
    prices = bars.select("open", "high", "low", "close")
    assert prices.min_horizontal().equals(bars["low"].alias("open"), check_names=False)
    assert prices.max_horizontal().equals(bars["high"].alias("open"), check_names=False)
    assert sample_bars(4_000, (), rare=True).equals(bars.head(4_000))
    before, close = bars["close"][:-1], bars["close"][1:]
    gaps, moves = bars["open"][1:] / before - 1, close / before - 1
    assert 0.97 < (gaps == 0).mean() < 1.0  # type: ignore[operator]
    stretch = slice(3_100, 4_100)  # of about the bars whose every prefix is tried
    for rare in (
        gaps > 0.2,
        gaps < -0.2,
        (gaps == 0) & (moves > 0.2),
        (gaps == 0) & (moves < -0.2),
    ):
        assert 1 <= rare[stretch].sum() <= 5
    assert (bars["volume"] > 1_000)[stretch].any()
    at_limit = (bars["high"] == bars["low"])[1:] & (moves > 0.09) & (moves < 0.11)
    assert (at_limit[:-2] & at_limit[1:-1] & at_limit[2:])[stretch].any()
    long = sample_bars(100_000, (), rare=True)["close"]
    assert 20 < float(long.min()) < float(long.max()) < 1_000  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    """One file whose indicators misbehave in every way; the one that loops may do so for 4 s."""
    folder = tmp_path_factory.mktemp("hostile")
    ways = {
        "loops": "while close.size > 10: pass",
        "crashes": "print('x' * 10_000_000); import ctypes; ctypes.string_at(0)",
        "seeded": "shift = __import__('os').getpid() * 1e-9",
    }
    parts = [
        drop_in(name, RETURN + (" + shift" if name == "seeded" else ""), before=way)
        .replace("MADE", name.upper())
        .replace("compute", f"compute_{name}")
        .replace(f"compute_{name}=", "compute=")
        for name, way in ways.items()
    ]
    path = write(folder, hostile="\n".join(parts)) / "hostile.py"
    limits_s = {"loops": 4.0, "crashes": LIMIT_S, "seeded": LIMIT_S}
    return [
        line
        for name, limit_s in limits_s.items()
        for line in check_plugin(str(path), {}, only=name, limit_s=limit_s)
    ]


@pytest.mark.parametrize(
    ("name", "check", "words"),
    [
        ("loops", "outputs", "did not end within 4 s and was stopped"),
        ("loops", "outputs", "one that is slow read the same"),
        ("loops", "outputs", "--limit"),
        ("crashes", "outputs", "ended by signal 11"),
        ("seeded", "threads", "another process with POLARS_MAX_THREADS=1 gives other bits"),
    ],
)
def test_a_hostile_plug_in_ends_in_a_sentence(
    hostile: list[Line], name: str, check: str, words: str
) -> None:
    failing = [line for line in hostile if line.indicator == name and line.verdict == "fails"]
    assert [line.check for line in failing] == [check]
    assert words in failing[0].detail
    assert "\n" not in failing[0].detail


def test_prints_are_kept_apart_and_said(hostile: list[Line]) -> None:
    warned = [line for line in hostile if line.indicator == "crashes" and line.verdict == "warns"]
    assert "it printed" in warned[0].detail
    assert len(warned[0].detail) < 300


def test_what_an_import_leaves_running_is_a_warning(tmp_path: Path) -> None:
    starts = (
        "import subprocess, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), name='feed').start()\n"
        "threading.Thread(target=time.sleep, args=(60,), name='fine', daemon=True).start()\n"
        "subprocess.run(['true'])\n"
        "CHILD = subprocess.Popen(['sleep', '60'])\n"
    )
    paths = write(tmp_path, quiet=drop_in(), busy=starts + drop_in())

    def warnings(stem: str) -> list[str]:
        lines = check_plugin(str(paths / f"{stem}.py"), {"absent": 1})
        return [line.detail for line in lines if (line.check, line.verdict) == ("import", "warns")]

    thread, process = warnings("busy")
    assert "the thread 'feed'" in thread
    assert "starts a process" in process
    assert warnings("quiet") == []


def test_a_report_passes_only_if_nothing_fails() -> None:
    assert passed([Line("a", "causal", "holds", ""), Line("a", "price level", "warns", "")])
    assert not passed([Line("a", "causal", "holds", ""), Line("a", "finite", "fails", "")])


def leave_a_child_behind(job: Any, report: Any) -> None:
    """A task whose own child stays, and keeps the pipes open."""
    import subprocess

    report({"child": subprocess.Popen(["sleep", "600"]).pid})


def talk_for_ever(job: Any, report: Any) -> None:
    """A task that reports and prints without end."""
    while True:
        print("and so on")
        report({"at": 1})


def test_a_process_takes_its_children_with_it() -> None:
    ended = run_child(f"{HERE}:leave_a_child_behind", None, 30.0)
    assert ended.code == 0
    (child,) = (report["child"] for report in ended.reports)
    while is_running(child):  # the kernel ends it a moment after it was told to
        time.sleep(0.01)


def test_a_process_that_never_stops_talking_is_stopped_and_little_is_kept() -> None:
    ended = run_child(f"{HERE}:talk_for_ever", None, limit_s=1.0)
    assert ended.code is None
    assert ended.printed_bytes > MOST_PRINTED
    assert len(ended.printed) == MOST_PRINTED
