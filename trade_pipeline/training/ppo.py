"""SB3's PPO with an update that spends its time in the network, not around it.

The same mathematics on the same minibatches as `stable_baselines3.PPO.train` (Schulman et al.
2017); the rollout becomes tensors once, and figures for the log are taken once an update.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

INPUTS = "inputs"  # in place of an observation's parts: what the network is applied to


class LeanPPO(PPO):
    """PPO for `sb3.ObservationTrunk` and feed-forward networks."""

    def train(self) -> None:
        """Update the policy on the rollout that was gathered."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range: float = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        parameters = list(self.policy.parameters())
        rollout = self._rollout()
        losses: list[tuple[torch.Tensor, ...]] = []
        log_ratios: list[torch.Tensor] = []
        for _ in range(self.n_epochs):
            log_ratios = []
            diverged = False
            for batch in self._batches(rollout):
                advantages = batch.advantages
                if self.normalize_advantage and len(advantages) > 1:
                    deviation, mean = torch.std_mean(advantages)
                    advantages = (advantages - mean) / (deviation + 1e-8)
                values, log_prob, entropy = self.policy.evaluate_actions(
                    batch.observations, batch.actions
                )
                log_ratio = log_prob - batch.old_log_prob
                ratio = log_ratio.exp()
                clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
                policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
                value_loss = functional.mse_loss(batch.returns, values.flatten())
                entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
                loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
                losses.append((policy_loss, value_loss, entropy_loss, loss))
                log_ratios.append(log_ratio.detach())
                if self.target_kl is not None:
                    diverged = _divergence(log_ratios[-1]) > 1.5 * self.target_kl
                    if diverged:
                        break
                for parameter in parameters:
                    parameter.grad = None
                loss.backward()  # type: ignore[no-untyped-call]
                clip_grad_norm_(parameters, self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if diverged:
                break
        self._log(losses, log_ratios, clip_range)

    def _rollout(self) -> dict[str, torch.Tensor]:
        """The rollout's arrays as tensors, steps and environments in one axis, as SB3 has them."""
        buffer = self.rollout_buffer

        def flat(array: Any) -> torch.Tensor:
            return torch.from_numpy(buffer.swap_and_flatten(array)).to(self.device)

        rollout = {
            name: flat(getattr(buffer, name))
            for name in ("actions", "values", "log_probs", "advantages", "returns")
        }
        observations: Any = buffer.observations
        seen = {name: flat(array) for name, array in observations.items()}
        # Windows are gathered once, not in each of the epochs.
        extractor: Any = self.policy.features_extractor
        return {**rollout, INPUTS: extractor.inputs(seen)}

    def _batches(self, rollout: dict[str, torch.Tensor]) -> Iterator[DictRolloutBufferSamples]:
        """The rollout once through in random order."""
        order = torch.from_numpy(np.random.permutation(len(rollout["actions"]))).to(self.device)
        for chosen in torch.split(order, self.batch_size):

            def some(name: str, rows: torch.Tensor = chosen) -> torch.Tensor:
                return rollout[name].index_select(0, rows)  # indexing copies number by number

            yield DictRolloutBufferSamples(
                observations={INPUTS: some(INPUTS)},
                actions=some("actions"),
                old_values=some("values").flatten(),
                old_log_prob=some("log_probs").flatten(),
                advantages=some("advantages").flatten(),
                returns=some("returns").flatten(),
            )

    def _log(
        self,
        losses: list[tuple[torch.Tensor, ...]],
        log_ratios: list[torch.Tensor],
        clip_range: float,
    ) -> None:
        """What SB3 records of an update; divergence and clipping are those of the last epoch."""
        means = torch.stack([torch.stack(batch) for batch in losses]).detach().mean(0).tolist()
        names = ("policy_gradient_loss", "value_loss", "entropy_loss")
        for name, mean in zip(names, means[:3], strict=True):
            self.logger.record(f"train/{name}", mean)
        self.logger.record("train/loss", float(losses[-1][3].detach()))
        last = torch.cat(log_ratios)
        outside = (last.exp() - 1.0).abs() > clip_range
        self.logger.record("train/clip_fraction", float(outside.float().mean()))
        self.logger.record("train/approx_kl", _divergence(last))
        values, returns = self.rollout_buffer.values, self.rollout_buffer.returns
        explained = explained_variance(values.flatten(), returns.flatten())
        self.logger.record("train/explained_variance", float(np.asarray(explained)))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.detach().exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        """Only an episode that ended has anything to say."""
        for e in np.flatnonzero(dones):
            self.ep_info_buffer.append(infos[e]["episode"])  # type: ignore[union-attr]


def _divergence(log_ratio: torch.Tensor) -> float:
    """Approximate Kullback-Leibler divergence (Schulman, "Approximating KL divergence", 2020)."""
    return float((log_ratio.exp() - 1.0 - log_ratio).mean())
