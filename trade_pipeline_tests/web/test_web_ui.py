"""What a user sees: the Dagster web UI in a real browser, and the report without network."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from trade_pipeline.storage import bundles, layout
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA
from trade_pipeline_tests.web.serving import serving


@pytest.fixture
def server(empty: Deployment) -> Iterator[str]:
    """The small project, served; yields the address."""
    with serving(empty) as address:
        yield address


@pytest.mark.browser
def test_the_web_ui_lists_the_graph_and_materializes_a_partition(
    server: str, browser: Browser
) -> None:
    tab = browser.new_page(viewport={"width": 1500, "height": 1000})
    tab.set_default_timeout(60_000)

    tab.goto(f"{server}/asset-groups")
    for group in ("market", "features", "alone", "pair", "leaderboard"):
        expect(tab.get_by_text(group, exact=True).first).to_be_visible(timeout=60_000)

    tab.goto(f"{server}/automation")
    for name in ("refresh_1d", "inbox", "derived_bars", "retrain"):
        expect(tab.get_by_text(name).first).to_be_visible(timeout=60_000)

    tab.goto(f"{server}/assets/ohlcv")
    tab.get_by_role("button", name="Materialize…").click()
    year = tab.get_by_placeholder("ex: 2020", exact=False)
    year.wait_for()
    tab.get_by_text("Select a partition or create one").click()
    tab.get_by_text(ALPHA, exact=True).locator("visible=true").last.click()
    tab.keyboard.press("Escape")
    year.fill("2020")
    year.press("Enter")
    # Leaving the page before the answer would take the launch back.
    with tab.expect_response(lambda answer: "Launch" in (answer.request.post_data or "")):
        tab.get_by_role("button", name="Launch 1 run").click()

    tab.goto(f"{server}/assets/ohlcv?view=partitions&partition={ALPHA}%7C2020")
    expect(tab.get_by_text("Materialized (1)")).to_be_visible(timeout=180_000)
    tab.reload()  # the details of a partition are not fetched again by themselves
    badge = tab.get_by_text("Materialized", exact=True)
    expect(badge.first).to_be_visible(timeout=60_000)
    red, green, blue = _colour(badge.first.evaluate("e => getComputedStyle(e).color"))
    assert green > red
    assert green > blue
    metadata = tab.locator("table", has_text="dagster/row_count").first
    expect(metadata).to_contain_text("366")
    expect(metadata).to_contain_text("data/alpha.csv")


@pytest.mark.browser
def test_the_report_draws_its_charts_without_network(trained: Deployment, browser: Browser) -> None:
    home = layout.experiment_bundle(trained.places.store, "alone", "report")
    page = bundles.current(home).child("report.html").path
    asked, problems = [], []
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_selector("#equity-chart .scatterlayer .trace")
    tab.wait_for_selector("#price-chart-0 .main-svg")
    expect(tab.locator("#leaderboard-table")).to_contain_text("buy_and_hold")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []


def _colour(css: str) -> tuple[int, int, int]:
    red, green, blue = (int(float(one)) for one in re.findall(r"[\d.]+", css)[:3])
    return red, green, blue
