"""Promotion over a store: constant policies in a rising market, so that the better one is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from trade_pipeline.backtest.promotion import promote
from trade_pipeline.backtest.promotion_record import finals, pinned, promoted
from trade_pipeline.cli import app
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleError
from trade_pipeline.storage.documents import read_json
from trade_pipeline.training.dataset import Dataset, build_dataset, write_dataset
from trade_pipeline.training.networks import PolicyNetwork
from trade_pipeline.training.policy import DETERMINISTIC, Normalizer, write_policy
from trade_pipeline.training.trainer import policy_specification
from trade_pipeline_tests.training import synthetic

NAME, KEYS = "demo", ("demo.A.1h",)
SETTINGS: dict[str, Any] = {
    "environment": {"window": 4, "actions": {"kind": "weights", "short": True}},
    "final_from": "2021-01-21",
    "promotion": {"metric": "total_return", "beat": ["flat"]},
    "baselines": [{"kind": "flat"}, {"kind": "buy_and_hold"}],
    "variants": {"base": {}, "other": {}},
    "seeds": [0, 1, 2],
}
LOW, HIGH, TOP = [0.1, 0.3, 0.9], [0.2, 0.5, 0.6], [0.9, 1.0, 0.8]  # medians 0.3, 0.5, 0.9


class Market:
    """A store with a dataset whose prices rise on every row but for noise."""

    def __init__(self, store: Path, **changes: Any) -> None:
        self.store = store
        self.settings = {**SETTINGS, **changes}
        self.assemble()

    def assemble(self) -> None:
        walk = build_dataset(
            synthetic.inputs(KEYS, (400, 60, 50, 60)),
            self.experiment,
            synthetic.FEATURES,  # type: ignore[arg-type]
            {},
            NAME,
        )
        rise = np.exp(0.002 * np.arange(len(walk.ts)))[:, None]
        prices = {name: getattr(walk, name) * rise for name in ("open", "high", "low", "close")}
        self.publish(replace(walk, **prices))

    @property
    def experiment(self) -> ExperimentSettings:
        plain = synthetic.experiment(KEYS).model_dump(mode="json", by_alias=True)
        return ExperimentSettings.model_validate({**plain, **self.settings})

    def publish(self, dataset: Dataset) -> None:
        staging = bundles.staging(self.store, "dataset")
        home = layout.experiment_bundle(self.store, NAME, "dataset")
        version = bundles.commit(write_dataset(dataset, staging), home).path.name
        self.dataset = replace(dataset, version=version)

    def train(self, *weights: list[float]) -> None:
        """Give each variant's seeds policies that always hold a weight of their equity."""
        trials = list(self.experiment.trials().values())
        values = [one for variant in weights for one in variant]
        for trial, weight in zip(trials, values, strict=True):
            self.put(trial.key, weight)

    def put(self, trial: str, weight: float) -> None:
        dataset, experiment = self.dataset, self.experiment
        environment, algorithm = experiment.variant("base")
        made_by = experiment.trials()[trial]
        spec = policy_specification(dataset, environment, algorithm, made_by)
        made = PolicyNetwork(spec["network"]).state_dict()
        arrays = {name: np.zeros(weight.shape, np.float32) for name, weight in made.items()}
        arrays["action.bias"][:] = weight
        normalizer = Normalizer.fit(dataset.features, dataset.folds[0].train, "standard")
        staging = bundles.staging(self.store, "policy")
        write_policy(staging, arrays, {}, normalizer, spec)
        home = layout.experiment_bundle(self.store, NAME, "policy", trial)
        bundles.commit(bundles.seal(staging, DETERMINISTIC), home)

    def promote(self) -> tuple[str | None, str]:
        """Materialize; the trial that is promoted then, and what was said."""
        done = promote(self.store, NAME, self.experiment)
        if done.reference is not None:
            bundles.commit(done.reference, self.home)
        now = promoted(self.store, NAME)
        assert done.final_evaluations == len(finals(self.home))
        return None if now is None else now.trial, done.reason

    @property
    def home(self) -> Any:
        return layout.experiment_bundle(self.store, NAME, "promoted")

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(bundles.current(self.home).child("promotion.json"))
        return found


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path)


def test_the_median_seed_of_the_better_variant_is_promoted(market: Market) -> None:
    market.train(LOW, HIGH)
    trial, said = market.promote()
    assert trial == "other.f0.s1"
    assert "other.f0.s1 is promoted." in said
    record = market.record()
    assert set(record["validation"]["trials"]) == set(market.experiment.trials())
    assert set(record["validation"]["variants"]["base"]["baselines"]) == {"flat", "buy_and_hold"}
    policy = layout.experiment_bundle(market.store, NAME, "policy", "other.f0.s1")
    assert record["policy"]["version"] == bundles.current_version(policy)


def after(dataset: Dataset, first: int) -> Dataset:
    """The dataset with prices that fall from row `first` on, and with other features there."""
    rows = np.maximum(np.arange(len(dataset.ts)) - first, 0)
    fall = np.exp(-0.02 * rows)[:, None]
    prices = {name: getattr(dataset, name) * fall for name in ("open", "high", "low", "close")}
    features = np.array(dataset.features)
    features[first:] = -5 * features[first:] + 1
    return replace(dataset, features=features, **prices)


def test_bars_and_features_of_test_and_final_rows_do_not_enter_the_choice(market: Market) -> None:
    market.train(LOW, HIGH)
    market.promote()
    before = market.record()
    fold = market.dataset.folds[0]
    assert fold.validation[-1, 1] <= fold.test[0, 0] < market.dataset.final[0, 0]

    falling = Market(market.store.with_name("falling"))
    falling.publish(after(falling.dataset, int(fold.test[0, 0])))
    falling.train(LOW, HIGH)
    assert falling.promote()[0] == "other.f0.s1"
    record = falling.record()
    for one in (before, record):  # a policy's version names its dataset
        for trial in one["validation"]["trials"].values():
            del trial["policy"]
    assert record["validation"] == before["validation"]
    finals_of = [
        dict(read_json(bundles.current(one.home).child("final", "beside_baselines.json")))
        for one in (market, falling)
    ]
    assert finals_of[0]["other.f0.s1"]["total_return"] > 0
    assert finals_of[1]["other.f0.s1"]["total_return"] < 0


def test_validation_rows_do_enter_the_choice(market: Market) -> None:
    validation = market.dataset.folds[0].validation
    market.publish(after(market.dataset, int(validation[0, 0])))
    market.train(LOW, HIGH)
    trial, said = market.promote()
    assert trial is None
    assert "nothing is promoted" in said
    assert "it does not beat flat (total_return -" in said
    assert not list(market.home.path.glob("*")), "nothing may be written"


def test_a_better_incumbent_stays_and_a_worse_one_goes(market: Market) -> None:
    market.train(LOW, [0.7, 0.8, 0.6])
    assert market.promote()[0] == "other.f0.s0"
    pointer = bundles.current_version(market.home)
    market.train(LOW, HIGH)  # nothing as good as what is promoted
    trial, said = market.promote()
    assert trial == "other.f0.s0"
    assert "it does not beat the promoted other.f0.s0" in said
    assert bundles.current_version(market.home) == pointer
    market.train(LOW, TOP)
    assert market.promote()[0] == "other.f0.s0"
    assert bundles.current_version(market.home) != pointer
    assert market.record()["validation"]["incumbent"]["trial"] == "other.f0.s0"


def test_the_final_period_is_run_once_a_policy_and_shown_with_the_baselines(
    market: Market,
) -> None:
    market.train(LOW, HIGH)
    market.promote()
    location = bundles.current(market.home)
    bundles.verify(location.child("final"))  # a backtest bundle of its own
    shown = read_json(location.child("final", "beside_baselines.json"))
    assert [name for name, _ in shown] == ["other.f0.s1", "flat", "buy_and_hold"]
    trial, said = market.promote()
    assert trial == "other.f0.s1"
    assert "it is the promoted policy already" in said
    assert bundles.current(market.home) == location
    assert len(finals(market.home)) == 1


def test_a_policy_promoted_again_keeps_what_the_final_period_showed(market: Market) -> None:
    market.train(LOW, HIGH)
    market.promote()
    first = bundles.current(market.home)
    # A mark that no second run could give.
    (first.path / "final" / "report.html").write_text("shown once", encoding="utf-8")
    index = read_json(first.child("bundle.json"))
    members = [one["name"] for one in index["members"] if one["deterministic"]]
    marked = bundles.seal(first, members)
    first.path.rename(first.path.with_name(marked.version))
    (market.home.path / "current.json").write_text(f'{{"version": "{marked.version}"}}')

    market.train(LOW, TOP)
    assert market.promote()[0] == "other.f0.s0"
    version = market.record()["policy"]["version"]
    market.train(LOW, HIGH)
    home = layout.experiment_bundle(market.store, NAME, "policy", "other.f0.s0")
    bundles.prune(home, 0)
    assert version not in {path.name for path in home.path.iterdir()}
    trial, said = market.promote()
    assert trial == "other.f0.s1"
    assert "The promoted other.f0.s0 cannot be compared" in said
    report = bundles.current(market.home).child("final", "report.html")
    assert report.path.read_text(encoding="utf-8") == "shown once"
    assert len(finals(market.home)) == 2
    assert market.record()["final_evaluations"] == 2


def test_without_a_final_period_a_policy_is_promoted_without_a_report(tmp_path: Path) -> None:
    market = Market(tmp_path, final_from=None)
    market.train(LOW, HIGH)
    assert market.promote()[0] == "other.f0.s1"
    assert not bundles.current(market.home).child("final").path.exists()
    assert finals(market.home) == {}


def test_an_incumbent_of_other_instruments_is_said_to_be_incomparable(market: Market) -> None:
    market.train(LOW, TOP)
    market.promote()
    market.publish(replace(market.dataset, instruments=("demo.B.1h",)))
    market.train(LOW, HIGH)
    trial, said = market.promote()
    assert trial == "other.f0.s1"
    assert "cannot be compared: it trades demo.A.1h, the dataset has demo.B.1h" in said


def test_an_incumbent_that_has_seen_the_validation_part_is_said_to_be_favoured(
    market: Market,
) -> None:
    market.train(LOW, TOP)
    market.promote()
    market.settings["splits"] = {"kind": "fraction", "train": 0.3, "validation": 0.2, "test": 0.5}
    market.assemble()
    market.train(LOW, HIGH)
    trial, said = market.promote()
    assert trial == "other.f0.s0"
    assert "other.f0.s0 was trained on rows of this validation part" in said


def test_all_folds_order_the_seeds_but_a_policy_of_the_last_is_promoted(tmp_path: Path) -> None:
    splits = {
        "kind": "walk_forward",
        "folds": 2,
        "train_days": 6,
        "validation_days": 3,
        "test_days": 4,
    }
    market = Market(tmp_path, splits=splits, seeds=[0, 1, 2], variants={"base": {}})
    market.train([0.9, 0.1, 0.5, 0.5, 0.4, 0.1])
    assert market.promote()[0] == "base.f1.s1"
    market = Market(
        tmp_path / "all",
        splits=splits,
        seeds=[0, 1, 2],
        variants={"base": {}},
        promotion={**SETTINGS["promotion"], "fold": "all"},
    )
    market.train([0.9, 0.1, 0.5, 0.5, 0.4, 0.1])
    assert market.promote()[0] == "base.f1.s2"


def test_pruning_leaves_promotions_and_the_policies_they_point_to(market: Market) -> None:
    for weights in (HIGH, TOP, LOW):
        market.train(LOW, weights)
        market.promote()
    promotions = {path.parent.name for path in market.home.path.glob("*/promotion.json")}
    assert len(promotions) == 2
    held = {
        trial: pinned(layout.experiment_bundle(market.store, NAME, "policy", trial))
        for trial in market.experiment.trials()
    }
    assert [trial for trial, versions in held.items() if versions] == ["other.f0.s0", "other.f0.s1"]
    for key in ("demo/promoted", *(f"demo/policy/{trial}" for trial in held)):
        words = ["bundle", "prune", key, "--keep", "1", "--store", str(market.store)]
        assert CliRunner().invoke(app, words).exit_code == 0
    for home, kept in (
        (market.home, promotions),
        *((layout.experiment_bundle(market.store, NAME, "policy", one), held[one]) for one in held),
    ):
        left = {path.name for path in home.path.iterdir() if path.is_dir()}
        assert left == kept | {bundles.current_version(home)}


def test_a_missing_policy_is_named(market: Market) -> None:
    with pytest.raises(BundleError, match=r"demo/policy/base\.f0\.s0"):
        market.promote()
