"""RLlib's PPO set up from our settings, and a Ray that lives as long as it is needed.

Knows nothing of bundles, validation or progress. Importing it imports Ray, and settles before that
how Ray behaves. Start at `running_ray` and `Learner`.
"""

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Read by Ray while it is imported or started. The odd name is Ray's: without "clusters" a node's
# address is the loopback device, and nothing listens elsewhere.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A last report of metrics would delay the end by ten seconds.
os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112

import ray
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from trade_pipeline.settings.algorithm import LinearSchedule, RLlibPPOSettings
from trade_pipeline.training.rllib_network import TradingModule, TrainingPart, make_environment

REGISTERED = "trade_pipeline"  # our environment's name in Ray's registry
OBJECT_STORE_BYTES = 256 * 2**20  # room for rollouts on their way, beside the market
TEMPORARY, TOKEN_FILE = "RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH"
TOKEN = secrets.token_hex(32)  # between Ray's processes; Ray reads it once in each
# RLlib's name of a figure to the one under which SB3's PPO records it, and its sign.
FIGURES = {
    "policy_loss": ("policy_gradient_loss", 1.0),
    "vf_loss": ("value_loss", 1.0),
    "entropy": ("entropy_loss", -1.0),
    "total_loss": ("loss", 1.0),
    "vf_explained_var": ("explained_variance", 1.0),
    "default_optimizer_learning_rate": ("learning_rate", 1.0),
    "gradients_default_optimizer_global_norm": ("gradient_norm/all", 1.0),
}

FloatArray = NDArray[np.float32]


@contextmanager
def running_ray(workers: int, shared_bytes: int) -> Iterator[None]:
    """Ray on this machine, its files in a folder of its own; both are gone afterwards.

    Its processes end with this one even when it is killed; the folder then stays behind.

    Args:
        workers: processes that step environments.
        shared_bytes: of the arrays that all of them read.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray_"))  # short: Ray puts sockets in there
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    changed = {
        TEMPORARY: str(folder),
        TOKEN_FILE: str(folder / "token"),
        # Ray's dashboard asks clouds whether it runs there, also with usage statistics off.
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1,localhost",
    }
    before = {name: os.environ.get(name) for name in changed}
    on_main_thread = threading.current_thread() is threading.main_thread()
    on_termination = signal.getsignal(signal.SIGTERM)
    os.environ.update(changed)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    try:
        ray.init(
            address="local",
            num_cpus=workers + 1,
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES + 2 * shared_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    finally:
        ray.shutdown()
        if on_main_thread:  # Ray puts its own in place
            signal.signal(signal.SIGTERM, on_termination)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Update:
    """What one rollout and the update after it gave.

    Attributes:
        frames: environment steps since the beginning, over all workers.
        episode_reward: mean of the latest hundred episodes, scaled; None until one has ended.
        figures: losses and the like under SB3's names.
    """

    frames: int
    episode_reward: float | None
    figures: dict[str, float]


class Learner:
    """PPO in this process, its environments in workers; needs a running Ray.

    Args:
        part: what the environments read.
        algorithm: settings.
        specification: a policy's; `network` and `action` are read.
        seed: of weights, environments and exploration.
    """

    def __init__(
        self,
        part: TrainingPart,
        algorithm: RLlibPPOSettings,
        specification: Mapping[str, Any],
        seed: int,
    ) -> None:
        register_env(REGISTERED, make_environment)
        rate = algorithm.learning_rate
        config = (
            PPOConfig(algo_class=_QuietPPO)
            .environment(
                REGISTERED,
                env_config={"part": ray.put(part)},
                normalize_actions=False,
                clip_actions=True,
            )
            .env_runners(
                num_env_runners=algorithm.workers,
                num_envs_per_env_runner=algorithm.environments // algorithm.workers,
                rollout_fragment_length=algorithm.rollout_steps,
            )
            .fault_tolerance(restart_failed_env_runners=False)  # what fails once is a mistake
            .learners(num_learners=0, num_gpus_per_learner=0)
            .training(
                lr=[[0, rate.start], [algorithm.total_frames, rate.end]]
                if isinstance(rate, LinearSchedule)
                else rate,
                gamma=algorithm.gamma,
                lambda_=algorithm.gae_lambda,
                train_batch_size_per_learner=algorithm.environments * algorithm.rollout_steps,
                minibatch_size=algorithm.batch_size,
                num_epochs=algorithm.epochs,
                clip_param=algorithm.clip_range,
                vf_clip_param=float("inf"),
                use_kl_loss=False,
                entropy_coeff=algorithm.entropy_coefficient,
                vf_loss_coeff=algorithm.value_coefficient,
                grad_clip=algorithm.max_grad_norm,
                grad_clip_by="global_norm",
            )
            .rl_module(
                rl_module_spec=RLModuleSpec(
                    module_class=TradingModule,
                    model_config={
                        "network": specification["network"],
                        "action": specification["action"],
                        "shared": algorithm.network.shared,
                    },
                )
            )
            .debugging(seed=seed, log_level="ERROR")
        )
        self._algorithm = config.build_algo()
        self._episode_reward: float | None = None

    @property
    def module(self) -> TradingModule:
        """Policy and value as they are now."""
        module: TradingModule = self._algorithm.get_module()
        return module

    def update(self) -> Update:
        """Gather a rollout from all workers and learn from it.

        Raises:
            RayError: a worker failed.
        """
        result = self._algorithm.train()
        reward = result["env_runners"].get("episode_return_mean")
        if reward is not None and isfinite(reward):
            self._episode_reward = float(reward)
        learned = result["learners"]["default_policy"]
        return Update(
            frames=int(result["num_env_steps_sampled_lifetime"]),
            episode_reward=self._episode_reward,
            figures={
                name: sign * float(learned[theirs])
                for theirs, (name, sign) in FIGURES.items()
                if theirs in learned
            },
        )

    def policy_weights(self) -> dict[str, FloatArray]:
        """The acting network's weights under the names of `networks.PolicyNetwork`."""
        return _arrays(self.module.policy)

    def learner_weights(self) -> dict[str, FloatArray]:
        """All weights, the value's included, under the names of `TradingModule`."""
        return _arrays(self.module)

    def close(self) -> None:
        """End the workers."""
        self._algorithm.stop()


class _QuietPPO(PPO):  # type: ignore[misc]
    """Leaves nothing in the home folder."""

    def _setup_logdir(self) -> None:
        self._logdir = tempfile.mkdtemp(dir=os.environ[TEMPORARY])


def _arrays(module: Any) -> dict[str, FloatArray]:
    return {
        name: weight.detach().cpu().numpy().copy() for name, weight in module.state_dict().items()
    }
