"""Pictures of regimes: PNGs of a size that a web page shows in place."""

import struct
from io import BytesIO

import numpy as np
import polars as pl
import pytest
from PIL import Image

from trade_pipeline.features.regimes.fit import TRIALS
from trade_pipeline.features.regimes.model import RegimeModel
from trade_pipeline.features.regimes.pictures import (
    bic_png,
    price_by_regime_png,
    regime_colors,
    state_means_png,
    transition_png,
)
from trade_pipeline_tests.features.regimes.markets import known_model

MOST_BYTES = 100_000  # of a picture in metadata
MINUTE_MS = 60_000


def size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels; refuses what is no PNG or too large for metadata."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) < MOST_BYTES
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def pixels(png: bytes, color: str) -> int:
    """How many pixels have about this colour."""
    image = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=2) < 12).sum())


def walk(rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    ts = 1_600_000_000_000 + MINUTE_MS * np.arange(rows)
    return ts, 100 * np.exp(np.cumsum(generator.normal(size=rows)) * 1e-3)


def test_the_price_has_the_colours_of_its_regimes_and_no_other() -> None:
    ts, price = walk(3_000)
    regimes = np.where(np.arange(3_000) < 2_000, 0, 2).astype(np.int8)
    png = price_by_regime_png(ts, price, regimes, 3, "fold 0")
    calm, middle, wild = (pixels(png, color) for color in regime_colors(3))
    assert size(png) == (900, 540)
    assert calm > 1.5 * wild > 0
    assert middle < 0.05 * wild  # in the legend alone
    assert png == price_by_regime_png(ts, price, regimes, 3, "fold 0")


def test_a_long_series_is_thinned_but_keeps_its_extremes() -> None:
    ts, price = walk(500_000)
    regimes = np.random.default_rng(1).integers(-1, 8, 500_000).astype(np.int8)
    plain = price_by_regime_png(ts, price, regimes, 8, "long")
    price[250_001] *= 3  # a single bar
    spiked = price_by_regime_png(ts, price, regimes, 8, "long")
    assert size(plain) == size(spiked) == (900, 540)
    assert plain != spiked


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows_can_be_drawn(rows: int) -> None:
    ts, price = walk(rows)
    png = price_by_regime_png(ts, price, np.zeros(rows, np.int8), 2, "few")
    assert size(png) == (900, 540)


def test_a_gap_in_time_is_left_blank() -> None:
    ts, price = walk(2_000)
    apart = np.concatenate([ts[:1_000], ts[1_000:] + 2_000 * MINUTE_MS])
    regimes = np.zeros(2_000, np.int8)
    blue = regime_colors(2)[0]
    joined = pixels(price_by_regime_png(ts, price, regimes, 2, "whole"), blue)
    broken = pixels(price_by_regime_png(apart, price, regimes, 2, "gap"), blue)
    assert broken < 0.65 * joined  # half of the time has no bar


def wide(states: int, inputs: int) -> RegimeModel:
    stays = np.full((states, states), 0.01 / (states - 1))
    np.fill_diagonal(stays, 0.99)
    return RegimeModel(
        tuple(f"feature_{number}" for number in range(inputs)),
        np.zeros(inputs),
        np.full(inputs, 1e-4),
        np.full(states, 1 / states),
        stays,
        np.random.default_rng(0).normal(size=(states, inputs)),
        np.stack([np.eye(inputs) * (state + 1) for state in range(states)]),
    )


@pytest.mark.parametrize(("states", "inputs"), [(2, 1), (3, 2), (8, 16)])
def test_models_of_any_size_can_be_drawn(states: int, inputs: int) -> None:
    model = wide(states, inputs)
    for png in (transition_png(model, "fold 0"), state_means_png(model, "fold 0")):
        width, height = size(png)
        assert width == 900
        assert 250 <= height <= 900
        assert all(pixels(png, color) for color in regime_colors(states))


def test_pictures_of_a_model_show_its_numbers() -> None:
    model = known_model()
    moved = RegimeModel(
        model.inputs,
        model.center,
        model.scale,
        model.start,
        model.transition[::-1, ::-1],
        -model.means,
        model.covariances,
    )
    assert transition_png(model, "m") != transition_png(moved, "m")
    assert state_means_png(model, "m") != state_means_png(moved, "m")


def test_bic_shows_what_was_tried_and_dropped() -> None:
    rows = {
        "states": [2, 2, 3, 3, 4],
        "seed": [0, 1, 0, 1, 0],
        "log_likelihood": [-50.0, -40.0, -30.0, -31.0, None],
        "bic": [110.0, 95.0, 80.0, 82.0, None],
        "iterations": [9, 8, 7, 6, 5],
        "converged": [True, True, True, True, False],
        "dropped": [None, None, None, "a state holds fewer than 10 rows", "not converged"],
        "chosen": [False, False, True, False, False],
    }
    trials = pl.DataFrame(rows, schema=TRIALS)
    png = bic_png(trials, "choice of $states$")
    assert size(png) == (900, 340)
    assert png != bic_png(trials.filter(pl.col("states") != 4), "choice of $states$")
