import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from trade_pipeline.settings.environment import BracketActions
from trade_pipeline.simulator.actions import BracketMapping, mapping_for
from trade_pipeline.simulator.env import TradingEnv
from trade_pipeline.simulator.kernel import Account, Rules
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training import policy
from trade_pipeline.training.policy import (
    DETERMINISTIC,
    AccountStatistics,
    Normalizer,
    PolicyError,
    PolicyRunner,
    write_policy,
)
from trade_pipeline.training.validation import evaluate
from trade_pipeline_tests.training import synthetic, untrained
from trade_pipeline_tests.training.untrained import PLAIN, SPECIFICATIONS, Weights, write

DISCRETE, RECURRENT, CONTINUOUS = (SPECIFICATIONS[kind] for kind in ("mlp", "lstm", "box"))


def runner_of(
    spec: dict[str, Any], normalizer: Normalizer = PLAIN, changes: Weights | None = None
) -> PolicyRunner:
    weights = untrained.weights_of(untrained.network(spec))
    return PolicyRunner(spec, normalizer, weights | (changes or {}))


def observation(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "window": rng.normal(size=(4, 2)).astype(np.float32),
        "account": rng.normal(size=6).astype(np.float32),
    }


def test_statistics_come_from_training_rows_alone() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (100, 2, 3)).astype(np.float32)
    train = np.array([[10, 30], [50, 60]])
    fitted = Normalizer.fit(features, train, "standard")
    changed = features.copy()
    changed[:10] = changed[30:50] = changed[60:] = 1e6
    again = Normalizer.fit(changed, train, "standard")
    np.testing.assert_array_equal(again.mean, fitted.mean)
    np.testing.assert_array_equal(again.std, fitted.std)
    rows = np.r_[10:30, 50:60]
    scaled = fitted.transform(features).reshape(100, 2, 3)[rows].astype(np.float64)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-6)


def test_a_constant_feature_is_centred_and_not_blown_up() -> None:
    features = np.full((50, 1, 1), 0.3, np.float32)
    fitted = Normalizer.fit(features, np.array([[0, 50]]), "standard")
    assert fitted.std.item() == 1.0
    assert np.abs(fitted.transform(features)).max() < 1e-6


def test_scaling_none_changes_nothing_and_statistics_survive_json() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(20, 1, 2)).astype(np.float32)
    plain = Normalizer.fit(features, np.array([[0, 20]]), "none")
    np.testing.assert_array_equal(plain.transform(features), features.reshape(20, 2))
    fitted = Normalizer.fit(features, np.array([[0, 20]]), "standard")
    account = AccountStatistics(rng.normal(size=6), rng.random(6), 1e-8, 10.0)
    fitted = Normalizer(fitted.mean, fitted.std, account)
    read = Normalizer.parse(json.loads(json.dumps(fitted.document())))
    np.testing.assert_array_equal(read.transform(features), fitted.transform(features))
    assert read.account is not None
    assert read.account.mean.tolist() == account.mean.tolist()
    assert read.account.var.tolist() == account.var.tolist()
    assert (read.account.epsilon, read.account.clip) == (1e-8, 10.0)


def test_the_scaled_past_does_not_depend_on_later_rows() -> None:
    features = np.random.default_rng(2).normal(size=(40, 1, 2)).astype(np.float32)
    fitted = Normalizer.fit(features, np.array([[0, 20]]), "standard")
    np.testing.assert_array_equal(fitted.transform(features)[:25], fitted.transform(features[:25]))


@pytest.mark.parametrize("kind", sorted(SPECIFICATIONS))
def test_a_loaded_policy_acts_as_the_one_that_was_written(tmp_path: Path, kind: str) -> None:
    folder, spec = ArtifactLocation(tmp_path, "policy"), SPECIFICATIONS[kind]
    write(folder, spec)
    written, loaded = runner_of(spec), PolicyRunner.load(folder)
    network, states = untrained.network(spec), None
    for seed in range(5):
        seen = observation(seed)
        window, account = (torch.from_numpy(seen[name][None]) for name in ("window", "account"))
        with torch.no_grad():
            wanted, states = network(window.flatten(1), account, states)
        outputs = loaded.outputs(seen)
        assert outputs.tobytes() == written.outputs(seen).tobytes()
        np.testing.assert_allclose(outputs, wanted[0].numpy(), atol=1e-6)
        assert loaded.act(seen).tobytes() == written.act(seen).tobytes()
        states = None  # `act` saw the observation, too
        loaded.reset()
        written.reset()


def test_the_same_policy_is_written_with_the_same_bytes(tmp_path: Path) -> None:
    first, again = ArtifactLocation(tmp_path, "first"), ArtifactLocation(tmp_path, "again")
    weights = untrained.weights_of(untrained.network(DISCRETE))
    write_policy(first, weights, weights, PLAIN, DISCRETE)
    backwards = dict(reversed(weights.items()))
    strided = {name: np.asfortranarray(array) for name, array in backwards.items()}
    write_policy(again, strided, strided, PLAIN, dict(reversed(DISCRETE.items())))
    for name in DETERMINISTIC:
        assert (first.path / name).read_bytes() == (again.path / name).read_bytes()


def test_the_action_is_the_most_likely_choice_of_each_part() -> None:
    runner = runner_of(DISCRETE)
    outputs = runner.outputs(observation(0))
    action = runner.act(observation(0))
    assert action.dtype == np.int64
    assert action.tolist() == [
        int(outputs[a:b].argmax()) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10))
    ]


def test_weights_are_clipped_to_the_box() -> None:
    runner = runner_of(CONTINUOUS)
    means = [runner.outputs(observation(seed)).item() for seed in range(20)]
    actions = [runner.act(observation(seed)) for seed in range(20)]
    assert min(means) < 0
    assert all(action.dtype == np.float32 for action in actions)
    assert [a.item() for a in actions] == [min(max(mean, 0.0), 1.0) for mean in means]


def test_what_was_returned_does_not_change_with_the_next_observation() -> None:
    runner = runner_of(CONTINUOUS)
    outputs, action = runner.outputs(observation(0)), runner.act(observation(0))
    kept = outputs.copy(), action.copy()
    runner.act(observation(1))
    np.testing.assert_array_equal((outputs, action), kept)


def test_a_memory_takes_in_each_observation_until_it_is_reset() -> None:
    runner = runner_of(RECURRENT)
    first = runner.outputs(observation(0))
    second = runner.outputs(observation(0))
    assert first.tobytes() != second.tobytes()
    runner.reset()
    assert runner.outputs(observation(0)).tobytes() == first.tobytes()
    assert runner.outputs(observation(0)).tobytes() == second.tobytes()


def test_an_observation_of_another_shape_is_refused() -> None:
    runner, seen = runner_of(DISCRETE), observation(0)
    with pytest.raises(PolicyError, match=r"window has shape \[3, 2\]; the policy sees \[4, 2\]"):
        runner.act({**seen, "window": seen["window"][1:]})
    with pytest.raises(PolicyError, match=r"account has shape \[1\]; the policy sees \[6\]"):
        runner.act({**seen, "account": seen["account"][:1]})


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_numbers_that_are_not_finite_are_no_action(activation: str) -> None:
    network = {**untrained.NETWORKS["mlp"], "activation": activation}
    runner = runner_of(untrained.specification(untrained.NVEC, 10, network))
    seen = observation(0)
    seen["window"][0, 0] = np.nan
    with pytest.raises(PolicyError, match="numbers that are not finite"):
        runner.act(seen)


def test_an_evaluation_that_does_not_fit_the_policy_is_refused() -> None:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment
    runner = untrained.policy(dataset, environment)
    features, market = runner.features(dataset), dataset.market
    rules = Rules.of(environment, 1)
    mapping = mapping_for(environment, 1)
    fewer = BracketMapping(BracketActions(kind="brackets", sizes=(1.0,)))

    def trade(
        rows: tuple[int, int] = (3, 20), some: Any = features, into: Any = mapping
    ) -> np.ndarray:
        traded = runner.trade(Account.start(1, 1, 1000.0), market, some, rows, rules, into)
        return traded.equity

    assert len(trade()) == 17
    assert len(trade((3, 3))) == 0
    for rows in ((2, 20), (20, 19), (3, market.rows)):
        with pytest.raises(PolicyError, match=f"rows {rows[0]} to {rows[1]} .* window of 4"):
            trade(rows)
    with pytest.raises(PolicyError, match="features have shape"):
        trade(some=features[:-1])
    with pytest.raises(PolicyError, match="actions or number of instruments"):
        trade(into=fewer)


def test_an_evaluation_in_pieces_gives_the_bits_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment
    segments = dataset.folds[0].test
    runner = untrained.policy(dataset, environment, kind="lstm")
    seen = (runner, dataset.market, runner.features(dataset), segments, environment)
    whole = evaluate(*seen).equity
    monkeypatch.setattr(policy, "ROWS_AT_A_TIME", 7)
    assert evaluate(*seen).equity.tobytes() == whole.tobytes()


def test_the_account_is_normalized_as_vec_normalize_does() -> None:
    rng = np.random.default_rng(4)
    statistics = AccountStatistics(rng.normal(size=6), rng.random(6) * 0.01, 1e-8, 1.5)
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment

    def make() -> TradingEnv:
        return TradingEnv(
            dataset.market, dataset.features[:, 0], dataset.folds[0].train, environment
        )

    theirs = VecNormalize(DummyVecEnv([make]), norm_obs_keys=["account"], clip_obs=1.5)
    theirs.obs_rms["account"].mean = statistics.mean
    theirs.obs_rms["account"].var = statistics.var
    clipped = 0
    for seed in range(10):
        seen = observation(seed)
        normalized = theirs.normalize_obs({name: array[None] for name, array in seen.items()})
        ready = {name: array[0] for name, array in normalized.items()}
        clipped += int((np.abs(ready["account"]) == 1.5).sum())
        ours = runner_of(DISCRETE, Normalizer(PLAIN.mean, PLAIN.std, statistics))
        assert ours.outputs(seen).tobytes() == runner_of(DISCRETE).outputs(ready).tobytes()
    assert 0 < clipped < 60


def test_acting_needs_no_torch() -> None:
    code = "import sys, trade_pipeline.training.policy; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dataset_with_other_features_is_refused() -> None:
    with pytest.raises(PolicyError, match="of 2; use a dataset"):
        runner_of(DISCRETE).features(synthetic.dataset(("demo.A.1h", "demo.B.1h")))
