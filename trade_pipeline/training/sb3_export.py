"""A policy as a zip that Stable-Baselines3's own `load` opens, in a project without this package.

Such a zip holds pickled Python objects: SB3 knows no other format. It is written here and never
read; whoever loads it trusts whoever made it. Start at `write_sb3`.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim

from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training import networks, sb3
from trade_pipeline.training.policy import LEARNER, AccountStatistics, PolicyRunner

ALGORITHMS: dict[str, Any] = {
    "ppo": PPO,
    "a2c": A2C,
    "recurrent_ppo": RecurrentPPO,
    "dqn": DQN,
    "sac": SAC,
    "td3": TD3,
}


class Sb3ExportError(StorageError):
    """A policy cannot be exported for SB3; the message says why."""


class NormalizingTrunk(sb3.ObservationTrunk):
    """The features extractor, on an account as the environment gives it.

    Args:
        observation_space: `window` and `account`.
        specification: of the network.
        mean: float64 [A] of the account vector; likewise var.
        var: as mean.
        epsilon: added to the variance.
        clip: largest normalized value.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self,
        observation_space: spaces.Dict,
        specification: Mapping[str, Any],
        mean: list[float],
        var: list[float],
        epsilon: float,
        clip: float,
    ) -> None:
        super().__init__(observation_space, specification)
        self.clip = clip
        # Not persistent: the learner's weights have no such entries.
        deviation = np.sqrt(np.array(var) + epsilon)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64), persistent=False)
        self.register_buffer("deviation", torch.from_numpy(deviation), persistent=False)

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features [B, D] of a batch of observations."""
        account = (observations["account"].double() - self.mean) / self.deviation
        clipped = account.clamp(-self.clip, self.clip).float()
        return super().forward({**observations, "account": clipped})


def write_sb3(location: ArtifactLocation, target: Path) -> None:
    """Write a policy bundle as a zip for `PPO.load` and its kin.

    The loaded model takes observations `window` float32 [W, C], features scaled as the bundle's
    `normalizer.json` says, and `account` float32 [A]. The zip scales no features, whatever the
    scaling: for its user feature f of instrument n is first, where there are `ranks`,
    `np.interp(feature, ranks["knots"][n][f], ranks["scores"][n][f])`, and then
    `(feature - mean[n][f]) / std[n][f]`. All weights, critics included, and gamma are those of the
    bundle; what else concerns learning is as SB3 has it by default.

    Args:
        location: folder of the bundle's version.
        target: file to write.

    Raises:
        Sb3ExportError: the algorithm is none of SB3's, or the learner's weights are not those
            that SB3 has for it.
        StorageError: the bundle does not verify.
    """
    runner = PolicyRunner.load(location)
    kind = runner.specification["configuration"]["algorithm"]["kind"]
    if kind not in ALGORITHMS:
        raise Sb3ExportError(
            f"{location}: was trained by {kind}, which is none of SB3's algorithms "
            f"({', '.join(ALGORITHMS)}); export it with --format onnx."
        )
    model = _model(runner.specification, runner.normalizer.account)
    weights = safetensors.torch.load_file(location.path / LEARNER)
    try:
        model.policy.load_state_dict(weights)
    except RuntimeError as error:
        raise Sb3ExportError(
            f"{location}: {LEARNER} does not fit SB3's policy ({error}); train the policy again."
        ) from error
    with target.open("wb") as file, _code_travels_along():
        model.save(file)


def _model(specification: Mapping[str, Any], account: AccountStatistics | None) -> BaseAlgorithm:
    """The algorithm with nothing learned yet and no environment, as SB3 sets it up when loading."""
    settings = specification["configuration"]["algorithm"]
    model: BaseAlgorithm = ALGORITHMS[settings["kind"]](
        "MultiInputLstmPolicy" if settings["kind"] == "recurrent_ppo" else "MultiInputPolicy",
        env=None,
        gamma=settings["gamma"],
        policy_kwargs=_policy_arguments(specification, account),
        device="cpu",
        _init_setup_model=False,
    )
    network = specification["network"]
    shapes = {
        "window": (network["window"], network["columns"]),
        "account": (len(network["account_scale"]),),
    }
    model.observation_space = spaces.Dict(
        {name: spaces.Box(-np.inf, np.inf, shape, np.float32) for name, shape in shapes.items()}
    )
    model.action_space = _action_space(specification["action"])
    model.n_envs = 1
    if isinstance(model, SAC):  # its "auto" would ask an environment
        model.target_entropy = -float(get_action_dim(model.action_space))
    model._setup_model()
    return model


def _policy_arguments(
    specification: Mapping[str, Any], account: AccountStatistics | None
) -> dict[str, Any]:
    """As `sb3.make_model` has them, for the same names of weights."""
    settings, network = specification["configuration"]["algorithm"], specification["network"]
    kind, shared = settings["kind"], settings["network"]["shared"]
    arguments: dict[str, Any] = {
        "features_extractor_class": sb3.ObservationTrunk,
        "features_extractor_kwargs": {"specification": network},
        "share_features_extractor": shared,
        "net_arch": [],
    }
    if account is not None:
        arguments["features_extractor_class"] = NormalizingTrunk
        arguments["features_extractor_kwargs"] |= {
            "mean": account.mean.tolist(),
            "var": account.var.tolist(),
            "epsilon": account.epsilon,
            "clip": account.clip,
        }
    if kind == "dqn":
        del arguments["share_features_extractor"]
    if kind in ("sac", "td3"):
        arguments["net_arch"] = {"pi": [], "qf": [network["hidden"][-1]]}
        arguments["activation_fn"] = networks.ACTIVATIONS[network["activation"]]
    if kind == "recurrent_ppo":
        arguments["lstm_hidden_size"] = network["size"]
        arguments |= {"shared_lstm": shared, "enable_critic_lstm": not shared}
    return arguments


def _action_space(action: Mapping[str, Any]) -> spaces.Space[Any]:
    match action["kind"]:
        case "multi_discrete":
            return spaces.MultiDiscrete(action["nvec"])
        case "discrete":
            return spaces.Discrete(int(np.prod(action["nvec"])))
        case "binned":
            return spaces.Box(-1.0, 1.0, (len(action["nvec"]),), np.float32)
        case _:
            low, high = (np.array(action[bound], np.float32) for bound in ("low", "high"))
            return spaces.Box(low, high, dtype=np.float32)


@contextmanager
def _code_travels_along() -> Iterator[None]:
    """Put the classes of our networks into what SB3 writes, not their names in this package."""
    modules = (sys.modules[__name__], networks, sb3)
    for module in modules:
        register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            unregister_pickle_by_value(module)
