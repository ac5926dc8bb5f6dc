"""The compiled update is autograd's: same steps, same figures, whatever the threads."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from trade_pipeline.settings.algorithm import MLPSettings
from trade_pipeline.training.choices import ChoicesPolicy
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
CHOICES = spaces.MultiDiscrete([4, 2, 3])
NUMBERS = spaces.Box(-1.0, 1.0, (3,))


def policy_of(actions: spaces.Space[Any], shared: bool, activation: str) -> ChoicesPolicy:
    network = MLPSettings(kind="mlp", hidden=(8, 5), activation=activation, shared=shared)
    outputs = int(actions.nvec.sum()) if isinstance(actions, spaces.MultiDiscrete) else 3
    torch.manual_seed(7)
    return ChoicesPolicy(
        spaces.Dict(
            {
                "window": spaces.Box(-np.inf, np.inf, (WINDOW, COLUMNS)),
                "account": spaces.Box(-np.inf, np.inf, (6,)),
            }
        ),
        actions,
        lambda _: 3e-3,
        net_arch=[],
        features_extractor_class=ObservationTrunk,
        features_extractor_kwargs={
            "specification": network_specification(network, WINDOW, COLUMNS, 1, outputs)
        },
        share_features_extractor=shared,
        optimizer_kwargs={"eps": 1e-5, "fused": True},
    )


def rollout_of(policy: ChoicesPolicy) -> dict[str, torch.Tensor]:
    """Samples whose policy was a little another one, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = drawn(SAMPLES, WINDOW * COLUMNS + 6)
    with torch.no_grad():
        actions, _, log_probs = policy({INPUTS: inputs})
    return {
        INPUTS: inputs,
        "actions": actions.float(),
        "log_probs": log_probs + 0.2 * drawn(SAMPLES),
        "advantages": drawn(SAMPLES, 1),
        "returns": drawn(SAMPLES, 1),
    }


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
    update, oracle = DenseUpdate(policy, 512, 1), AutogradUpdate(other)
    update.begin(rollout)
    oracle.begin(rollout)
    before = parameters_of(policy)
    order = np.random.default_rng(0).permutation(SAMPLES)
    for chosen in (order[:512], order[512:], order[:1] if not normalize else order[:2]):
        found, expected = update.step(chosen, settings), oracle.step(chosen, settings)
        assert found[:3] == pytest.approx(expected[:3], rel=1e-5, abs=1e-6)
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
        update = DenseUpdate(policy, SAMPLES, threads)
        update.begin(rollout_of(policy))
        threads_before = torch.get_num_threads()
        with update.alone():
            for _ in range(5):
                update.step(np.arange(SAMPLES), SETTINGS)
        assert torch.get_num_threads() == threads_before
        found.append(parameters_of(policy))
    assert found[0].tobytes() == found[1].tobytes()


def test_a_policy_that_moved_too_far_stays_as_it_is() -> None:
    policy = policy_of(CHOICES, True, "tanh")
    update = DenseUpdate(policy, SAMPLES, 1)
    update.begin(rollout_of(policy))
    before = parameters_of(policy)
    assert not update.step(np.arange(SAMPLES), SETTINGS._replace(most_divergence=1e-6)).taken
    assert parameters_of(policy).tobytes() == before.tobytes()
    assert update.step(np.arange(SAMPLES), SETTINGS._replace(most_divergence=10.0)).taken


def test_a_restored_optimizer_goes_on_where_it_was() -> None:
    policy = policy_of(NUMBERS, True, "tanh")
    rollout = rollout_of(policy)
    update = DenseUpdate(policy, SAMPLES, 1)
    update.begin(rollout)
    update.step(np.arange(SAMPLES), SETTINGS)
    update.end()
    weights, state = deepcopy(policy.state_dict()), deepcopy(policy.optimizer.state_dict())
    update.begin(rollout)
    update.step(np.arange(SAMPLES), SETTINGS)
    again = policy_of(NUMBERS, True, "tanh")
    again.load_state_dict(weights)
    again.optimizer.load_state_dict(state)
    restored = DenseUpdate(again, SAMPLES, 1)
    restored.begin(rollout)
    restored.step(np.arange(SAMPLES), SETTINGS)
    assert parameters_of(again).tobytes() == parameters_of(policy).tobytes()
