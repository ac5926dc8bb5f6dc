"""What happens beside learning: progress, rows of diagnostics, looks at validation, checkpoints.

All at the beginning of a rollout, when nothing is half done, so that a training which goes on from
a checkpoint does the same at the same frames. Start at `TrainingCallback`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean
from torch import nn

from trade_pipeline.training.action_spaces import environment_actions
from trade_pipeline.training.diagnostics import (
    Diagnostics,
    GradientNorms,
    TensorBoardWriter,
    action_histograms,
    action_shares,
)

REPORT_EVERY_SECONDS = 1.0
MOST_ROWS = 200  # of diagnostics: enough for a curve, and little beside the learning itself
MOST_HISTOGRAMS = 50  # of each part of actions: TensorBoard sums their bytes up in plain Python


class Progress(NamedTuple):
    """How far a training is; `mean_episode_reward` is None until an episode has ended."""

    frames: int
    total_frames: int
    frames_per_second: float
    eta_seconds: float
    mean_episode_reward: float | None

    def __str__(self) -> str:
        """A line for people who watch."""
        reward = self.mean_episode_reward
        return (
            f"{self.frames} of {self.total_frames} frames, {self.frames_per_second:.0f} a second, "
            f"{self.eta_seconds:.0f} s left, mean episode reward "
            + ("not known yet" if reward is None else f"{reward:.4g}")
        )


class TrainingCallback(BaseCallback):
    """Watches a training, and ends it when looking at validation says so.

    Args:
        total_frames: of the whole training.
        looks_at: frames after which to look at validation.
        action: of the specification, for what actions are made of.
        diagnostics: where rows go.
        tensorboard: where histograms go.
        report: receives progress about once a second.
        clock: monotonic seconds.
        look: called with the frames; False ends the training.
        save: called to keep a checkpoint.
        save_every_s: seconds between checkpoints.
        policy: whose gradients are watched.
    """

    def __init__(
        self,
        total_frames: int,
        looks_at: Sequence[int],
        action: Mapping[str, Any],
        diagnostics: Diagnostics,
        tensorboard: TensorBoardWriter | None,
        report: Callable[[Progress], None],
        clock: Callable[[], float],
        look: Callable[[int], bool],
        save: Callable[[], None],
        save_every_s: float,
        policy: nn.Module,
    ) -> None:
        super().__init__()
        self._total = total_frames
        self._looks_at = list(looks_at)
        self._action = action
        self._diagnostics = diagnostics
        self._tensorboard = tensorboard
        self._report = report
        self._clock = clock
        self._look = look
        self._save = save
        self._save_every_s = save_every_s
        self._row_every = max(total_frames // MOST_ROWS, 1)
        self._next_row = self._row_every
        self._next_histograms = 0
        self._taken: list[NDArray[Any]] = []
        self._goes_on = True
        self._saved = self._started = self._reported = clock()
        self._began_at = 0
        self._gradients = GradientNorms(policy)

    def state(self) -> dict[str, Any]:
        """What the rest of the training depends on."""
        return {
            "next_row": self._next_row,
            "taken": self._taken,
            "looks_at": self._looks_at,
            "gradients": self._gradients.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._next_row, self._taken = state["next_row"], state["taken"]
        self._looks_at = state["looks_at"]
        self._gradients.restore(state["gradients"])

    def _on_training_start(self) -> None:
        self._began_at = self.model.num_timesteps
        if self._began_at == 0:
            self._save()  # so that a kill in the first minute costs no more than that minute

    def _on_step(self) -> bool:
        if not self._goes_on:
            return False
        actions = self.locals.get("clipped_actions", self.locals["actions"])
        self._taken.append(environment_actions(np.asarray(actions), self._action))
        if self._clock() - self._reported >= REPORT_EVERY_SECONDS:
            self._send()
        return True

    def _on_rollout_start(self) -> None:
        frames = self.model.num_timesteps
        if frames >= self._next_row:
            self._next_row = frames + self._row_every
            self.write_row()
        if self._looks_at and frames >= self._looks_at[0]:
            self._looks_at = [at for at in self._looks_at if at > frames]
            self._goes_on = self._look(frames)
        due = self._clock() - self._saved >= self._save_every_s
        # Not once a look has ended it: who goes on from before that look ends there, too.
        if self._goes_on and due and frames > self._began_at:
            self._save()
            self._saved = self._clock()

    def write_row(self) -> None:
        """Put what happened since the last row into diagnostics and TensorBoard."""
        frames = self.model.num_timesteps
        for name, norm in self._gradients.take().items():
            self._diagnostics.record(frames, name, norm)
        if self._taken:
            actions = np.concatenate(self._taken)
            for name, share in action_shares(actions, self._action).items():
                self._diagnostics.record(frames, name, share)
            if self._tensorboard is not None and frames >= self._next_histograms:
                self._tensorboard.add(frames, action_histograms(actions, self._action))
                self._next_histograms = frames + self._total // MOST_HISTOGRAMS
        self._taken = []
        self.model.dump_logs()

    def _on_training_end(self) -> None:
        self._send()
        self._gradients.close()

    def _send(self) -> None:
        self._reported = self._clock()
        elapsed, frames = self._reported - self._started, self.model.num_timesteps
        speed = (frames - self._began_at) / elapsed if elapsed > 0 else 0.0
        left = max(self._total - frames, 0)
        self._report(
            Progress(
                frames=frames,
                total_frames=self._total,
                frames_per_second=speed,
                eta_seconds=left / speed if speed > 0 else 0.0,
                mean_episode_reward=mean_episode_reward(self.model),
            )
        )


def mean_episode_reward(model: Any) -> float | None:
    """Mean over the last hundred episodes that ended, before `reward_scale`, or None."""
    episodes = model.ep_info_buffer
    return float(safe_mean([episode["r"] for episode in episodes])) if episodes else None
