"""Functions of our own are those of mathematics, and softmax is torch's."""

import numpy as np
import pytest
import torch

from trade_pipeline.training.distributions import (
    exponential,
    log_probs_of_choices,
    logarithm,
    ratio_of,
    softmax_of_choices,
)


def test_powers_of_e_and_logarithms_are_those_of_a_library() -> None:
    below = np.concatenate([np.linspace(-20, 0, 20_001), -np.logspace(-12, 0, 1_001)])
    found = np.array([exponential(x) for x in below])
    np.testing.assert_allclose(found, np.exp(below), rtol=1e-8)
    assert exponential(-200.0) < 1e-34

    around = np.linspace(-20, 20, 20_001)
    ratios = np.array([ratio_of(x) for x in around])
    np.testing.assert_allclose(ratios, np.exp(around), rtol=1e-8)
    assert 1e34 < ratio_of(1e9) < np.inf

    above = np.concatenate([np.linspace(1, 100, 20_001), 1 + np.logspace(-12, 0, 1_001)])
    logarithms = np.array([logarithm(x) for x in above])
    np.testing.assert_allclose(logarithms, np.log(above), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("samples", [1, 7, 300])
def test_softmax_of_choices_is_torchs_however_far_logits_lie_apart(samples: int) -> None:
    counts = np.array([4, 1, 3])
    random = np.random.default_rng(samples)
    logits = (random.normal(size=(samples, 8)) * np.logspace(-3, 2.5, samples)[:, None]).astype("f")
    actions = random.integers(0, counts, (samples, 3)).astype(np.float32)
    log_shares, shares = np.empty((2, 8, samples), np.float32)
    softmax_of_choices(counts, logits, log_shares, shares, np.empty(samples))
    log_probs = np.empty(samples)
    log_probs_of_choices(counts, log_shares, actions, log_probs)
    expected = 0.0
    for part, (start, end) in enumerate([(0, 4), (4, 5), (5, 8)]):
        exact = torch.log_softmax(torch.from_numpy(logits[:, start:end]).double(), 1).numpy()
        np.testing.assert_allclose(log_shares[start:end].T, exact, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shares[start:end].T, np.exp(exact), rtol=1e-5, atol=1e-7)
        taken = actions[:, part].astype(int)
        expected = expected + exact[np.arange(samples), taken]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-6)
