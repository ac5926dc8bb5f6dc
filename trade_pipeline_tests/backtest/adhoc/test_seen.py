"""What a policy has seen of a range is said before any figure; a final period is not shown."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline.backtest.adhoc.run import write
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import load_dataset
from trade_pipeline.training.importing import import_policy
from trade_pipeline.training.policy import DETERMINISTIC
from trade_pipeline_tests.backtest.adhoc.asking import FIRST_TEST, POLICY, ask, dates
from trade_pipeline_tests.deployment import Deployment, built_once, copied
from trade_pipeline_tests.small_project import (
    ALPHA,
    BETA,
    EXPERIMENT,
    materialize,
    write_yaml,
)


def test_training_days_in_the_range_are_said_first(project: Deployment, tmp_path: Path) -> None:
    done = ask(project, policy=POLICY, start="2021-01-01", end="2021-05-01")
    # 400 days of training from 2020-01-01, the last 9 rows left out as embargo; 80 of validation.
    assert done.seen.training == (("2021-01-01", "2021-01-25"),)
    assert done.seen.validation == (("2021-02-04", "2021-04-15"),)
    assert done.seen.days == 120
    training, validation = done.notes
    assert "IN-SAMPLE: 25 of the 120 days" in training
    assert "2021-01-01 to 2021-01-25" in training
    assert "71 of the 120 days" in validation
    assert done.title.startswith("IN-SAMPLE: base.f0.s0 on made.ALPHA.1d")

    staging = bundles.staging(tmp_path / "store", "adhoc")
    written = write(done, staging)
    text = staging.child("report.html").path.read_text(encoding="utf-8")
    assert "<title>IN-SAMPLE" in text
    assert training in text
    assert read_json(staging.child("adhoc.json"))["notes"] == list(done.notes)
    assert written.headline["total_return"] is not None
    assert written.picture.startswith(b"\x89PNG")


def test_days_of_training_on_another_series_are_said_to_be_that(project: Deployment) -> None:
    done = ask(project, policy=POLICY, series=[BETA], start="2021-03-20", end="2021-09-01")
    assert not done.seen.training  # its training ended before
    assert done.title.startswith("VALIDATION ROWS: base.f0.s0 on made.BETA.1d")
    done = ask(
        project,
        policy="alone/policy/base.f1.s0",
        series=[BETA],
        start="2021-03-20",
        end="2021-06-01",
    )
    (seen, other) = done.notes
    assert seen.startswith("IN-SAMPLE")
    assert f"base.f1.s0 was trained on {ALPHA}, but trades {BETA} here" in other


def test_series_in_another_order_are_said_to_stand_in_anothers_place(project: Deployment) -> None:
    policy = "pair/policy/base.f0.s0"
    store = project.places.store
    dataset = load_dataset(bundles.current(layout.experiment_bundle(store, "pair", "dataset")))
    asked = {"policy": policy, **dates(dataset, dataset.folds[0].test)}
    usual, swapped = (ask(project, **asked, series=keys) for keys in ([ALPHA, BETA], [BETA, ALPHA]))
    assert usual.notes == ()
    assert not np.array_equal(usual.result.equity, swapped.result.equity)
    (note,) = swapped.notes
    assert note.startswith(
        f"base.f0.s0 was trained on {ALPHA}, {BETA}, in that order, but trades {BETA}, {ALPHA} here"
    )


def test_a_policy_from_elsewhere_is_run_and_doubted(trained: Deployment) -> None:
    store = trained.places.store
    usual = ask(trained, policy=POLICY, **FIRST_TEST)
    source = bundles.current(ArtifactLocation(store, POLICY))
    import_policy(source.path, ArtifactLocation(store, "imported/mine"))
    for path in (store / "alone" / "dataset").glob("*/dataset.json"):
        path.unlink()
    done = ask(trained, policy="imported/mine", **FIRST_TEST)
    np.testing.assert_array_equal(done.result.equity, usual.result.equity)
    (note,) = done.notes
    assert note.startswith("PERHAPS IN-SAMPLE: 120 of the 120 days")
    assert "2020-01-01 to 2022-09-01" in note
    assert ask(trained, policy="imported/mine", start="2022-09-01", end="2022-09-20").notes == ()


def test_a_policy_that_tells_nothing_of_its_origin_is_doubted_most(
    project: Deployment, tmp_path: Path
) -> None:
    usual = ask(project, policy=POLICY, **FIRST_TEST)
    root = tmp_path / "project"
    with copied(project.root, root) as deployment:
        store = deployment.places.store
        silent = ArtifactLocation(tmp_path, "silent")
        shutil.copytree(bundles.current(ArtifactLocation(store, POLICY)).path, silent.path)
        (silent.path / "provenance.json").unlink()
        (silent.path / "bundle.json").unlink()
        bundles.seal(silent, DETERMINISTIC)
        import_policy(silent.path, ArtifactLocation(store, "imported/silent"))
        # Its feature set is the only one with its columns.
        done = ask(deployment, policy="imported/silent", **FIRST_TEST)
        np.testing.assert_array_equal(done.result.equity, usual.result.equity)
        assert done.notes[0].startswith("PERHAPS IN-SAMPLE: the policy does not record which rows")
        assert done.title.startswith("PERHAPS IN-SAMPLE: silent on")
        other = {"indicators": [{"name": "returns", "params": {"horizons": [1]}}]}
        write_yaml(deployment.places.configs / "features" / "tiny.yaml", other)
        with pytest.raises(SettingsError, match=r"0 sets have its columns \(return_1, return_5"):
            ask(deployment, policy="imported/silent", **FIRST_TEST)


@pytest.fixture(scope="module")
def with_regimes_and_final(
    templates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An experiment with regimes and a final period, one trial of it trained and backtested."""
    root = tmp_path_factory.mktemp("final") / "project"
    with copied(built_once(templates, "imported"), root) as deployment:
        regimes = {"inputs": ["return_5", "sma_ratio_10"], "states": 2, "restarts": 2}
        content = {
            **EXPERIMENT,
            "seeds": [0],
            "from": "2020-02-01",
            "final_from": "2022-06-01",
            "regimes": {**regimes, "as_features": True},
        }
        write_yaml(deployment.places.configs / "experiments" / "alone.yaml", content)
        for select, first in (
            (["alone/dataset"], None),
            (["alone/regime_model"], "f1"),
            (["alone/policy", "alone/backtest"], "base.f1.s0"),
        ):
            done = materialize(deployment.places, deployment.instance, *select, first=first)
            assert done.success
        yield deployment


def test_regimes_of_a_policy_are_those_of_its_backtest(with_regimes_and_final: Deployment) -> None:
    store, policy = with_regimes_and_final.places.store, "alone/policy/base.f1.s0"
    dataset = load_dataset(bundles.current(layout.experiment_bundle(store, "alone", "dataset")))
    asked = dates(dataset, dataset.folds[1].test)
    done = ask(with_regimes_and_final, policy=policy, **asked)
    home = bundles.current(layout.experiment_bundle(store, "alone", "backtest", "base.f1.s0"))
    assert_frame_equal(done.result.equity_frame(), read_frame(home.child("equity.parquet")))
    assert done.dataset.regime_labels is not None
    assert set(done.dataset.regime_labels.tolist()) == {0, 1}


def test_the_final_period_is_for_what_was_promoted_or_asked_for_in_words(
    with_regimes_and_final: Deployment,
) -> None:
    deployment, policy = with_regimes_and_final, "alone/policy/base.f1.s0"
    asked: dict[str, Any] = {"policy": policy, "start": "2022-05-01"}
    with pytest.raises(SettingsError) as refused:
        ask(deployment, **asked, end="2022-06-02")
    said = str(refused.value)
    assert "the final period of alone (2022-06-01 to 2022-09-01)" in said
    assert "End it at 2022-06-01, or set include_final: true" in said
    assert ask(deployment, **asked, end="2022-06-01").notes == ()

    looked = ask(deployment, **asked, end="2022-06-20", include_final=True)
    assert "is not promoted: include_final asked for this look" in looked.notes[0]
    # Beyond `to` nothing was held back.
    assert ask(deployment, policy=policy, start="2022-09-01", end="2022-09-20").notes == ()
    with pytest.raises(SettingsError, match="alone has no promoted policy; materialize alone/prom"):
        ask(deployment, policy="alone/promoted", start="2022-05-01", end="2022-06-01")

    store = deployment.places.store
    location = bundles.current(ArtifactLocation(store, policy))
    home = layout.experiment_bundle(store, "alone", "promoted")
    staging = bundles.staging(store, "promoted")
    record = {
        "key": policy,
        "version": location.path.name,
        "trial": "base.f1.s0",
        "variant": "base",
        "fold": 1,
        "seed": 0,
        "trained_until": "",
    }
    write_json(staging.child("promotion.json"), {"policy": record})
    bundles.commit(bundles.seal(staging, ["promotion.json"]), home)
    promoted = ask(deployment, policy="alone/promoted", start="2022-05-01", end="2022-06-20")
    assert "the policy was promoted" in promoted.notes[0]
    assert promoted.request.key == looked.request.key
    np.testing.assert_array_equal(promoted.result.equity, looked.result.equity)
