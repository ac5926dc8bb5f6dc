from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.training.action_spaces import choices_of_box, choices_of_number
from trade_pipeline.training.compiled_network import CompiledNetwork, weight_shapes
from trade_pipeline.training.inference import ACTION_KINDS, Choosing, choose, tanh_of_each
from trade_pipeline.training.networks import PolicyNetwork, network_specification
from trade_pipeline_tests.training import untrained

Arrays = tuple[np.ndarray, np.ndarray]


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    """The `network` part of a specification, of any kind and small sizes."""
    kind = draw(st.sampled_from(["mlp", "cnn", "lstm"]))
    window, instruments = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    network: dict[str, Any] = {
        "kind": kind,
        "hidden": draw(st.lists(st.integers(1, 19), min_size=1, max_size=3)),
        "activation": draw(st.sampled_from(["tanh", "relu"])),
    }
    if kind == "cnn":
        network["kernel"] = draw(st.integers(1, window))
        most = 3 if network["kernel"] == 1 else min(3, (window - 1) // (network["kernel"] - 1))
        sizes = st.lists(st.integers(1, 9), min_size=1, max_size=max(most, 1))
        network["channels"] = draw(sizes)
    if kind == "lstm":
        network["size"] = draw(st.integers(1, 18))
    return network_specification(
        untrained.network_of(network),
        window,
        columns=instruments * draw(st.integers(1, 4)),
        instruments=instruments,
        outputs=draw(st.integers(1, 11)),
    )


def both(spec: dict[str, Any], seed: int) -> tuple[CompiledNetwork, PolicyNetwork]:
    network = untrained.network({"network": spec}, seed)
    return CompiledNetwork(spec, untrained.weights_of(network)), network


def seen(spec: dict[str, Any], count: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    window = rng.normal(size=(count, spec["window"] * spec["columns"]))
    account = rng.normal(size=(count, len(spec["account_scale"])))
    return window.astype(np.float32), account.astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(spec=networks(), seed=st.integers(0, 2**31))
def test_compiled_outputs_are_torchs_within_a_millionth(spec: dict[str, Any], seed: int) -> None:
    ours, theirs = both(spec, seed)
    memory, states = ours.memory(4), None
    for step in range(3):
        window, account = seen(spec, 4, seed + step)
        with torch.no_grad():
            wanted, states = theirs(torch.from_numpy(window), torch.from_numpy(account), states)
        found = ours.forward(window, account, memory)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-6)
    if states is not None:
        remembered = np.concatenate([state[0].numpy() for state in states], axis=1)
        np.testing.assert_allclose(memory, remembered, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(spec=networks(), seed=st.integers(0, 2**31), count=st.integers(1, 9))
def test_a_batch_gives_the_bits_of_each_observation_alone(
    spec: dict[str, Any], seed: int, count: int
) -> None:
    ours, _ = both(spec, seed)
    together = ours.memory(count)
    apart = [ours.memory(1) for _ in range(count)]
    for step in range(2):
        window, account = seen(spec, count, seed + step)
        batch = ours.forward(window, account, together)
        alone = [
            ours.forward(window[e : e + 1], account[e : e + 1], apart[e]) for e in range(count)
        ]
        assert batch.tobytes() == np.concatenate(alone).tobytes()
    assert together.tobytes() == np.concatenate(apart).tobytes()


@settings(deadline=None, max_examples=20)
@given(
    spec=networks().filter(lambda spec: spec["kind"] == "mlp" and spec["activation"] == "relu"),
    seed=st.integers(0, 2**31),
)
def test_sums_are_taken_in_the_order_of_the_inputs(spec: dict[str, Any], seed: int) -> None:
    """Every product and sum rounded to float32, one after another: no fused or reordered sums."""
    ours, network = both(spec, seed)
    weights = untrained.weights_of(network)
    window, account = seen(spec, 1, seed)
    values = [*window[0], *(account[0] * np.array(spec["account_scale"], np.float32))]
    names = [f"trunk.layers.{2 * stage}" for stage in range(len(spec["hidden"]))]
    for name in [*names, "action"]:
        sums = []
        for row, total in zip(weights[f"{name}.weight"], weights[f"{name}.bias"], strict=True):
            for weight, value in zip(row, values, strict=True):
                total = np.float32(total + np.float32(weight * value))
            sums.append(total if name == "action" else max(total, np.float32(0)))
        values = sums
    found = ours.forward(window, account, ours.memory(1))
    assert found.tobytes() == np.array([values], np.float32).tobytes()


def test_the_hyperbolic_tangent_is_rounded_correctly_almost_everywhere() -> None:
    at = np.concatenate([np.linspace(-12, 12, 40_001), [1e-30, -1e30, np.inf, -np.inf, 0.0]])
    found = at.astype(np.float32)
    exact = np.tanh(found.astype(np.float64))
    tanh_of_each(found)
    np.testing.assert_allclose(found, exact, rtol=1.2e-7)
    assert (found == exact.astype(np.float32)).mean() > 0.95
    assert found[-5:].tolist() == [np.float32(1e-30), -1.0, 1.0, -1.0, 0.0]
    nothing = np.array([np.nan], np.float32)
    tanh_of_each(nothing)
    assert np.isnan(nothing[0])


def chosen(kind: str, outputs: np.ndarray, **parts: Any) -> np.ndarray:
    choosing = Choosing(
        ACTION_KINDS.index(kind),
        np.array(parts.get("nvec", []), np.int64),
        np.array(parts.get("low", []), np.float32),
        np.array(parts.get("high", []), np.float32),
    )
    choices = np.zeros(len(choosing.counts), np.int64)
    weights = np.zeros(len(choosing.low), np.float32)
    assert choose(choosing, outputs, choices, weights)
    return choices if len(choices) else weights


COUNTS = st.lists(st.integers(1, 5), min_size=4, max_size=4)


@given(nvec=COUNTS, seed=st.integers(0, 999))
def test_choices_are_the_likeliest_of_each_part_and_the_first_wins_ties(
    nvec: list[int], seed: int
) -> None:
    outputs = np.random.default_rng(seed).integers(-1, 2, sum(nvec)).astype(np.float32)
    parts = np.split(outputs, np.cumsum(nvec)[:-1])
    found = chosen("multi_discrete", outputs, nvec=nvec)
    assert found.tolist() == [int(part.argmax()) for part in parts]


@given(nvec=COUNTS, seed=st.integers(0, 999))
def test_a_number_counts_combinations_as_the_learning_environment_does(
    nvec: list[int], seed: int
) -> None:
    outputs = np.random.default_rng(seed).normal(size=np.prod(nvec)).astype(np.float32)
    best = np.array([outputs.argmax()])
    found = chosen("discrete", outputs, nvec=nvec)
    assert found.tolist() == choices_of_number(best, np.array(nvec))[0].tolist()


@given(nvec=COUNTS, seed=st.integers(0, 999))
def test_bins_are_those_of_the_learning_environment(nvec: list[int], seed: int) -> None:
    outputs = np.random.default_rng(seed).normal(0, 3, 4).astype(np.float32)
    outputs[seed % 4] *= 1e9
    squashed = outputs.copy()
    tanh_of_each(squashed)
    found = chosen("binned", outputs, nvec=nvec)
    assert found.tolist() == choices_of_box(squashed[None], np.array(nvec))[0].tolist()


@pytest.mark.parametrize("kind", ["box", "squashed_box"])
@given(instruments=st.integers(1, 5), seed=st.integers(0, 999))
def test_weights_stay_within_their_bounds_and_are_stretched_as_sb3_does(
    kind: str, instruments: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, 2, instruments).astype(np.float32)
    low = -rng.random(instruments).astype(np.float32)
    high = rng.random(instruments).astype(np.float32)
    wanted = outputs.copy()
    if kind == "squashed_box":
        tanh_of_each(wanted)
        # As SB3's `unscale_action` stretches to the bounds.
        wanted = low + np.float32(0.5) * (wanted + np.float32(1.0)) * (high - low)
    found = chosen(kind, outputs, low=low, high=high)
    assert found.dtype == np.float32
    assert found.tolist() == np.clip(wanted, low, high).tolist()


@pytest.mark.parametrize("kind", ACTION_KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_reported(kind: str, value: float) -> None:
    outputs = np.full(8, value, np.float32)
    counts, bounds = np.full(4, 2, np.int64), np.ones(8, np.float32)
    if "box" in kind:
        counts = counts[:0]
    choosing = Choosing(ACTION_KINDS.index(kind), counts, -bounds, bounds)
    assert not choose(choosing, outputs, np.zeros(4, np.int64), np.zeros(8, np.float32))


@pytest.mark.parametrize("kind", sorted(untrained.NETWORKS))
def test_the_weights_asked_for_are_those_of_the_torch_network(kind: str) -> None:
    network = untrained.network_of(untrained.NETWORKS[kind])
    spec = network_specification(network, 4, columns=2, instruments=1, outputs=3)
    theirs = untrained.weights_of(PolicyNetwork(spec))
    assert {name: array.shape for name, array in theirs.items()} == weight_shapes(spec)


def test_shapes_that_do_not_fit_are_refused() -> None:
    network = untrained.network_of(untrained.NETWORKS["lstm"])
    spec = network_specification(network, 4, columns=2, instruments=1, outputs=3)
    ours, _ = both(spec, 0)
    window, account = seen(spec, 2, 0)
    with pytest.raises(ValueError, match=r"memory is float32 \[1, 12\]; float32 \[2, 12\]"):
        ours.forward(window, account, ours.memory(1))
    with pytest.raises(ValueError, match=r"window is float64 \[2, 8\]"):
        ours.forward(window.astype(np.float64), account, ours.memory(2))
    with pytest.raises(ValueError, match=r"account is float32 \[2, 5\]"):
        ours.forward(window, account[:, 1:], ours.memory(2))
