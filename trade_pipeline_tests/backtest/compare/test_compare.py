"""Two results side by side: the right differences, and what makes them unlike said first."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner, Result

import trade_pipeline
from trade_pipeline.backtest.adhoc.request import parse_request
from trade_pipeline.backtest.adhoc.resolution import resolve
from trade_pipeline.backtest.adhoc.run import run as run_asked
from trade_pipeline.backtest.adhoc.run import write
from trade_pipeline.backtest.compare.differences import (
    SCHEMA,
    common,
    common_figures,
    differing,
    doubts,
    metric_differences,
)
from trade_pipeline.backtest.compare.page import comparison
from trade_pipeline.backtest.compare.sides import Side, load_side
from trade_pipeline.cli import app
from trade_pipeline.features.registry import resolve as resolve_features
from trade_pipeline.settings.project import read_project
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline_tests.deployment import Deployment, built_once

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DAY = 86_400_000
REPORT, TRIAL = "alone/report", "alone/backtest/base.f0.s0"


@pytest.fixture
def store(templates: Path) -> Path:
    """The trained project's store; most of these tests only read it."""
    return built_once(templates, "trained") / "store"


def side(
    days: list[int],
    equity: list[float],
    values: Mapping[str, float | None] | None = None,
    undefined: Mapping[str, str] | None = None,
    **more: Any,
) -> Side:
    """A made-up side with closes at these days."""
    figures = {
        "values": {"total_return": equity[-1] / equity[0] - 1, **(values or {})},
        "undefined": undefined or {},
        "periods_per_year": {"bar": 365.0, "day": 365.0},
    }
    given: dict[str, Any] = {
        "key": "made/backtest/base.f0.s0",
        "version": f"{abs(hash((*days, *equity, str(values), str(more)))):032x}",
        "subject": "made",
        "ts": np.array(days, np.int64) * DAY,
        "equity": np.array(equity),
        "figures": figures,
        "configuration": {"environment.costs.fee.bps": 10.0, "environment.window": 4},
        "data": {"ohlcv|a": "1"},
        "provenance": {"dataset": "d"},
        "instruments": ("a",),
    }
    return Side(**(given | more))


FOUR = side([0, 10, 20, 30], [100.0, 110.0, 121.0, 60.5])


def test_a_result_beside_itself_is_said_to_be_that_and_differs_in_nothing(
    store: Path, tmp_path: Path
) -> None:
    done = run(store, TRIAL, TRIAL, tmp_path / "page.html")
    assert f"Both sides are the same, {TRIAL} version" in done.stdout
    text = (tmp_path / "page.html").read_text()
    assert "Both sides are the same" in text.split("</header>")[0]
    assert "KEY@VERSION" in section(text, "doubts")
    for key in (REPORT, TRIAL):
        one = load_side(store, key)
        differences = metric_differences(one, one)
        assert set(differences["difference"].drop_nulls()) == {0.0}
        assert differing(one.configuration, one.configuration) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"instruments": ("b",)}, "Different markets: A trades a, B b."),
        ({"data": {"ohlcv|a": "2"}}, "Different data: ohlcv|a differ"),
        ({"data": {"ohlcv|a": "1", "ohlcv|b": "1"}}, "Different data: ohlcv|b differ"),
        (
            {"configuration": {"environment.costs.fee.bps": 0.0, "environment.window": 4}},
            "Different costs or rules of the account: environment.costs.fee.bps.",
        ),
        ({"notes": ("in-sample: it trained on 3 of these days.",)}, "B: in-sample"),
        (
            {"ts": np.array([0, 11, 20, 30]) * DAY},
            "Different bars within the common time: A has no equity at 1 closes that the other "
            "has, on 1 day: 1970-01-12; B has no equity at 1 closes that the other has, on 1 day: "
            "1970-01-11.",
        ),
        (
            {"ts": np.array([10, 20, 30, 40]) * DAY},
            "Different periods: A runs 1970-01-01 to 1970-01-31, B 1970-01-11 to 1970-02-10. They "
            "share 1970-01-11 to 1970-01-31;",
        ),
        ({"ts": np.array([40, 50, 60, 70]) * DAY}, "They share no time at all"),
        (
            {"figures": FOUR.figures | {"periods_per_year": {"bar": 252.0, "day": 252.0}}},
            "Different years: figures are annualised with",
        ),
    ],
)
def test_what_makes_two_results_unlike_is_said(changed: dict[str, Any], said: str) -> None:
    other = side([0, 10, 20, 30], [100.0, 110.0, 121.0, 60.5], **changed)
    (found,) = doubts(FOUR, other)
    assert found.startswith(said) or said in found
    assert doubts(other, FOUR)
    page = comparison(FOUR, other)
    text = re.sub(r"<[^>]+>", " ", page.split("</header>")[0])
    assert ("Not like with like" in text) == found.startswith("Different")
    assert page.index('id="doubts"') < page.index('id="metrics"')


def test_what_may_differ_raises_no_doubt() -> None:
    other = side(
        [0, 10, 20, 30],
        [100.0, 90.0, 80.0, 70.0],
        configuration={"environment.costs.fee.bps": 10.0, "environment.window": 16},
        provenance={"dataset": "e"},
        data={"ohlcv|a": "1", "features/more|a": "2"},
    )
    assert doubts(FOUR, other) == []


def test_differences_of_percentages_are_points_and_of_times_are_times() -> None:
    figures = {"sharpe": 1.5, "longest_drawdown_days": 634.04, "hit_rate": 0.5}
    others = {"sharpe": 1.25, "longest_drawdown_days": 610.0, "hit_rate": 0.5}
    page = comparison(
        side([0, 1], [1.0, 1.5], figures), side([0, 1], [1.0, 1.512], others, version="1" * 32)
    )
    table = re.sub("</summary>.*?</details>", "", section(page, "metrics"))
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")]
    shown = {re.sub("<[^>]+>", "", row[0]): row[-1] for row in rows if row}
    assert shown["Total return"] == "+1.20 pp"
    assert shown["Sharpe (days)"] == "−0.25"
    assert shown["Longest drawdown"] == "−24 days"
    assert shown["Hit rate"] == "0.00 pp"


def test_differences_are_b_minus_a_and_the_undefined_has_its_reason() -> None:
    a = side([0, 1], [1.0, 2.0], {"sharpe": 1.5, "psr": None, "trades": 4}, {"psr": "no spread"})
    b = side([0, 1], [1.0, 1.5], {"sharpe": 1.0, "psr": 0.25, "only_here": 7.0})
    a.figures["market"] = {"values": {"alpha": 0.5}, "undefined": {}}
    b.figures["market"] = {"values": {"alpha": None}, "undefined": {"alpha": "too few"}}
    expected = pl.DataFrame(
        [
            ("total_return", 1.0, 0.5, -0.5, None, None),
            ("sharpe", 1.5, 1.0, -0.5, None, None),
            ("trades", 4.0, None, None, None, "not computed"),
            ("psr", None, 0.25, None, "no spread", None),
            ("market: alpha", 0.5, None, None, None, "too few"),
            ("only_here", None, 7.0, None, "not computed", None),
        ],
        schema=SCHEMA,
        orient="row",
    )
    assert_frame_equal(metric_differences(a, b), expected)


def test_curves_start_at_one_where_their_common_time_begins() -> None:
    late = side([15, 25, 40], [50.0, 55.0, 44.0])
    shared = common(FOUR, late)
    assert shared is not None
    # A's last value known on day 15 is that of day 10; day 40 lies beyond A's end.
    assert shared.ts_a.tolist() == [15 * DAY, 20 * DAY, 30 * DAY]
    assert shared.a == pytest.approx([1, 1.1, 0.55])
    assert shared.ts_b.tolist() == [15 * DAY, 25 * DAY]
    assert shared.b == pytest.approx([1, 1.1])
    found = {name: pair for name, *pair in common_figures(FOUR, late, shared)}
    assert found["total_return"] == pytest.approx([-0.45, 0.1])
    assert found["max_drawdown"] == pytest.approx([-0.5, 0.0])
    assert common(FOUR, side([30, 31], [1.0, 2.0])) is None
    ruined = side([0, 5, 20, 30], [100.0, 0.0, 0.0, 0.0])
    assert common(ruined, late) is None
    assert "no time in which both have equity" in comparison(ruined, late)


def test_days_that_only_one_side_has_are_named_where_they_are_laid_over() -> None:
    days = [*range(10), *range(16, 40)]
    a, b = side(days, [1.0] * 34), side([*range(30), *range(36, 40)], [1.0] * 34)
    (said,) = doubts(a, b)
    assert "A has no equity at 6 closes" in said
    assert "6 days: 1970-01-11 to 1970-01-16" in said
    assert "6 days: 1970-01-31 to 1970-02-05" in said
    assert said in section(comparison(a, b), "common")


def test_a_reports_side_is_the_stitched_curve_of_its_median_seed(store: Path) -> None:
    report = bundles.current(ArtifactLocation(store, REPORT))
    one = load_side(store, REPORT)
    shown = read_json(report.child("provenance.json"))["shown"]
    figures = read_json(report.child("metrics.json"))[shown["variant"]][str(shown["seed"])]
    assert one.figures == figures
    assert one.equity[-1] / one.equity[0] - 1 == pytest.approx(
        figures["values"]["total_return"], rel=1e-12
    )
    assert one.equity.size == figures["values"]["bars"] + 1
    assert (np.diff(one.ts) > 0).all()
    shared = common(one, one)
    assert shared is not None
    found = {name: first for name, first, _ in common_figures(one, one, shared)}
    for name, value in found.items():
        assert value == pytest.approx(figures["values"][name], rel=1e-9)


def test_settings_and_sources_that_differ_stand_on_the_page(
    trained: Deployment, tmp_path: Path
) -> None:
    store = trained.places.store
    page = tmp_path / "page.html"
    done = run(store, REPORT, "pair/report", page)
    assert done.exit_code == 0, done.stderr
    assert "Different markets" in done.stdout
    text = page.read_text()
    settings = section(text, "configuration")
    for name, a, b in (
        ("splits.kind", "walk_forward", "fraction"),
        ("environment.actions.kind", "brackets", "weights"),
        ("baselines.0.kind", "flat", "equal_weight"),
    ):
        assert f'<th scope="row">{name}</th><td>{a}</td><td>{b}</td>' in settings
    assert "environment.window" not in settings
    sources = section(text, "provenance")
    for key in ("alone", "pair"):
        assert bundles.current(ArtifactLocation(store, f"{key}/dataset")).path.name in sources
    assert "package torch" not in sources
    boards = section(text, "leaderboard")
    assert all(name in boards for name in ("base", "buy_and_hold (baseline)", "equal_weight"))
    assert run(store, REPORT, "pair/report", page).exit_code == 1  # never replaced unasked
    again = tmp_path / "again.html"
    assert run(store, REPORT, "pair/report", again).exit_code == 0
    assert again.read_bytes() == page.read_bytes()


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def run(store: Path, a: str, b: str, to: Path) -> Result:
    words = ["bundle", "compare", a, b, "--to", str(to), "--store", str(store)]
    return CliRunner().invoke(app, words)


def test_another_version_of_the_same_key_is_named_by_its_version(
    trained: Deployment, tmp_path: Path
) -> None:
    store = trained.places.store
    home = ArtifactLocation(store, TRIAL)
    before = bundles.current(home)
    staging = bundles.staging(store, "other")
    shutil.copytree(before.path, staging.path, dirs_exist_ok=True)
    now = bundles.commit(bundles.seal(staging, ["equity.parquet"]), home)
    page = tmp_path / "page.html"
    done = run(store, f"{TRIAL}@{before.path.name}", TRIAL, page)
    assert done.exit_code == 0, done.stderr
    sides = section(page.read_text(), "sides")
    assert before.path.name in sides
    assert now.path.name in sides


def test_what_can_not_be_compared_is_named(trained: Deployment, tmp_path: Path) -> None:
    store, page = trained.places.store, tmp_path / "page.html"
    for name, said in (
        ("alone/policy/base.f0.s0", "is neither a report nor a backtest"),
        ("alone/reprot", "alone/reprot: no such bundle is stored in"),
        (f"{REPORT}@{'0' * 32}", f"version {'0' * 32} is not there"),
    ):
        done = run(store, REPORT, name, page)
        assert done.exit_code == 1
        assert said in done.stderr
    assert "Did you mean 'alone/report'?" in run(store, "alone/reprot", REPORT, page).stderr
    folder = bundles.current(ArtifactLocation(store, TRIAL)).path
    content = (folder / "equity.parquet").read_bytes()
    (folder / "equity.parquet").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = run(store, REPORT, "pair/report", page)
    assert done.exit_code == 1
    assert "equity.parquet" in done.stderr
    assert not page.exists()


def test_a_report_whose_policies_were_pruned_is_compared_and_the_gap_is_said(
    trained: Deployment,
) -> None:
    store = trained.places.store
    whole = load_side(store, REPORT)
    assert any(name.startswith("package ") for name in whole.provenance)
    shutil.rmtree(store / "alone" / "policy")
    gone = load_side(store, REPORT)
    said = doubts(whole, gone)[-1]
    assert said.startswith("B: alone/policy/base.f0.s0 version ")
    assert "no longer stored" in said


def test_a_notebook_gets_the_differences_as_a_frame_and_the_doubts_as_warnings(
    store: Path,
) -> None:
    with pytest.warns(UserWarning, match="Different periods"):
        found = trade_pipeline.compare(REPORT, TRIAL, store=store)
    values = [load_side(store, key).figures["values"]["sharpe"] for key in (REPORT, TRIAL)]
    with pytest.raises(StorageError, match=r"None is no key; give two such as"):
        trade_pipeline.compare(REPORT, None, store=store)  # type: ignore[arg-type]
    row = found.row(by_predicate=pl.col("metric") == "sharpe", named=True)
    assert [row["a"], row["b"], row["difference"]] == [*values, values[1] - values[0]]


def test_a_backtest_that_was_asked_for_brings_its_own_doubts(trained: Deployment) -> None:
    store = trained.places.store
    project = read_project(trained.places.configs)
    sets = {name: resolve_features(one, name) for name, one in project.feature_sets.items()}
    policy = {"policy": "alone/policy/base.f0.s0", "to": "2021-08-23"}
    for name, asked in {
        "test": {**policy, "from": "2021-04-25"},
        "training": {**policy, "from": "2020-04-25"},
    }.items():
        staging = bundles.staging(store, name)
        request = resolve(parse_request(asked), store, project, sets)
        written = write(run_asked(request, store, project), staging)
        bundles.commit(written.reference, ArtifactLocation(store, f"adhoc_backtest/{name}"))
    tested = load_side(store, TRIAL)
    same = load_side(store, "adhoc_backtest/test")
    assert doubts(tested, same) == []
    assert same.equity.tolist() == tested.equity.tolist()
    beside = metric_differences(tested, same)
    assert beside["undefined_b"].to_list() == beside["undefined_a"].to_list()
    other = doubts(tested, load_side(store, "adhoc_backtest/training"))
    assert any(line.startswith("Different periods") for line in other)
    assert any(line.startswith("B: IN-SAMPLE") for line in other)


@pytest.mark.browser
def test_a_browser_lays_both_curves_over_each_other_without_a_network(
    store: Path, tmp_path: Path, browser: "Browser"
) -> None:
    path = tmp_path / "page.html"
    assert run(store, REPORT, TRIAL, path).exit_code == 0
    context = browser.new_context(
        offline=True, viewport={"width": 390, "height": 844}, color_scheme="dark"
    )
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-charts=drawn]")
    assert wrong == []
    assert page.locator("#doubts li").first.inner_text().startswith("Different periods")
    assert page.locator("#summary").inner_text().startswith("Not like with like")
    for chart in ("common-chart", "own-chart"):
        names = page.evaluate(
            f"document.getElementById('{chart}').data.filter(d => d.yaxis == 'y').map(d => d.name)"
        )
        assert sorted(names) == ["A", "B"]
        starts = page.evaluate(
            f"document.getElementById('{chart}').data.filter(d => d.yaxis == 'y').map(d => d.y[0])"
        )
        assert starts == [1, 1]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    hidden = page.evaluate("""[...document.querySelectorAll(".scroll")].filter(
        (e) => e.scrollWidth > e.clientWidth).map((e) => e.firstChild.id)""")
    assert hidden == [], "both sides and their difference are in sight"
