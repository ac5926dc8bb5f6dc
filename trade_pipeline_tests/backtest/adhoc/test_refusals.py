"""Ad-hoc backtests that make no sense, or lack what they need, end in a sentence at once."""

from datetime import date
from typing import Any

import polars as pl
import pytest

from trade_pipeline.settings.base import SettingsError
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import StorageError, read_frame, write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.policy import DETERMINISTIC
from trade_pipeline_tests.backtest.adhoc.asking import FIRST_TEST, HOLD, LOOKBACK, POLICY, ask, tree
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import (
    ALPHA,
    BETA,
    FEATURES,
    series_entry,
    write_yaml,
)

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["either a policy", "or a baseline"]),
    ({"policy": POLICY, "baseline": {"kind": "flat"}}, ["not both"]),
    ({"policy": "alone/policy/base.f0.s9"}, ["'policy'", "Did you mean 'alone/policy/base.f0"]),
    ({"policy": "alone/dataset"}, ["alone/dataset is a bundle, but no policy"]),
    ({"policy": "../elsewhere"}, ["'policy'", "not allowed"]),
    ({"policy": "nonsense"}, ["Stored policies: alone/policy/base.f0.s0"]),
    ({"policy": POLICY, "version": "0" * 32}, ["version", "0" * 32, "not there"]),
    ({"policy": POLICY, "version": "1"}, ["version '1' is not 32 hex digits"]),
    ({"policy": POLICY, "series": ["made.ALPA.1d"]}, ["series", f"Did you mean '{ALPHA}'"]),
    ({"policy": POLICY, "series": [ALPHA, BETA]}, ["lists 2", "trades 1 instrument", ALPHA]),
    ({"policy": POLICY, "series": [ALPHA, ALPHA]}, ["series", "unique"]),
    ({"policy": POLICY, "features": "tini"}, ["features", "Did you mean 'tiny'"]),
    ({"policy": POLICY, "from": "2021-09-01"}, ["2021-09-01 must come before", "2021-08-23"]),
    ({"policy": POLICY, "from": "2021-02-31"}, ["'from'", "2021-02-31", "no date"]),
    (
        {"policy": POLICY, "from": "2019-12-31"},
        ["'from'", "2019-12-31", "in no slice of", "2020-01-01 to 2022-09-26"],
    ),
    ({"policy": POLICY, "to": "2022-09-28"}, ["'to'", "2022-09-28", "2020-01-01 to 2022-09-26"]),
    (
        {"policy": POLICY, "series": [BETA], "from": "2021-03-05"},
        ["2021-03-05", BETA, "2021-03-06"],
    ),
    (
        {"policy": POLICY, "from": "2021-08-18"},
        ["too short", "5 rows in 1 slice", "window of 4 needs 6"],
    ),
    (
        {"policy": POLICY, "from": "2020-01-01", "to": "2020-01-12"},
        ["2 rows", f"first {LOOKBACK} bars", "Widen"],
    ),
    (
        {**HOLD, "from": "2021-05-05T06:00", "to": "2021-05-05T18:00"},
        [
            f"from 2021-05-05 06:00 to 2021-05-05 18:00 holds no bar of {ALPHA}",
            "before opens at 2021-05-05, the next one after opens at 2021-05-06 (UTC)",
        ],
    ),
    (
        {**HOLD, "from": "2022-09-26T06:00", "to": "2022-09-27"},
        ["holds no bar", "before opens at 2022-09-26 (UTC). Widen"],
    ),
    (
        {"baseline": {"kind": "sma_cross", "slow": 700}, "series": [ALPHA]},
        ["'baseline': sma_cross_20_700 needs 700 bars", "there are 599 at most", "stays flat"],
    ),
    ({"policy": POLICY, "costs": {"fees": 1}}, ["costs.fees", "Did you mean"]),
    ({"policy": POLICY, "costs": {"fee": {"bps": -1}}}, ["bps", "-1"]),
    ({"policy": POLICY, "costs": {"lot_size": [1, 2]}}, ["lot_size lists 2 numbers for 1"]),
    ({"policy": POLICY, "initial_equity": 0}, ["initial_equity", "greater than 0"]),
    ({"policy": POLICY, "environment": {"window": 8}}, ["environment.window", "trained with"]),
    ({"policy": POLICY, "environment": {"reward": []}}, ["environment.reward", "training alone"]),
    (
        {"policy": POLICY, "environment": {"costs": {}}},
        ["environment.costs", "of the request itself"],
    ),
    (
        {"policy": POLICY, "environment": {"leverage": 2}},
        ["leverage", "Did you mean 'max_leverage'"],
    ),
    ({"policy": POLICY, "polcy": 1}, ["unknown key 'polcy'", "Did you mean 'policy'"]),
    ({"baseline": {"kind": "sma_cros"}, "series": [ALPHA]}, ["baseline", "sma_cros"]),
    ({"baseline": {"kind": "flat"}}, ["baseline has no series"]),
    (
        {"baseline": {"kind": "plugin", "name": "mine"}, "series": [ALPHA]},
        ["'baseline'", "no strategy 'mine'", "install its distribution"],
    ),
    ({"baseline": {"kind": "flat"}, "series": [ALPHA], "version": "1"}, ["version is of a policy"]),
    (
        {
            "baseline": {"kind": "flat"},
            "series": [ALPHA, BETA],
            "environment": {"actions": {"kind": "brackets"}},
        },
        ["kind brackets trade one"],
    ),
]


@pytest.mark.parametrize(("content", "words"), WRONG, ids=str)
def test_a_wrong_request_is_a_sentence_and_touches_nothing(
    project: Deployment, content: dict[str, Any], words: list[str]
) -> None:
    before = tree(project.places.store)
    with pytest.raises((SettingsError, StorageError)) as refused:
        ask(project, **{**FIRST_TEST, **content})
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert tree(project.places.store) == before


def test_what_is_missing_or_stale_is_named_with_what_to_materialize(imported: Deployment) -> None:
    store = imported.places.store
    asked = {**HOLD, "features": "tiny", **FIRST_TEST}
    ask(imported, **asked)
    location = layout.features(store, "tiny", ALPHA)
    table = read_frame(location)
    day = pl.col("ts").dt.date()

    later = pl.when(day == date(2022, 1, 5)).then(0.5).otherwise("return_1").cast(pl.Float32)
    write_frame(location, table.with_columns(return_1=later))
    ask(imported, **asked)  # after the range: it does not matter
    inside = pl.when(day == date(2021, 5, 5)).then(0.5).otherwise("return_1").cast(pl.Float32)
    write_frame(location, table.with_columns(return_1=inside))
    with pytest.raises(
        StorageError, match=r"from 2021-05-05 00:00 on\); materialize features/tiny of"
    ):
        ask(imported, **asked)
    write_frame(location, table.filter(day < date(2021, 6, 1)))
    with pytest.raises(
        StorageError, match=r"from 2021-06-01 00:00 on\); materialize features/tiny"
    ):
        ask(imported, **asked)
    location.path.unlink()
    with pytest.raises(StorageError, match=f"features/tiny of {ALPHA} are not materialized"):
        ask(imported, **asked)

    manifest = layout.manifest(store, ALPHA)
    document = read_json(manifest)
    write_json(manifest, {**document, "partition_hashes": {"2020": "0" * 64}})
    with pytest.raises(StorageError, match=r"describes other bars.*materialize manifest"):
        ask(imported, **HOLD, **FIRST_TEST)
    write_json(manifest, {**document, "slices": []})
    with pytest.raises(SettingsError, match="its manifest has none"):
        ask(imported, **HOLD, **FIRST_TEST)
    manifest.path.unlink()
    with pytest.raises(StorageError, match=f"{ALPHA}: no manifest .* materialize manifest"):
        ask(imported, **HOLD, **FIRST_TEST)


def test_other_bars_than_the_policy_was_trained_on_are_refused(trained: Deployment) -> None:
    entries = [
        series_entry(ALPHA, "alpha.csv", 2020),
        series_entry(BETA, "beta.csv", 2021),
        {**series_entry("made.GAMMA.1h", "gamma.csv", 2021), "timeframe": "1h"},
    ]
    write_yaml(trained.places.configs / "series.yaml", {"series": entries})
    with pytest.raises(SettingsError, match=r"GAMMA\.1h has bars of 1h.*trained on bars of 1d"):
        ask(trained, policy=POLICY, series=["made.GAMMA.1h"], **FIRST_TEST)
    with pytest.raises(SettingsError, match="mixes timeframes 1d, 1h"):
        ask(trained, policy="pair/policy/base.f0.s0", series=[ALPHA, "made.GAMMA.1h"], **FIRST_TEST)


def test_features_that_are_computed_otherwise_now_are_refused(trained: Deployment) -> None:
    store, file = trained.places.store, trained.places.configs / "features" / "tiny.yaml"
    returns, average = FEATURES["indicators"]
    write_yaml(file, {"indicators": [average, returns]})
    with pytest.raises(SettingsError, match=r"has columns sma_ratio_10, .* trained on return_1, "):
        ask(trained, policy=POLICY, **FIRST_TEST)
    write_yaml(file, FEATURES)
    ask(trained, policy=POLICY, **FIRST_TEST)

    # Columns of the same name that an indicator of another setting gave.
    location = bundles.current(ArtifactLocation(store, POLICY))
    known = read_json(location.child("provenance.json"))
    known["recipe"]["feature_set"]["indicators"][0]["params"]["kind"] = "ratio"
    write_json(location.child("provenance.json"), known)
    bundles.seal(location, DETERMINISTIC)
    with pytest.raises(SettingsError, match=r"computes them otherwise: it was .*'ratio'.*, is "):
        ask(trained, policy=POLICY, **FIRST_TEST)
