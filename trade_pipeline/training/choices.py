"""The distribution over several discrete choices, in a handful of tensor operations.

SB3 keeps one `Categorical` a choice; for small networks those cost more than the network. Same
probabilities, all choices at once.
"""

from typing import Any

import torch
from stable_baselines3.common.distributions import Distribution, MultiCategoricalDistribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy


class Choices(MultiCategoricalDistribution):
    """Independent choices; logits [B, L] hold those of each choice after one another."""

    def __init__(self, counts: list[int]) -> None:
        super().__init__(counts)
        parts, longest, total = len(counts), max(counts), sum(counts)
        starts = [sum(counts[:part]) for part in range(parts)]
        self._starts = torch.tensor(starts)
        # Column of each choice's options, shorter choices filled up with their first option.
        self._options = torch.tensor(
            [
                [start + (option if option < count else 0) for option in range(longest)]
                for start, count in zip(starts, counts, strict=True)
            ]
        )
        self._is_option = torch.tensor(
            [[option < count for option in range(longest)] for count in counts]
        )
        self._part_of = torch.zeros(parts, total)
        for part, (start, count) in enumerate(zip(starts, counts, strict=True)):
            self._part_of[part, start : start + count] = 1.0
        self._logits: torch.Tensor
        self._log_sums: torch.Tensor

    def proba_distribution(self, action_logits: torch.Tensor) -> "Choices":
        """Take logits [B, L]; what they have in common within a choice is taken off."""
        with torch.no_grad():
            largest = action_logits[:, self._options].amax(2)
        self._logits = action_logits - largest @ self._part_of
        self._weights = self._logits.exp()
        self._sums = self._weights @ self._part_of.T
        self._log_sums = self._sums.log()
        return self

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Log probability [B] of choices [B, parts]."""
        chosen = self._logits.gather(1, actions.long() + self._starts)
        return (chosen - self._log_sums).sum(1)

    def entropy(self) -> torch.Tensor:
        """Entropy [B] of all choices together."""
        expected = (self._weights * self._logits) @ self._part_of.T / self._sums
        return (self._log_sums - expected).sum(1)

    def sample(self) -> torch.Tensor:
        """Choices [B, parts], drawn by the Gumbel-max rule."""
        logits = self._logits.detach()
        drawn = logits - torch.empty_like(logits).exponential_().log()
        return self._best(drawn)

    def mode(self) -> torch.Tensor:
        """The likeliest choices [B, parts]; of equals the first."""
        return self._best(self._logits)

    def _best(self, values: torch.Tensor) -> torch.Tensor:
        options = values[:, self._options].masked_fill(~self._is_option, -torch.inf)
        return options.argmax(2)


class ChoicesPolicy(MultiInputActorCriticPolicy):
    """SB3's policy for dictionary observations, without its detours.

    Actions that are choices are drawn from `Choices`; observations go to the features extractor as
    they are, and its features to the last maps.
    """

    def _build(self, lr_schedule: Any) -> None:
        if isinstance(self.action_dist, MultiCategoricalDistribution):
            self.action_dist = Choices([int(count) for count in self.action_dist.action_dims])
        super()._build(lr_schedule)

    def forward(
        self, obs: Any, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions, values [B, 1] and log probabilities [B]."""
        values, distribution = self._look(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Any, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Values [B, 1], log probabilities and entropies [B] of given actions."""
        values, distribution = self._look(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def _look(self, obs: Any) -> tuple[torch.Tensor, Distribution]:
        """Values and the distribution of actions; `net_arch` is empty, so features are latents."""
        features = self.pi_features_extractor(obs)
        seen = features if self.share_features_extractor else self.vf_features_extractor(obs)
        return self.value_net(seen), self._get_action_dist_from_latent(features)
