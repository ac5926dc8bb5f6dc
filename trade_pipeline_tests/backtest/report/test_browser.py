"""The report in a browser without network: what a reader does with it, and what it never does."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest
from playwright.sync_api import Browser, Page, expect

from trade_pipeline.backtest.report.page import render
from trade_pipeline_tests.backtest.report.example import full_report

pytestmark = pytest.mark.browser

TRADES = 120
SLOW_MS = 120_000  # most that a page may take on a busy machine
HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert("x")</script>'
DRAWN, LISTED, LOADED = "html[data-charts=drawn]", "#trades-pager", "html"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(13, 17, 23)"


@pytest.fixture(scope="module")
def report():
    return full_report(bars=6_000, trades=TRADES)


@pytest.fixture(scope="module")
def file(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(report), encoding="utf-8")
    return path


@contextmanager
def opened(browser: Browser, path, ready=DRAWN, **options) -> Iterator[Page]:
    """The page once it is ready; fails if it asked the network, said anything or broke."""
    asked, problems = [], []
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
    context.set_default_timeout(SLOW_MS)
    context.set_offline(True)
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda said: problems.append(said.text))
    tab.on("dialog", lambda dialog: problems.append(dialog.message))
    tab.goto(path.as_uri())
    tab.wait_for_selector(ready)
    yield tab
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []
    context.close()


def column(tab, place):
    return tab.locator(f"#trades-table tbody tr > :nth-child({place})").all_inner_texts()


def place_of(tab, name):
    heads = tab.locator("#trades-table thead th").all_inner_texts()
    return heads.index(name) + 1


def numbers(texts):
    return [float(text.replace("\N{MINUS SIGN}", "-").replace(",", "")) for text in texts]


def axis(tab, name, chart="price-chart-0"):
    return tab.evaluate(f"document.getElementById('{chart}')._fullLayout.{name}")


def drawn_candles(tab):
    return tab.evaluate(
        "document.getElementById('price-chart-0').data.find(t => t.type === 'candlestick').x.length"
    )


def test_the_trade_list_sorts_by_mouse_and_keyboard_filters_and_saves_what_is_left(
    browser, file, report
):
    nets = sorted(round(net, 2) for net in report.trips["net"])
    wanted = report.trips.filter(
        (pl.col("net") > 0) & (pl.col("side") == "short") & (pl.col("exit_reason") == "stop")
    )
    in_regime = wanted.filter(pl.col("regime") == 2)
    assert 0 < in_regime.height < wanted.height < TRADES
    with opened(browser, file, LISTED) as tab:
        head = tab.locator("#trades-table thead th", has_text="Net")
        net = place_of(tab, "Net")
        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert numbers(column(tab, net)) == nets[:50]
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert numbers(column(tab, net)) == nets[::-1][:50]
        tab.click("#trades-pager >> text=Next")
        assert numbers(column(tab, net)) == nets[::-1][50:100]
        tab.click("#trades-pager [data-to=last]")
        assert numbers(column(tab, net)) == nets[::-1][100:]
        expect(tab.locator("#trades-page")).to_have_text("Page 3 of 3")
        assert tab.locator("#trades-pager [data-to=next]").is_disabled()
        tab.locator("#trades-table thead button", has_text="Side").click()
        assert head.get_attribute("aria-sort") == "none"
        assert set(column(tab, place_of(tab, "Side"))) == {"long"}
        tab.locator("#trades-table thead button", has_text="#").click()
        count = tab.locator("#trades-count")
        expect(count).to_contain_text(f"{TRADES} of {TRADES} trades")
        tab.select_option("#trades-result", "win")
        tab.select_option("[data-filter=side]", "short")
        tab.fill("#trades-search", "STOP")
        expect(count).to_contain_text(f"{wanted.height} of {TRADES} trades")
        expect(count).to_contain_text(f"net together {wanted['net'].sum():,.2f}")
        tab.fill("#trades-search", "")
        tab.select_option("[data-filter=exit_reason]", "stop")
        tab.select_option("[data-filter=regime]", "2")
        expect(count).to_contain_text(f"{in_regime.height} of {TRADES} trades")
        with tab.expect_download() as download:
            tab.click("#trades-csv")
        rows = list(csv.DictReader(download.value.path().open(newline="", encoding="utf-8")))
        assert [float(row["net"]) for row in rows] == in_regime["net"].to_list()
        assert rows[0]["entry_time"] == f"{in_regime['entry_time'][0]:%Y-%m-%dT%H:%M:%S}.000Z"
        tab.click("#trades-clear")
        expect(count).to_contain_text(f"{TRADES} of {TRADES} trades")
        tab.fill("#trades-search", "no such trade")
        expect(count).to_contain_text(f"0 of {TRADES} trades")
        assert column(tab, 1) == []


def test_a_chart_zooms_to_a_trade_bar_by_bar_and_back_and_to_what_the_mouse_drags_over(
    browser, file, report
):
    trade = report.trips.row(30, named=True)
    with opened(browser, file) as tab:
        whole = drawn_candles(tab)
        assert whole == 3_000
        expect(tab.locator("#price-chart-0-detail")).to_contain_text("Each candle is 2 bars.")
        tab.locator("#trades-table tbody button", has_text="31").click()
        expect(tab.locator("#price-chart-0-detail")).to_have_text("Each candle is one bar.")
        tab.wait_for_selector("#trades-table tr[aria-current=true]")
        assert axis(tab, "xaxis.type") == "date"
        margin = timedelta(minutes=20)
        wanted = [trade["entry_time"] - margin, trade["exit_time"] + margin]
        assert eventually(tab, lambda: ranges(tab) == [f"{at:%Y-%m-%d %H:%M}" for at in wanted])
        low, high = axis(tab, "yaxis.range")
        assert low < min(trade["entry_price"], trade["exit_price"])
        assert max(trade["entry_price"], trade["exit_price"]) < high < low * 1.2
        tab.evaluate("document.getElementById('price-chart-0').scrollIntoView()")
        tab.hover("#price-chart-0 .nsewdrag >> nth=0")
        tab.click("#price-chart-0 [data-title='Reset axes']")
        expect(tab.locator("#price-chart-0-detail")).to_contain_text("Each candle is 2 bars.")
        assert eventually(tab, lambda: drawn_candles(tab) == whole)
        chart = tab.locator("#price-chart-0 .nsewdrag").first
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        before = ranges(tab)
        middle = box["y"] + box["height"] / 2
        tab.mouse.move(box["x"] + 0.4 * box["width"], middle)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=5)
        tab.mouse.up()
        assert eventually(tab, lambda: before[0] < ranges(tab)[0] < ranges(tab)[1] < before[1])
        tab.click("#log-scale")
        assert eventually(tab, lambda: axis(tab, "yaxis.type", "equity-chart") == "log")
        assert tab.get_attribute("#log-scale", "aria-pressed") == "true"
        tab.click("#log-scale")
        assert eventually(tab, lambda: axis(tab, "yaxis.type", "equity-chart") == "linear")


def eventually(tab, holds):
    """Charts are drawn again a moment later."""
    for _ in range(100):
        if holds():
            return True
        tab.wait_for_timeout(50)
    return False


def ranges(tab):
    """Both ends of the price chart's time axis with a time of day."""
    found = axis(tab, "xaxis.range")
    return [at if ":" in str(at) else f"{at} 00:00" for at in found]


def test_darkness_follows_the_system_until_the_button_overrides_it(browser, file):
    colour = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, file, color_scheme="light") as tab:
        assert tab.evaluate(colour) == LIGHT
        assert tab.get_attribute("#theme", "aria-pressed") == "false"
        light_ink = axis(tab, "font.color", "equity-chart")
        tab.emulate_media(color_scheme="dark")
        assert tab.evaluate(colour) == DARK
        expect(tab.locator("#theme")).to_have_attribute("aria-pressed", "true")
        assert eventually(tab, lambda: axis(tab, "font.color", "equity-chart") != light_ink)
        dark_ink = axis(tab, "font.color", "equity-chart")
        assert eventually(tab, lambda: axis(tab, "font.color") == dark_ink)
        tab.click("#theme")
        assert tab.evaluate(colour) == LIGHT
        assert eventually(tab, lambda: axis(tab, "font.color", "equity-chart") == light_ink)
        tab.emulate_media(color_scheme="light")
        tab.click("#theme")
        assert tab.evaluate(colour) == DARK
        assert eventually(tab, lambda: axis(tab, "font.color", "equity-chart") == dark_ink)


def test_what_was_chosen_last_holds_for_the_next_page(browser, file):
    colour = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, file, LISTED, color_scheme="light") as tab:
        tab.click("#theme")
        tab.reload()
        tab.wait_for_selector(LISTED)
        assert tab.evaluate(colour) == DARK
        assert tab.get_attribute("#theme", "aria-pressed") == "true"


def test_paper_is_light_shows_every_trade_and_cuts_no_table(browser, file):
    sheet = {"viewport": {"width": 1046, "height": 700}}  # A4 landscape, 10 mm margins
    with opened(browser, file, color_scheme="dark", **sheet) as tab:
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")  # as printing does
        assert tab.locator("#trades-table tbody tr").count() == TRADES
        tab.emulate_media(media="print", color_scheme="dark")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == LIGHT
        red, green, blue = tab.evaluate(
            "getComputedStyle(document.querySelector('#trades-table td')).color.match(/\\d+/g)"
        )
        assert max(int(red), int(green), int(blue)) < 64
        inks = tab.evaluate(
            "[...document.querySelectorAll('.chart text')].map(e => getComputedStyle(e).fill)"
        )
        assert inks and set(inks) == {"rgb(31, 35, 40)"}
        cut = tab.evaluate("""[...document.querySelectorAll("table, .chart svg, pre")].filter(
            (e) => e.getBoundingClientRect().right > innerWidth + 1
                || e.parentElement.scrollWidth > e.parentElement.clientWidth + 1
        ).map((e) => e.id || e.tagName)""")
        assert cut == []
        assert tab.locator("#provenance pre").is_visible()
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert tab.locator("#trades-table tbody tr").count() == 50


def test_trades_that_are_not_printed_are_counted_and_it_is_said_where_they_are(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(full_report(bars=6_000, trades=2_100)), encoding="utf-8")
    with opened(browser, path, LISTED) as tab:
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        tab.emulate_media(media="print")
        said = tab.locator("#trades-printed")
        expect(said).to_be_visible()
        expect(said).to_contain_text("first 2,000 of 2,100 trades; 100 are left out: Download CSV")
        assert tab.locator("#trades-table tbody tr").count() == 2_000


def test_a_phone_scrolls_no_page_sideways_but_tables_in_themselves(browser, file):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with opened(browser, file, **phone) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        table = tab.locator(".scroll:has(#trades-table)")
        assert table.evaluate("e => e.scrollWidth > e.clientWidth && e.clientWidth < 390")
        assert axis(tab, "dragmode") is False


def test_without_scripts_there_are_the_tables_and_the_first_trades_just_as_with_them(browser, file):
    with opened(browser, file, LOADED, java_script_enabled=False) as tab:
        plain = tab.locator("#trades-table tbody tr").all_inner_texts()
        assert len(plain) == 50
        expect(tab.locator("#metrics-table")).to_be_visible()
        expect(tab.locator("#trades-controls")).to_be_hidden()
        said = " ".join(tab.locator("noscript").all_inner_texts())
        assert "The charts need JavaScript" in said
        assert "the first 50 of 120 trades; the others need JavaScript" in said
    with opened(browser, file, LISTED) as tab:
        assert tab.locator("#trades-table tbody tr").all_inner_texts() == plain


def test_a_trade_that_earned_next_to_nothing_reads_the_same_with_and_without_scripts(
    browser, report, tmp_path
):
    nets = report.trips["net"].to_list()
    tiny = pl.Series("net", [-0.00042, 0.0000003, 0.0, *nets[3:]])
    path = tmp_path / "report.html"
    path.write_text(render(replace(report, trips=report.trips.with_columns(tiny))), "utf-8")
    with opened(browser, path, LOADED, java_script_enabled=False) as tab:
        plain = tab.locator("#trades-table tbody tr").all_inner_texts()
    assert "−0.0004" in plain[0] and "0.0000003" in plain[1]
    with opened(browser, path, LISTED) as tab:
        assert tab.locator("#trades-table tbody tr").all_inner_texts() == plain


def test_a_tap_on_a_figure_says_what_it_is_on_a_phone(browser, file):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with opened(browser, file, **phone) as tab:
        figure = tab.locator("#metrics-table .meaning", has_text="System quality number")
        words = figure.get_by_text("Van Tharp")
        expect(words).to_be_hidden()
        figure.locator("summary").tap()
        expect(words).to_be_visible()
        box = figure.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        figure.locator("summary").press("Enter")
        expect(words).to_be_hidden()


def test_hostile_names_run_nowhere(browser, report, tmp_path):
    hostile = replace(
        report,
        title=HOSTILE,
        prices={HOSTILE: next(iter(report.prices.values()))},
        trips=report.trips.with_columns(
            instrument=pl.lit(HOSTILE),
            entry_reason=pl.when(pl.col("net") > 0).then(pl.lit("=1+2")).otherwise(pl.lit(HOSTILE)),
            exit_reason=pl.lit(HOSTILE),
        ),
        learning={HOSTILE: report.learning["base.f0.s0"]},
        curves=[replace(one, name=one.name + HOSTILE) for one in report.curves],
        configuration=HOSTILE,
    )
    path = tmp_path / "report.html"
    path.write_text(render(hostile), encoding="utf-8")
    with opened(browser, path) as tab:
        tab.locator("#trades-table thead button", has_text="Net").click()
        tab.select_option("[data-filter=entry_reason]", HOSTILE)
        tab.locator("#trades-table tbody button").first.click()
        chosen = "document.getElementById('price-chart-0').data.some(t => t.meta === 'chosen')"
        assert eventually(tab, lambda: tab.evaluate(chosen))
        assert tab.locator("img").count() == 0
        assert HOSTILE in tab.locator("#trades-table tbody tr").first.inner_text()
        assert HOSTILE in tab.locator("#prices h3").inner_text()
        tab.click("#trades-clear")
        with tab.expect_download() as download:
            tab.click("#trades-csv")
        rows = list(csv.DictReader(download.value.path().open(newline="", encoding="utf-8")))
        assert {row["entry_reason"] for row in rows} == {"'=1+2", HOSTILE}


def test_half_a_million_bars_are_a_page_that_reads_like_any_other(browser, tmp_path):
    """How soon it opens is measured by `benchmarks/backtest.py`."""
    path = tmp_path / "report.html"
    large = full_report(bars=500_000, trades=10_000)
    path.write_text(render(large), encoding="utf-8")
    assert path.stat().st_size < 8e6
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    context.set_default_timeout(SLOW_MS)
    tab = context.new_page()
    tab.goto(path.as_uri(), wait_until="commit")
    tab.wait_for_selector('html[data-charts="in sight"], html[data-charts="drawn"]')
    assert tab.locator("#equity-chart .scatterlayer .trace").count() > 8
    tab.wait_for_selector('html[data-charts="drawn"]')
    tab.locator("#trades-table thead button", has_text="Net").click()
    expect(tab.locator("#trades-page")).to_have_text("Page 1 of 200")
    assert tab.locator("#trades-table tbody tr").count() == 50
    # Bars of the smallest trade are not kept one by one: it is shown among candles of many bars.
    smallest = large.trips.sort(pl.col("net").abs()).row(0, named=True)
    tab.fill("#trades-search", f"{smallest['entry_time']:%Y-%m-%d %H:%M}")
    tab.locator("#trades-table tbody button").first.click()
    margin = timedelta(minutes=20 * 167)
    wanted = [smallest["entry_time"] - margin, smallest["exit_time"] + margin]
    assert eventually(tab, lambda: ranges(tab) == [f"{at:%Y-%m-%d %H:%M}" for at in wanted])
    expect(tab.locator("#price-chart-0-detail")).to_contain_text("Each candle is 167 bars.")
    context.close()
