"""What every algorithm promises: the same bytes again, and a policy that acts as it learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.action_spaces import environment_actions
from trade_pipeline.training.learning import Learning, Log
from trade_pipeline.training.policy import Normalizer, PolicyRunner
from trade_pipeline.training.trainer import policy_specification
from trade_pipeline_tests.training import synthetic
from trade_pipeline_tests.training.algorithms import (
    CASES,
    NAMES,
    experiment,
    train_one,
)


@pytest.mark.parametrize(("name", "keys", "more"), CASES, ids=NAMES)
def test_the_same_seed_gives_the_same_bundle_and_another_seed_another(
    tmp_path: Path, name: str, keys: tuple[str, ...], more: dict[str, Any]
) -> None:
    first = train_one(ArtifactLocation(tmp_path, "first"), name, keys, **more)
    torch.rand(3)  # what ran before must not matter
    np.random.random()
    again = train_one(ArtifactLocation(tmp_path, "again"), name, keys, **more)
    other = train_one(ArtifactLocation(tmp_path, "other"), name, keys, seed=0, **more)
    assert first.reference.version == again.reference.version
    changed, weights = (
        load_file(one.reference.location.path / "policy.safetensors") for one in (other, first)
    )
    assert not all(np.array_equal(changed[name], weights[name]) for name in weights)
    spec = read_json(first.reference.location.child("spec.json"))
    assert (spec["seed"], spec["threads"]) == (1, 1)


@pytest.mark.parametrize(("name", "keys", "more"), CASES, ids=NAMES)
def test_the_stored_policy_acts_as_the_trained_one(
    tmp_path: Path, name: str, keys: tuple[str, ...], more: dict[str, Any]
) -> None:
    learning, spec = begin(tmp_path, name, keys, **more)
    learning.run(None, 60.0, None)
    kept = learning.kept
    assert kept is not None
    trained = PolicyRunner(
        spec,
        Normalizer(learning._normalizer.mean, learning._normalizer.std, kept.account),
        kept.weights,
    )
    made = train_one(ArtifactLocation(tmp_path, "policy"), name, keys, **more)
    loaded = PolicyRunner.load(made.reference.location)
    rng = np.random.default_rng(0)
    for _ in range(300):
        seen = {
            "window": rng.normal(size=(4, 2 * len(keys))).astype(np.float32),
            "account": rng.normal(size=5 * len(keys) + 1).astype(np.float32),
        }
        np.testing.assert_array_equal(trained.act(seen), loaded.act(seen))


@pytest.mark.parametrize(("name", "keys", "more"), CASES, ids=NAMES)
def test_the_policy_acts_as_sb3s_does(
    tmp_path: Path, name: str, keys: tuple[str, ...], more: dict[str, Any]
) -> None:
    """SB3 asked for its best action in the environments that it learned in."""
    learning, spec = begin(tmp_path, name, keys, evaluation={"looks": 1, "keep": "last"}, **more)
    learning.run(None, 60.0, None)
    kept, model = learning.kept, learning.model
    assert kept is not None
    normalizer = Normalizer(learning._normalizer.mean, learning._normalizer.std, kept.account)
    environments = model.get_env()
    assert environments is not None
    count = environments.num_envs
    runners = [PolicyRunner(spec, normalizer, kept.weights) for _ in range(count)]
    environments.training = False  # else VecNormalize's statistics move on
    inner = environments.unwrapped.simulation
    inner.begin()
    seen = environments.normalize_obs(inner.observe()) if kept.account else inner.observe()
    memory, starts = None, np.ones(count, bool)
    compared = 0
    for _ in range(25):
        actions, memory = model.predict(
            seen, state=memory, episode_start=starts, deterministic=True
        )
        rows, features = inner.row, inner.features
        raw = inner.observe()["account"]
        theirs = environment_actions(actions, spec["action"])
        for e, runner in enumerate(runners):
            window = features[rows[e] - 3 : rows[e] + 1]
            ours = runner.act({"window": window, "account": raw[e]})
            if keys == ("demo.A.1h",) and kind_of(spec) != "binned":
                np.testing.assert_array_equal(ours, theirs[e])
            elif kind_of(spec) == "binned":
                assert np.abs(ours - theirs[e]).max() <= 1  # at the edge of a bin
                compared += np.array_equal(ours, theirs[e])
            else:
                np.testing.assert_allclose(ours, theirs[e], atol=2e-6)
        seen, _, starts, _ = environments.step(actions)
        for e in np.flatnonzero(starts):
            runners[e].reset()
    if kind_of(spec) == "binned":
        assert compared > 0.98 * 25 * count


@pytest.mark.parametrize("name", ["ppo", "a2c", "recurrent_ppo", "sac", "dqn"])
def test_a_schedule_ends_at_its_end_though_the_last_rollout_goes_beyond(
    tmp_path: Path, name: str
) -> None:
    schedule = {"start": 1e-3, "end": 1e-4}
    trained = train_one(
        ArtifactLocation(tmp_path, "policy"), name, learning_rate=schedule, total_frames=1000
    )
    curve = read_frame(trained.reference.location.child("diagnostics.parquet"))
    rates = curve["learning_rate"].drop_nulls()
    assert int(trained.metrics["frames"] or 0) > 1000
    assert rates.max() <= 1e-3
    assert rates.min() == pytest.approx(1e-4)


def kind_of(spec: dict[str, Any]) -> str:
    return str(spec["action"]["kind"])


def begin(
    tmp_path: Path, name: str, keys: tuple[str, ...], **changes: Any
) -> tuple[Learning, dict[str, Any]]:
    """The learning inside `train`, to look into."""
    settings = experiment(name, keys, **changes)
    environment, algorithm = settings.variant("base")
    dataset, trial = synthetic.dataset(keys), settings.trials()["base.f0.s1"]
    spec = policy_specification(dataset, environment, algorithm, trial)
    assert mapping_for(environment, len(keys)) is not None
    normalizer = Normalizer.fit(dataset.features, dataset.folds[0].train, dataset.scaling)
    torch.set_num_threads(1)
    log = Log((tmp_path / "log").open("w"), lambda: 0.0, lambda said: None)
    learning = Learning(
        dataset, environment, algorithm, trial, spec, normalizer, None, log, lambda: 0.0
    )
    return learning, spec
