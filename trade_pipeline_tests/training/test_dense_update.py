"""The compiled update is autograd's: same steps, same figures, whatever the threads."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from trade_pipeline.settings.algorithm import MLPSettings
from trade_pipeline.training.backpropagation import Rollout
from trade_pipeline.training.choices import ChoicesPolicy
from trade_pipeline.training.dense_layers import tanh
from trade_pipeline.training.dense_policy import DensePolicy
from trade_pipeline.training.dense_update import DenseUpdate
from trade_pipeline.training.networks import network_specification
from trade_pipeline.training.ppo_step import INPUTS, AutogradUpdate, StepSettings
from trade_pipeline.training.sb3 import ObservationTrunk

WINDOW, COLUMNS, SAMPLES = 4, 3, 700
SETTINGS = StepSettings(
    clip_range=0.2,
    entropy_coefficient=0.01,
    value_coefficient=0.5,
    max_grad_norm=0.5,
    most_divergence=np.inf,
    normalize_advantages=True,
)
EVERY = np.arange(SAMPLES)[None]  # one epoch in the order of the rollout
CHOICES = spaces.MultiDiscrete([4, 2, 3])
NUMBERS = spaces.Box(-1.0, 1.0, (3,))
ROWS = 60
FEATURES = np.random.default_rng(4).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def policy_of(actions: spaces.Space[Any], shared: bool, activation: str) -> ChoicesPolicy:
    network = MLPSettings(kind="mlp", hidden=(8, 5), activation=activation, shared=shared)
    outputs = int(actions.nvec.sum()) if isinstance(actions, spaces.MultiDiscrete) else 3
    torch.manual_seed(7)
    return ChoicesPolicy(
        spaces.Dict(
            {
                "row": spaces.Box(WINDOW - 1, ROWS - 1, (1,), np.int32),
                "account": spaces.Box(-np.inf, np.inf, (6,)),
            }
        ),
        actions,
        lambda _: 3e-3,
        net_arch=[],
        features_extractor_class=ObservationTrunk,
        features_extractor_kwargs={
            "specification": network_specification(network, WINDOW, COLUMNS, 1, outputs),
            "features": FEATURES,
        },
        share_features_extractor=shared,
        optimizer_kwargs={"eps": 1e-5, "fused": True},
    )


def rollout_of(policy: ChoicesPolicy) -> dict[str, torch.Tensor]:
    """Samples whose policy was a little another one, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    first = torch.randint(ROWS - WINDOW + 1, (SAMPLES,), generator=generator)
    windows = torch.from_numpy(FEATURES)[first[:, None] + torch.arange(WINDOW)].flatten(1)
    accounts = drawn(SAMPLES, 6)
    inputs = torch.cat([windows, accounts], dim=1)
    with torch.no_grad():
        actions, _, log_probs = policy({INPUTS: inputs})
    return {
        "places": first * COLUMNS,
        "accounts": accounts,
        INPUTS: inputs,
        "actions": actions.float(),
        "log_probs": log_probs + 0.2 * drawn(SAMPLES),
        "advantages": drawn(SAMPLES, 1),
        "returns": drawn(SAMPLES, 1),
    }


def compiled(rollout: dict[str, torch.Tensor]) -> Rollout:
    """What the compiled update takes."""
    given = {name: rollout[name].numpy() for name in Rollout._fields if name in rollout}
    for name in ("advantages", "returns"):
        given[name] = given[name].reshape(-1)
    return Rollout(features=FEATURES.reshape(-1), **given)


def update_of(policy: ChoicesPolicy, batch: int, threads: int = 1) -> DenseUpdate:
    dense = DensePolicy(policy)
    dense.adopt()
    return DenseUpdate(dense, batch, threads)


def parameters_of(policy: ChoicesPolicy) -> NDArray[np.float32]:
    return torch.cat([one.detach().flatten() for one in policy.parameters()]).numpy().copy()


@pytest.mark.parametrize("actions", [CHOICES, NUMBERS], ids=["choices", "numbers"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])
def test_steps_are_those_of_autograd(
    actions: spaces.Space[Any], shared: bool, activation: str, normalize: bool
) -> None:
    settings = SETTINGS._replace(normalize_advantages=normalize)
    policy = policy_of(actions, shared, activation)
    other = deepcopy(policy)
    rollout = rollout_of(policy)
    update, oracle = update_of(policy, 512), AutogradUpdate(other)
    update.begin(compiled(rollout))
    oracle.begin(rollout)
    before = parameters_of(policy)
    order = np.random.default_rng(0).permutation(SAMPLES)
    for chosen in (order[:512], order[512:], order[:1] if not normalize else order[:2]):
        found, expected = (
            one.learn(chosen[None], len(chosen), settings) for one in (update, oracle)
        )
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-6)
        assert found[2:] == expected[2:] == (1, 1)
        np.testing.assert_allclose(found.log_ratios, expected.log_ratios, atol=3e-6)
        np.testing.assert_allclose(parameters_of(policy), parameters_of(other), atol=2e-6)
        norms = update.gradient_norms()
        total = float(torch.cat([p.grad.flatten() for p in other.parameters()]).norm())
        clipped = min(float(np.sqrt(sum(norm**2 for norm in norms.values()))), 0.5)
        assert clipped == pytest.approx(total, rel=1e-4)
    assert np.abs(parameters_of(policy) - before).max() > 3e-3
    update.end()
    kept, expected_state = policy.optimizer.state_dict(), other.optimizer.state_dict()
    for one, two in zip(kept["state"].values(), expected_state["state"].values(), strict=True):
        assert float(one["step"]) == float(two["step"]) == 3
        torch.testing.assert_close(one["exp_avg"], two["exp_avg"], atol=1e-6, rtol=1e-4)


def test_threads_change_no_bit() -> None:
    found = []
    for threads in (1, 2):
        policy = policy_of(CHOICES, True, "tanh")
        update = update_of(policy, SAMPLES, threads)
        update.begin(compiled(rollout_of(policy)))
        threads_before = torch.get_num_threads()
        with update.alone():
            update.learn(np.tile(np.arange(SAMPLES), (5, 1)), SAMPLES, SETTINGS)
        assert torch.get_num_threads() == threads_before
        found.append(parameters_of(policy))
    assert found[0].tobytes() == found[1].tobytes()


def test_a_policy_that_moved_too_far_stays_as_it_is() -> None:
    policy = policy_of(CHOICES, True, "tanh")
    update = update_of(policy, SAMPLES)
    update.begin(compiled(rollout_of(policy)))
    before = parameters_of(policy)
    found = update.learn(EVERY, SAMPLES, SETTINGS._replace(most_divergence=1e-6))
    assert (found.epochs, found.steps) == (1, 0)
    assert parameters_of(policy).tobytes() == before.tobytes()
    assert update.learn(EVERY, SAMPLES, SETTINGS._replace(most_divergence=10.0)).steps == 1


@pytest.mark.parametrize("kind", ["compiled", "autograd"])
def test_an_update_ends_where_the_policy_moved_too_far(kind: str) -> None:
    settings = SETTINGS._replace(most_divergence=1.0)
    order, half = np.arange(SAMPLES), SAMPLES // 2
    near = order[:half]
    found = []
    # Which samples come in which epoch's minibatches; the others end it.
    for orders in ([order, order], [near], [[*near, *near], order], [near, near, near]):
        policy = policy_of(CHOICES, True, "tanh")
        rollout = rollout_of(policy)
        rollout["log_probs"][half:] += 3.0  # far from what the policy says of these samples
        update: DenseUpdate | AutogradUpdate
        if kind == "compiled":
            update = update_of(policy, half)
            update.begin(compiled(rollout))
        else:
            update = AutogradUpdate(policy)
            update.begin(rollout)
        gave = update.learn(np.array(orders), half, settings)
        update.end()
        steps = float(policy.optimizer.state_dict()["state"][0]["step"])
        assert steps == gave.steps
        found.append((gave, parameters_of(policy)))
    (short, once), (one, alone), (later, thrice), (three, same) = found
    assert [gave.steps for gave, _ in found] == [1, 1, 3, 3]
    assert [gave.epochs for gave, _ in found] == [1, 1, 2, 3]
    assert [len(gave.losses) for gave, _ in found] == [2, 1, 4, 3]
    assert [len(gave.log_ratios) for gave, _ in found] == [2 * half, half, 2 * half, half]
    assert once.tobytes() == alone.tobytes() and thrice.tobytes() == same.tobytes()
    np.testing.assert_array_equal(short.losses[:1], one.losses)
    np.testing.assert_array_equal(later.losses[:3], three.losses)
    assert np.abs(later.log_ratios[half:]).mean() > 2.0 > np.abs(later.log_ratios[:half]).max()


def test_a_restored_optimizer_goes_on_where_it_was() -> None:
    policy = policy_of(NUMBERS, True, "tanh")
    rollout = compiled(rollout_of(policy))
    update = update_of(policy, SAMPLES)
    update.begin(rollout)
    update.learn(EVERY, SAMPLES, SETTINGS)
    update.end()
    weights, state = deepcopy(policy.state_dict()), deepcopy(policy.optimizer.state_dict())
    update.begin(rollout)
    update.learn(EVERY, SAMPLES, SETTINGS)
    again = policy_of(NUMBERS, True, "tanh")
    again.load_state_dict(weights)
    again.optimizer.load_state_dict(state)
    restored = update_of(again, SAMPLES)
    restored.begin(rollout)
    restored.learn(EVERY, SAMPLES, SETTINGS)
    assert parameters_of(again).tobytes() == parameters_of(policy).tobytes()


def test_tangents_are_those_of_float64() -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_001), np.logspace(-9, 0, 10_001)])
    found = np.array([tanh(value) for value in x.astype(np.float32)], np.float64)
    expected = np.tanh(x.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=1e-12)
    assert (np.abs(found) <= 1).all()
