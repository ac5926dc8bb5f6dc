import json
import math
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from polars.testing import assert_frame_equal
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline.training.action_spaces import (
    action_specification,
    choices_of_number,
    with_actions_of,
)
from trade_pipeline.training.diagnostics import (
    LAST_ROWS,
    Diagnostics,
    GradientNorms,
    action_histograms,
    action_shares,
    tensorboard_writer,
    warnings_of,
)
from trade_pipeline.training.pictures import BLUE, ORANGE, action_mix_png, learning_curve_png
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")
BRACKETS = {"kind": "multi_discrete", "nvec": [4, 2, 1, 1]}
WEIGHTS = {"kind": "box", "low": [-1.0, -1.0], "high": [1.0, 1.0]}
ON_POLICY: dict[str, Any] = {"n_steps": 32, "learning_rate": 1e-3, "ent_coef": 0.01}
PPO_SETTINGS: dict[str, Any] = {**ON_POLICY, "batch_size": 128, "n_epochs": 4}


class Watch(BaseCallback):
    """Records what the trainer records, of each rollout."""

    def __init__(self, diagnostics: Diagnostics, action: dict[str, Any]) -> None:
        super().__init__()
        self.diagnostics, self.action = diagnostics, action
        self.taken: list[np.ndarray] = []

    def _on_training_start(self) -> None:
        self.gradients = GradientNorms(self.model.policy)

    def _on_step(self) -> bool:
        actions = np.asarray(self.locals.get("clipped_actions", self.locals["actions"]))
        if self.action["kind"] == "discrete":
            actions = choices_of_number(actions, np.array(self.action["nvec"]))
        self.taken.append(actions)
        return True

    def _on_rollout_end(self) -> None:
        if len(self.taken) >= 32:
            for name, share in action_shares(np.array(self.taken), self.action).items():
                self.diagnostics.record(self.num_timesteps, name, share)
            self.taken = []
        for name, norm in self.gradients.take().items():
            self.diagnostics.record(self.num_timesteps, name, norm)


def learn(
    algorithm: type[Any],
    keys: tuple[str, ...] = ONE,
    frames: int = 512 * 9,
    reward_scale: float = 100.0,
    watch: bool = True,
    **settings: Any,
) -> tuple[Any, Diagnostics]:
    """A small real training on the made-up market; 16 environments."""
    torch.set_num_threads(1)
    dataset, environment = synthetic.dataset(keys), synthetic.experiment(keys).environment
    features = dataset.features.reshape(len(dataset.features), -1)
    environments = TradingVecEnv(
        dataset.market,
        np.ascontiguousarray(100 * features),
        dataset.folds[0].train,
        environment,
        environments=16,
        seed=0,
        reward_scale=reward_scale,
    )
    action = action_specification(algorithm.__name__.lower(), environments.mapping)
    model = algorithm(
        "MultiInputPolicy",
        with_actions_of(environments, action),
        policy_kwargs={"net_arch": [16, 16], **settings.pop("policy_kwargs", {})},
        seed=0,
        device="cpu",
        **settings,
    )
    diagnostics = Diagnostics()
    model.set_logger(Logger(folder=None, output_formats=[diagnostics]))
    model.learn(frames, Watch(diagnostics, action) if watch else None, log_interval=1)
    return model, diagnostics


@cache
def healthy(keys: tuple[str, ...] = ONE) -> tuple[Any, Diagnostics]:
    return learn(PPO, keys, **PPO_SETTINGS)


def recorded(rows: dict[str, list[float]]) -> Diagnostics:
    """One row each 100 frames."""
    diagnostics = Diagnostics()
    for name, values in rows.items():
        for number, value in enumerate(values, 1):
            diagnostics.record(100 * number, name, value)
    return diagnostics


def test_rows_are_frames_in_order_with_columns_by_name_and_null_where_nothing_was_taken() -> None:
    diagnostics = Diagnostics()
    diagnostics.record(200, "validation_return", 0.5)
    logged = {"train/loss": np.float32(2.0), "rollout/ep_rew_mean": 1, "action/at_bound": 0.25}
    ignored = {"time/fps": 3, "train/note": "text", "train/explained_variance": math.nan}
    diagnostics.write(logged | ignored, {}, 100)
    diagnostics.record(100, "validation_return", None)
    expected = pl.DataFrame(
        {
            "frames": [100, 200],
            "action/at_bound": [0.25, None],
            "ep_rew_mean": [1.0, None],
            "loss": [2.0, None],
            "validation_return": [None, 0.5],
        },
        schema_overrides={"ep_rew_mean": pl.Float64},
    )
    assert_frame_equal(diagnostics.frame(), expected)


def test_rows_go_through_a_checkpoint_as_strict_json() -> None:
    _, diagnostics = healthy()
    diagnostics.record(600, "odd", math.nan)
    diagnostics.record(700, "odd", -math.inf)
    text = json.dumps(diagnostics.state(), allow_nan=False)
    restored = Diagnostics.restored(json.loads(text))
    assert_frame_equal(restored.frame(), diagnostics.frame(), check_exact=True)
    for row in diagnostics.rows.values():
        row.pop("odd", None)


def norms_by_hand(network: nn.Module, data: torch.Tensor) -> dict[str, float]:
    gradients = torch.autograd.grad((network(data) ** 2).sum(), list(network.parameters()))
    squares = [float((gradient**2).sum()) for gradient in gradients]
    return {
        "gradient_norm/0": math.sqrt(squares[0] + squares[1]),
        "gradient_norm/2": math.sqrt(squares[2] + squares[3]),
    }


def backward(network: nn.Module, data: torch.Tensor) -> None:
    network.zero_grad()
    (network(data) ** 2).sum().backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)


def test_gradient_norms_are_those_before_clipping_by_layer() -> None:
    torch.manual_seed(0)
    network, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    norms = GradientNorms(network)
    backward(network, data)
    assert norms.take() == pytest.approx(norms_by_hand(network, data), rel=1e-6)
    assert norms.take() == {}
    norms.close()
    backward(network, data)
    assert norms.take() == {}


def test_gradient_norms_are_means_of_the_first_pass_and_every_kth_after_it() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    passes = torch.randn(7, 5, 3)
    norms = GradientNorms(network, every=3)
    for _ in range(2):  # counted anew after each take
        for data in passes:
            backward(network, data)
        by_hand = [norms_by_hand(network, passes[number]) for number in (0, 3, 6)]
        mean = {name: np.mean([norm[name] for norm in by_hand]) for name in by_hand[0]}
        assert norms.take() == pytest.approx(mean, rel=1e-6)


def test_what_an_actors_loss_leaves_in_the_critic_is_no_gradient_of_the_critic() -> None:
    torch.manual_seed(0)
    critic, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    norms = GradientNorms(critic, every=1)
    backward(critic, data)
    critic(data).mean().backward()  # as SAC's actor does, without zero_grad
    assert norms.take() == pytest.approx(norms_by_hand(critic, data), rel=1e-6)


def test_watching_a_training_changes_no_bit_of_it() -> None:
    watched, diagnostics = healthy()
    alone, _ = learn(PPO, watch=False, **PPO_SETTINGS)
    assert any(name.startswith("gradient_norm/") for name in diagnostics.names())
    states = watched.policy.state_dict(), alone.policy.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_the_layers_of_an_algorithms_policy_are_named_once() -> None:
    _, diagnostics = healthy(TWO)
    layers = {n.partition("/")[2] for n in diagnostics.names() if n.startswith("gradient_norm/")}
    halves = ("policy_net.0", "policy_net.2", "value_net.0", "value_net.2")
    assert layers == {"log_std", "action_net", "value_net", *(f"mlp_extractor.{n}" for n in halves)}


def test_shares_of_choices_by_the_names_people_use() -> None:
    actions = np.array([[[2, 1, 0, 0], [2, 0, 0, 0]], [[0, 1, 0, 0], [2, 1, 0, 0]]])
    assert action_shares(actions, BRACKETS) == {
        "action/direction_hold": 0.25,
        "action/direction_flat": 0.0,
        "action/direction_long": 0.75,
        "action/direction_short": 0.0,
        "action/size_0": 0.25,
        "action/size_1": 0.75,
        "action/stop_loss_0": 1.0,
        "action/take_profit_0": 1.0,
    }
    assert action_shares(actions[:0], BRACKETS) == {}


def test_weights_are_described_as_the_environment_takes_them() -> None:
    actions = np.array([[0.5, -3.0], [-0.5, 0.0]], np.float32)  # -3 is cut to the bound
    assert action_shares(actions, WEIGHTS) == {
        "action/weight_mean_0": 0.0,
        "action/weight_mean_1": -0.5,
        "action/weight_absolute_0": 0.5,
        "action/weight_absolute_1": 0.5,
        "action/weight_deviation_0": 0.5,
        "action/weight_deviation_1": 0.5,
        "action/at_bound": 0.25,
    }


@pytest.mark.parametrize("keys", [ONE, TWO], ids=["brackets", "weights"])
def test_a_healthy_training_raises_no_alarm(keys: tuple[str, ...]) -> None:
    _, diagnostics = healthy(keys)
    diagnostics.record(4608, "validation_fills", 7)
    assert {"approx_kl", "explained_variance", "gradient_norm/value_net"} <= {*diagnostics.names()}
    assert warnings_of(diagnostics) == {}


def test_a_learning_rate_that_ruins_a_policy_is_seen_as_runaway_and_collapse() -> None:
    _, diagnostics = learn(PPO, **{**PPO_SETTINGS, "learning_rate": 0.3, "ent_coef": 0.0})
    found = warnings_of(diagnostics)
    assert "approx_kl is" in found["kl_runaway"]
    assert "learning_rate" in found["kl_runaway"]
    assert "% of all directions are" in found["collapsed"]
    assert "up to 4608 frames" in found["collapsed"]


def test_weights_that_never_change_are_a_collapse() -> None:
    still = {**PPO_SETTINGS, "learning_rate": 1e-6, "policy_kwargs": {"log_std_init": -6.0}}
    _, diagnostics = learn(PPO, TWO, **still)
    assert "no weight deviates" in warnings_of(diagnostics)["collapsed"]


def test_a_gradient_that_explodes_is_named_with_its_layer() -> None:
    _, diagnostics = learn(A2C, **{**ON_POLICY, "max_grad_norm": 1e9}, reward_scale=1e6)
    sentence = warnings_of(diagnostics)["exploding_gradient"]
    assert "value_net" in sentence
    assert "reward_scale" in sentence


def test_a_jump_of_the_gradient_is_measured_by_what_was_usual() -> None:
    calm = [0.02, 0.03, 0.02, 0.04, 0.03]
    jumped = recorded({"gradient_norm/trunk.layers.0": [*calm, 5.0]})
    assert (
        "trunk.layers.0 is 5 after 600 frames, 0.03 before"
        in (warnings_of(jumped)["exploding_gradient"])
    )
    tiny = [norm / 1e6 for norm in calm]
    assert warnings_of(recorded({"gradient_norm/action": [*tiny, 0.5]})) == {}
    assert warnings_of(recorded({"gradient_norm/action": [*calm, 2.0]})) == {}


def test_losses_that_are_no_numbers_are_named_at_their_first_row() -> None:
    _, diagnostics = learn(
        DQN, frames=2_000, learning_starts=500, learning_rate=1e30, batch_size=32
    )
    sentence = warnings_of(diagnostics)["not_finite"]
    first = next(at for at, _, value in diagnostics if not math.isfinite(value))
    assert sentence.startswith("not a number: ")
    assert f"after {first} frames" in sentence


def test_a_value_function_worse_than_none_is_named() -> None:
    _, diagnostics = learn(PPO, **{**PPO_SETTINGS, "n_epochs": 1}, reward_scale=1e-6)
    sentence = warnings_of(diagnostics)["explained_variance"]
    assert "raise reward_scale" in sentence


def test_no_trades_counts_at_the_last_look_only() -> None:
    assert "after 200 frames" in (warnings_of(recorded({"validation_fills": [3, 0]}))["no_trades"])
    assert warnings_of(recorded({"validation_fills": [0, 3]})) == {}


def test_a_divergence_is_a_runaway_beyond_one_and_a_half_times_its_target() -> None:
    lasting = recorded({"approx_kl": [0.02] * LAST_ROWS})
    assert warnings_of(lasting) == {}
    assert "0.015 is much" in warnings_of(lasting, target_kl=0.01)["kl_runaway"]
    once = recorded({"approx_kl": [0.01, 0.2, 0.01, 0.01, 0.01, 0.01]})
    assert warnings_of(once) == {}


def test_what_dqn_does_at_random_does_not_hide_a_collapse() -> None:
    explored = {"exploration_rate": [0.2] * LAST_ROWS}
    others = {f"action/direction_{name}": [0.05] * LAST_ROWS for name in ("hold", "flat", "long")}
    collapsed = recorded({**explored, **others, "action/direction_short": [0.85] * LAST_ROWS})
    assert "short" in warnings_of(collapsed)["collapsed"]
    varied = recorded({**explored, **others, "action/direction_short": [0.80] * LAST_ROWS})
    assert warnings_of(varied) == {}


def test_a_collapse_that_was_left_again_is_no_alarm() -> None:
    left = recorded({"action/direction_long": [*[1.0] * LAST_ROWS, 0.4]})
    assert warnings_of(left) == {}


def test_no_entropy_is_a_collapse_of_choices_and_means_nothing_for_weights() -> None:
    assert (
        "entropy is 0.001"
        in (warnings_of(recorded({"entropy_loss": [-0.001] * LAST_ROWS}))["collapsed"])
    )
    gaussian = {"entropy_loss": [-0.001] * LAST_ROWS, "std": [0.24] * LAST_ROWS}
    assert warnings_of(recorded(gaussian)) == {}


def test_tensorboard_has_the_rows_before_a_resume_and_all_after_it(tmp_path: Path) -> None:
    before = recorded({"approx_kl": [0.5, 0.25], "validation_return": [0.125]})
    resumed = Diagnostics.restored(before.state())
    writer = tensorboard_writer(str(tmp_path), resumed)
    logger = Logger(folder=None, output_formats=[resumed, writer])
    logger.record("train/approx_kl", 0.75)
    logger.record("rollout/ep_rew_mean", 1.5)
    logger.dump(300)
    resumed.record(300, "gradient_norm/trunk.layers.0", 2.0)
    actions = np.array([[2, 1, 0, 0]] * 3 + [[0, 0, 0, 0]])
    writer.add(300, action_histograms(actions, BRACKETS))
    writer.add(300, action_histograms(np.array([[0.5, -0.5]]), WEIGHTS))
    logger.close()

    written = EventAccumulator(str(tmp_path))
    written.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in written.Scalars(tag)]
        for tag in written.Tags()["scalars"]
    }
    assert scalars == {
        "train/approx_kl": [(100, 0.5), (200, 0.25), (300, 0.75)],
        "validation/return": [(100, 0.125)],
        "rollout/ep_rew_mean": [(300, 1.5)],
        "gradient_norm/trunk.layers.0": [(300, 2.0)],
    }
    parts = {"direction", "size", "stop_loss", "take_profit", "weight_0", "weight_1"}
    assert set(written.Tags()["histograms"]) == {f"action/{part}" for part in parts}
    (event,) = written.Histograms("action/direction")
    counts = dict(
        zip(event.histogram_value.bucket_limit, event.histogram_value.bucket, strict=True)
    )
    assert {limit: n for limit, n in counts.items() if n} == {0.5: 1.0, 2.5: 3.0}


def test_weights_are_counted_in_bins_of_their_own_bounds() -> None:
    bounds = {"kind": "box", "low": [-1.0, 0.0, 0.0], "high": [1.0, 1.0, 3.0]}
    weights = np.random.default_rng(0).normal(0.5, 1.0, (7, 11, 3)).astype(np.float32)
    flat = np.clip(weights.reshape(-1, 3).astype(np.float64), bounds["low"], bounds["high"])
    for number, found in enumerate(action_histograms(weights, bounds)):
        histogram, values = found.histo, flat[:, number]
        counts, edges = np.histogram(values, 30, (bounds["low"][number], bounds["high"][number]))
        assert found.tag == f"action/weight_{number}"
        assert list(histogram.bucket) == [0, *counts]
        np.testing.assert_allclose(histogram.bucket_limit, edges)
        assert (histogram.min, histogram.max, histogram.num) == (min(values), max(values), 77)
        assert histogram.sum == pytest.approx(values.sum())
        assert histogram.sum_squares == pytest.approx((values**2).sum())


def pixels(picture: bytes, color: str) -> np.ndarray:
    """Columns of the pixels of a colour."""
    image = np.asarray(Image.open(BytesIO(picture)).convert("RGB"), np.int64)
    wanted = np.round(255 * np.array(to_rgb(color)))
    return np.nonzero((image == wanted).all(axis=2))[1]


def test_the_best_look_is_marked_where_it_was() -> None:
    early = recorded({"validation_return": [0.0, 0.3, 0.1, 0.1, 0.1]}).frame()
    late = recorded({"validation_return": [0.0, 0.1, 0.1, 0.1, 0.3]}).frame()
    columns = [pixels(learning_curve_png(frame, "$x"), ORANGE) for frame in (early, late)]
    assert columns[0].max() < 500 < columns[1].min()


def test_the_mix_of_actions_has_areas_of_their_shares() -> None:
    shares = {"long": 0.75, "short": 0.25, "hold": 0.0, "flat": 0.0}
    rows = {f"action/direction_{name}": [share] * 2 for name, share in shares.items()}
    picture = action_mix_png(recorded(rows).frame(), "mix")
    long, short = (np.count_nonzero(pixels(picture, color) < 750) for color in (BLUE, ORANGE))
    # The legend lies to the right; the frame hides a line of the upper area.
    assert long / short == pytest.approx(3.0, rel=0.08)


def test_pictures_of_a_training_are_small_and_repeat_to_the_byte() -> None:
    for draw in (learning_curve_png, action_mix_png):
        picture = draw(healthy()[1].frame(), "demo $x_1$ <i>")
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 150_000
        assert draw(healthy()[1].frame(), "demo $x_1$ <i>") == picture


def test_pictures_are_drawn_of_portfolios_odd_values_and_nothing() -> None:
    means = {f"action/weight_mean_{number}": [0.1, number / 30] for number in range(30)}
    portfolio = recorded({**means, "action/at_bound": [0.5, 0.6], "loss": [1.0, math.inf]})
    odd = recorded({"loss": [math.nan], "ep_rew_mean": [1.0], "validation_return": [-math.inf]})
    for diagnostics in (portfolio, odd, Diagnostics()):
        assert learning_curve_png(diagnostics.frame(), "curve").startswith(b"\x89PNG")
        assert action_mix_png(diagnostics.frame(), "mix").startswith(b"\x89PNG")
