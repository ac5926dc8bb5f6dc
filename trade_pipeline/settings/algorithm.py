"""How a policy is trained: algorithm, network, what is looked at on the way.

One model an algorithm, told apart by `kind`. What does not fit together (algorithm, actions,
network) is refused here, before any data is read. Start at `AlgorithmSettings` and
`check_algorithm`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.environment import EnvironmentSettings


class LinearSchedule(Settings):
    """From one value to another, in a straight line over the training's frames."""

    kind: Literal["linear"] = "linear"
    start: float = Field(gt=0)
    end: float = Field(default=0.0, ge=0)


Scheduled = Annotated[float, Field(gt=0)] | LinearSchedule
Environments = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=1, le=65_536)]  # of a layer
Fraction = Annotated[float, Field(ge=0, le=1)]


class MLPSettings(Settings):
    """A multilayer perceptron over the window and the account."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Size, ...] = Field(default=(64, 64), min_length=1)
    activation: Literal["tanh", "relu"] = "tanh"
    shared: bool = Field(default=True, description="One trunk for policy and value.")


class CNNSettings(Settings):
    """Convolutions along the window's bars, then a perceptron that sees the account too."""

    kind: Literal["cnn"]
    channels: tuple[Size, ...] = Field(default=(16, 32), min_length=1)
    kernel: PositiveInt = Field(default=5, description="Bars that one convolution sees.")
    hidden: tuple[Size, ...] = Field(default=(64,), min_length=1)
    activation: Literal["tanh", "relu"] = "tanh"
    shared: bool = Field(default=True, description="One trunk for policy and value.")

    def length(self, window: int) -> int:
        """Bars that are left of a window after all convolutions."""
        return window - len(self.channels) * (self.kernel - 1)


class LSTMSettings(Settings):
    """A perceptron over window and account, then a long short-term memory over the steps."""

    kind: Literal["lstm"]
    hidden: tuple[Size, ...] = Field(default=(64,), min_length=1)
    size: Size = Field(default=64, description="Of the memory.")
    activation: Literal["tanh", "relu"] = "tanh"
    shared: bool = Field(default=True, description="One trunk and memory for policy and value.")


NetworkSettings = Annotated[MLPSettings | CNNSettings | LSTMSettings, Field(discriminator="kind")]


class NormalizeSettings(Settings):
    """Running statistics of training (SB3's VecNormalize); those of the account act, too."""

    account: bool = Field(default=False, description="Account vector to mean 0, deviation 1.")
    reward: bool = Field(default=False, description="Rewards by the deviation of their return.")
    clip: float = Field(default=10.0, gt=0, description="Largest normalized value.")


class EvaluationSettings(Settings):
    """Looks at the validation part on the way; they choose which weights are kept."""

    looks: PositiveInt = Field(default=4, description="Evenly spread; the last is at the end.")
    patience: PositiveInt | None = Field(
        default=None, description="Stop after this many looks without improvement."
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="Weights of the best look, or of the end."
    )


class _Algorithm(Settings):
    """What all algorithms share. Frames are environment steps summed over environments."""

    total_frames: PositiveInt = 100_000
    gamma: float = Field(default=0.99, gt=0, le=1)
    reward_scale: float = Field(
        default=100.0, gt=0, description="Rewards are multiplied by this for learning only."
    )
    network: NetworkSettings = MLPSettings()
    normalize: NormalizeSettings = NormalizeSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    threads: int = Field(
        default=1, ge=1, le=1024, description="torch threads; part of the version."
    )


class _OnPolicy(_Algorithm):
    """Learns from rollouts of all environments."""

    environments: Environments = 32
    rollout_steps: PositiveInt = 16
    learning_rate: Scheduled = 3e-3
    gae_lambda: Fraction = 0.9
    entropy_coefficient: float = Field(default=0.01, ge=0)
    value_coefficient: float = Field(default=0.5, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0)


class PPOSettings(_OnPolicy):
    """Proximal policy optimization (Schulman et al. 2017).

    The defaults learn fastest on a market whose best rule is known: docs/tuning.md.
    """

    kind: Literal["ppo"]
    batch_size: int = Field(default=128, ge=2, description="One frame has no deviation.")
    epochs: PositiveInt = 4
    clip_range: Scheduled = 0.2
    target_kl: float | None = Field(
        default=None, gt=0, description="Ends an update's epochs early beyond 1.5 times this."
    )

    @model_validator(mode="after")
    def _batches_fill_a_rollout(self) -> "PPOSettings":
        rollout = self.environments * self.rollout_steps
        if rollout % self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide environments x rollout_steps "
                f"= {rollout}"
            )
        return self


class RecurrentPPOSettings(PPOSettings):
    """PPO with a memory (sb3-contrib); the network is an lstm."""

    kind: Literal["recurrent_ppo"]  # type: ignore[assignment]
    learning_rate: Scheduled = 1e-3
    network: NetworkSettings = LSTMSettings(kind="lstm")


class RLlibPPOSettings(PPOSettings):
    """PPO by Ray's RLlib: environments spread over processes. Needs the extra `rllib`."""

    kind: Literal["rllib_ppo"]  # type: ignore[assignment]
    clip_range: float = Field(default=0.2, gt=0)
    target_kl: None = None
    workers: PositiveInt = Field(default=2, description="Processes that step environments.")
    deterministic: Literal[False] = Field(
        default=False, description="What workers do at the same time is not promised to repeat."
    )

    @model_validator(mode="after")
    def _workers_share_environments(self) -> "RLlibPPOSettings":
        if self.environments % self.workers:
            raise ValueError(
                f"workers {self.workers} does not divide environments {self.environments}"
            )
        return self


class A2CSettings(_OnPolicy):
    """Advantage actor-critic (Mnih et al. 2016)."""

    kind: Literal["a2c"]
    environments: Environments = 64
    learning_rate: Scheduled = 1e-3
    gae_lambda: Fraction = 1.0


class _OffPolicy(_Algorithm):
    """Learns from a buffer of past steps. Updates come after every `train_every` steps."""

    environments: Environments = 8
    learning_rate: Scheduled = 3e-4
    network: NetworkSettings = MLPSettings(shared=False)
    buffer_size: int = Field(default=100_000, ge=1, le=100_000_000, description="Frames kept.")
    learning_starts: NonNegativeInt = Field(default=1_000, description="Random frames at first.")
    batch_size: PositiveInt = 256
    train_every: PositiveInt = Field(default=4, description="Steps of all environments.")
    gradient_steps: PositiveInt = Field(default=4, description="At each update.")

    @model_validator(mode="after")
    def _buffer_holds_a_batch(self) -> "_OffPolicy":
        if self.buffer_size < self.environments:
            raise ValueError(
                f"buffer_size {self.buffer_size} is less than one step of {self.environments} "
                "environments"
            )
        if self.buffer_size < self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is more than a buffer of {self.buffer_size} holds"
            )
        if self.environments * self.train_every > self.total_frames:
            raise ValueError(
                f"train_every {self.train_every} steps of {self.environments} environments are "
                f"more than total_frames {self.total_frames}: nothing would be learned"
            )
        if self.learning_starts >= self.total_frames:
            raise ValueError(
                f"learning_starts {self.learning_starts} leaves nothing of total_frames "
                f"{self.total_frames} to learn from"
            )
        return self


class DQNSettings(_OffPolicy):
    """Deep Q-network (Mnih et al. 2015) over every combination of choices."""

    kind: Literal["dqn"]
    tau: float = Field(default=1.0, gt=0, le=1)
    target_update_frames: PositiveInt = 1_000
    exploration_fraction: Fraction = 0.2
    exploration_final: Fraction = 0.05
    max_grad_norm: float = Field(default=10.0, gt=0)


class SACSettings(_OffPolicy):
    """Soft actor-critic (Haarnoja et al. 2018); the entropy's weight adapts unless given."""

    kind: Literal["sac"]
    tau: float = Field(default=0.005, gt=0, le=1)
    entropy_coefficient: float | None = Field(default=None, ge=0)


class TD3Settings(_OffPolicy):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018)."""

    kind: Literal["td3"]
    tau: float = Field(default=0.005, gt=0, le=1)
    action_noise: float = Field(default=0.1, ge=0, description="Deviation while exploring.")
    policy_delay: PositiveInt = 2
    target_noise: float = Field(default=0.2, ge=0)
    target_noise_clip: float = Field(default=0.5, ge=0)


AlgorithmSettings = Annotated[
    PPOSettings
    | A2CSettings
    | RecurrentPPOSettings
    | DQNSettings
    | SACSettings
    | TD3Settings
    | RLlibPPOSettings,
    Field(discriminator="kind"),
]
OnPolicy = PPOSettings | A2CSettings | RecurrentPPOSettings


def check_algorithm(algorithm: Any, environment: EnvironmentSettings, origin: str) -> None:
    """Refuse an algorithm that the actions, network or window do not fit, saying what would.

    Raises:
        ValueError: names both sides.
    """
    network, actions = algorithm.network, environment.actions.kind
    if (network.kind == "lstm") != (algorithm.kind == "recurrent_ppo"):
        fits = "network lstm" if algorithm.kind == "recurrent_ppo" else "network mlp or cnn"
        if algorithm.kind == "dqn" and actions == "weights":
            fits = "ppo or a2c with network mlp or cnn"  # its actions do not fit, either
        raise ValueError(
            f"{origin}: algorithm {algorithm.kind} does not work with network {network.kind}; use "
            f"{fits}" + (", or algorithm recurrent_ppo" if network.kind == "lstm" else "")
        )
    if algorithm.kind == "rllib_ppo" and (
        algorithm.normalize.account or algorithm.normalize.reward
    ):
        raise ValueError(
            f"{origin}: algorithm rllib_ppo keeps no running statistics; leave normalize out, or "
            "use ppo"
        )
    if algorithm.kind == "dqn" and actions == "weights":
        raise ValueError(
            f"{origin}: algorithm dqn chooses among listed actions and does not work with actions "
            "of kind weights; use ppo, a2c, recurrent_ppo, sac or td3, or actions of kind brackets"
        )
    if algorithm.kind in ("dqn", "sac", "td3") and network.shared:
        raise ValueError(
            f"{origin}: algorithm {algorithm.kind} keeps policy and value apart; write "
            "shared: false in network, or use ppo or a2c"
        )
    if isinstance(network, CNNSettings) and network.length(environment.window) < 1:
        raise ValueError(
            f"{origin}: {len(network.channels)} convolutions of kernel {network.kernel} need a "
            f"window of {len(network.channels) * (network.kernel - 1) + 1} bars, it has "
            f"{environment.window}; use fewer channels, a smaller kernel or a longer window"
        )
