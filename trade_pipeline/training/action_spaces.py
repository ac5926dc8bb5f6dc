"""One mapping an algorithm from what it emits to what an environment takes.

PPO and its kin emit an environment's own actions. DQN knows one list of choices, SAC and TD3 know
boxes: for bracket actions DQN counts every combination, and a box is cut into bins. Pure functions
for acting, `VecEnvWrapper`s for learning. Start at `action_specification`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from trade_pipeline.simulator.actions import ActionMapping, BracketMapping

SQUASHED = ("sac", "td3")  # algorithms whose policy ends in a hyperbolic tangent


def action_specification(algorithm: str, mapping: ActionMapping) -> dict[str, Any]:
    """What turns a network's outputs into an action, JSON-able.

    Returns:
        `kind`, and `nvec` or the bounds `low` and `high`:
        multi_discrete (the likeliest choice of each part of the logits), discrete (the best of all
        combinations), binned (one tanh a part, cut into its choices), box (weights, clipped),
        squashed_box (tanh, stretched to the bounds).
    """
    if isinstance(mapping, BracketMapping):
        nvec = [int(choices) for choices in mapping.nvec]
        kind = "discrete" if algorithm == "dqn" else "multi_discrete"
        return {"kind": "binned" if algorithm in SQUASHED else kind, "nvec": nvec}
    return {
        "kind": "squashed_box" if algorithm in SQUASHED else "box",
        "low": np.asarray(mapping.low).tolist(),
        "high": np.asarray(mapping.high).tolist(),
    }


def outputs_of(action: Mapping[str, Any]) -> int:
    """How many numbers a network gives for an action, L."""
    match action["kind"]:
        case "multi_discrete":
            return int(sum(action["nvec"]))
        case "discrete":
            return int(np.prod(action["nvec"]))
        case "binned":
            return len(action["nvec"])
        case _:
            return len(action["low"])


def choices_of_number(number: NDArray[np.int64], nvec: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choices [E, parts] of the numbers [E] of combinations, the last part counting fastest."""
    return np.stack(np.unravel_index(number, tuple(nvec)), axis=-1).astype(np.int64)


def choices_of_box(box: NDArray[np.float32], nvec: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choices [E, parts] of boxes [E, parts] within [-1, 1], each cut into equal bins."""
    bins = np.floor((np.asarray(box, np.float64) + 1.0) / 2.0 * nvec).astype(np.int64)
    return np.clip(bins, 0, nvec - 1)


def environment_actions(actions: NDArray[Any], action: Mapping[str, Any]) -> NDArray[Any]:
    """What an algorithm emitted, as the environment takes it: [E, parts] or [E, N]."""
    nvec = np.array(action.get("nvec", []), np.int64)
    if action["kind"] == "discrete":
        return choices_of_number(actions.reshape(-1), nvec)
    if action["kind"] == "binned":
        return choices_of_box(actions, nvec)
    return actions


def with_actions_of(environments: VecEnv, action: Mapping[str, Any]) -> VecEnv:
    """The environments behind the action space that the algorithm knows."""
    nvec = np.array(action.get("nvec", []), np.int64)
    if action["kind"] == "discrete":
        return _CountedActions(environments, nvec)
    if action["kind"] == "binned":
        return _BinnedActions(environments, nvec)
    return environments


class _MappedActions(VecEnvWrapper):
    """Passes everything on but the actions."""

    def __init__(
        self, venv: VecEnv, nvec: NDArray[np.int64], action_space: spaces.Space[Any]
    ) -> None:
        super().__init__(venv, action_space=action_space)
        self._nvec = nvec

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


class _CountedActions(_MappedActions):
    def __init__(self, venv: VecEnv, nvec: NDArray[np.int64]) -> None:
        super().__init__(venv, nvec, spaces.Discrete(int(np.prod(nvec))))

    def step_async(self, actions: NDArray[Any]) -> None:
        self.venv.step_async(choices_of_number(actions, self._nvec))


class _BinnedActions(_MappedActions):
    def __init__(self, venv: VecEnv, nvec: NDArray[np.int64]) -> None:
        super().__init__(venv, nvec, spaces.Box(-1.0, 1.0, (len(nvec),), np.float32))

    def step_async(self, actions: NDArray[Any]) -> None:
        self.venv.step_async(choices_of_box(actions, self._nvec))
