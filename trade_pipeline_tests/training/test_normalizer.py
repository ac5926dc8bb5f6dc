"""How features are scaled, against scipy, scikit-learn and the standard library."""

import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm, rankdata
from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.normalizer import AccountStatistics, Normalizer
from trade_pipeline.training.onnx_export import write_onnx
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline.training.policy_documents import MOST_DOCUMENT_BYTES, PolicyError
from trade_pipeline.training.sb3_export import write_sb3
from trade_pipeline.training.trainer import train
from trade_pipeline.training.validation import evaluate
from trade_pipeline_tests.training import synthetic, untrained

SCALINGS = ("none", "standard", "robust", "rank")
ROWS = 5_000


def spread(name: str, rows: int = ROWS) -> np.ndarray:
    """A feature as trading has them, float32 [rows]."""
    rng = np.random.default_rng(11)
    made: dict[str, Callable[[], np.ndarray]] = {
        "normal": lambda: rng.normal(3, 2, rows),
        "heavy tails": lambda: rng.standard_t(2, rows) * 0.01,
        "skewed": lambda: np.exp(3 * rng.normal(size=rows)),
        "mostly zero": lambda: np.where(rng.random(rows) < 0.4, 0, rng.normal(size=rows)),
        "bounded": lambda: np.sin(np.arange(rows) / 7),
        "an outlier": lambda: np.r_[rng.normal(size=rows - 1), 1e30],
    }
    return made[name]().astype(np.float32)


SPREADS = ("normal", "heavy tails", "skewed", "mostly zero", "bounded", "an outlier")


def whole(column: np.ndarray) -> np.ndarray:
    return np.array([[0, len(column)]])


def fitted(column: np.ndarray, scaling: str) -> Normalizer:
    return Normalizer.fit(column.reshape(-1, 1, 1), whole(column), scaling)


def scaled(column: np.ndarray, scaling: str) -> np.ndarray:
    found = fitted(column, scaling).transform(column.reshape(-1, 1, 1))
    assert found.dtype == np.float32
    return found[:, 0].astype(np.float64)


def some_features(rows: int = 300) -> np.ndarray:
    """float32 [rows, 2, 3], the last feature constant."""
    made = np.random.default_rng(5).standard_t(3, (rows, 2, 3)).astype(np.float32)
    made[:, :, 2] = 0.3
    return made


def test_documents_of_standard_and_none_keep_the_bytes_that_stored_policies_have() -> None:
    features = np.array([1, 2, 4, 9, 0.1, 0.1, 0.1, 0.1], np.float32).reshape(2, 4, 1, 1)[:, :, 0]
    features = features.transpose(1, 2, 0)
    standard = Normalizer.fit(features, np.array([[0, 4]]), "standard")
    assert canonical_json(standard.document()) == (
        '{"account":null,"mean":[[4.0,0.10000000149011612]],"std":[[3.082206964492798,1.0]]}'
    )
    none = Normalizer.fit(features, np.array([[0, 4]]), "none")
    assert canonical_json(none.document()) == (
        '{"account":null,"mean":[[0.0,0.0]],"std":[[1.0,1.0]]}'
    )


@pytest.mark.parametrize("name", SPREADS[:-1])
def test_standard_and_robust_are_those_of_scikit_learn(name: str) -> None:
    column = spread(name)
    exact = column.astype(np.float64).reshape(-1, 1)
    standard = StandardScaler().fit_transform(exact)[:, 0]
    np.testing.assert_allclose(scaled(column, "standard"), standard, rtol=1e-5, atol=2e-6)
    robust = RobustScaler().fit_transform(exact)[:, 0] * 1.349
    np.testing.assert_allclose(scaled(column, "robust"), robust, rtol=1e-5, atol=2e-6)


@given(arrays(np.float32, st.integers(2, 40), elements=st.integers(-50, 50)))
def test_robust_is_median_and_quartiles_where_these_differ(column: np.ndarray) -> None:
    low, median, high = statistics.quantiles(column.tolist(), n=4, method="inclusive")
    made = fitted(column, "robust")
    assert made.mean.item() == np.float32(median)
    deviation = (high - low) / 1.349 or statistics.pstdev(column.tolist()) or 1.0
    np.testing.assert_allclose(made.std.item(), deviation, rtol=1e-6)


def test_robust_falls_back_to_the_deviation_and_then_to_centring_alone() -> None:
    rare = np.zeros(100, np.float32)
    rare[:10] = 5.0
    assert fitted(rare, "robust").mean.item() == 0.0
    np.testing.assert_allclose(fitted(rare, "robust").std.item(), 1.5)
    for constant in (0.0, 0.3, -7e8):
        made = fitted(np.full(100, constant, np.float32), "robust")
        assert (made.mean.item(), made.std.item()) == (np.float32(constant), 1.0)
    rounding = np.float32(1000) + np.arange(100, dtype=np.float32) % 2 * np.float32(6e-5)
    assert len(set(rounding.tolist())) == 2
    assert fitted(rounding, "robust").std.item() == 1.0


@pytest.mark.parametrize("scaling", ["robust", "rank"])
def test_one_wild_row_hardly_moves_the_others(scaling: str) -> None:
    calm = spread("normal")
    wild = calm.copy()
    wild[0] = 1e30
    before, after = scaled(calm, scaling), scaled(wild, scaling)
    inner = np.abs(before) < 2.5
    inner[0] = False
    assert inner.sum() > 4_900
    np.testing.assert_allclose(after[inner], before[inner], rtol=0, atol=0.05)
    assert np.abs(scaled(wild, "standard")[inner]).max() < 0.1  # as a mean squeezes them


@given(arrays(np.float32, st.integers(1, 250), elements=st.integers(-9, 9)))
def test_a_rank_is_the_normal_quantile_of_the_middle_rank(column: np.ndarray) -> None:
    middle = (rankdata(column, method="average") - 0.5) / len(column)
    np.testing.assert_allclose(scaled(column, "rank"), norm.ppf(middle), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SPREADS)
def test_256_knots_keep_every_row_within_a_step_of_its_own_rank(name: str) -> None:
    column = spread(name, 20_000)
    made = fitted(column, "rank")
    assert made.ranks is not None
    assert len(made.ranks.knots) <= 256 < len(np.unique(column))
    assert set(made.ranks.knots.tolist()) <= set(column.tolist())
    exact = norm.ppf((rankdata(column) - 0.5) / len(column))
    step = (exact.max() - exact.min()) / 127
    assert step < 0.07
    found = scaled(column, "rank")
    np.testing.assert_allclose(found, exact, rtol=0, atol=step)
    assert found.min() == pytest.approx(exact.min())
    assert found.max() == pytest.approx(exact.max())
    if name != "mostly zero":  # a pile of equal rows is no normal
        assert abs(found.mean()) < 0.01
        assert found.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", SPREADS[:-1])
def test_ranks_are_near_those_of_scikit_learn(name: str) -> None:
    column = spread(name)
    theirs = QuantileTransformer(
        n_quantiles=ROWS, subsample=None, output_distribution="normal"
    ).fit_transform(column.astype(np.float64).reshape(-1, 1))[:, 0]
    found = scaled(column, "rank")
    inner = np.abs(theirs) < 3
    assert inner.mean() > 0.99
    np.testing.assert_allclose(found[inner], theirs[inner], rtol=0, atol=0.07)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
COLUMNS = arrays(np.float32, st.integers(1, 600), elements=FLOATS) | st.builds(
    lambda seed, rows, power: (
        np.random.default_rng(seed).normal(size=rows).astype(np.float32) ** np.float32(power)
    ),
    st.integers(0, 2**32),
    st.integers(1, 3_000),
    st.sampled_from([1, 3, 9]),
)


@given(COLUMNS, arrays(np.float32, 200, elements=st.floats(width=32, allow_nan=False)))
@settings(max_examples=60)
def test_ranks_never_fall_and_stay_within_those_of_training(
    column: np.ndarray, seen: np.ndarray
) -> None:
    made = fitted(column, "rank")
    with np.errstate(over="ignore"):
        near = [np.nextafter(column, np.float32(end)) for end in (-np.inf, np.inf)]
    ordered = np.sort(np.concatenate([seen, column, *near]))
    found = made.transform(ordered.reshape(-1, 1, 1))[:, 0]
    assert (np.diff(found) >= 0).all()
    inside = made.transform(column.reshape(-1, 1, 1))
    assert (found.min(), found.max()) == (inside.min(), inside.max())
    assert np.abs(found).max() <= norm.isf(0.5 / len(column)) * (1 + 1e-6)


def test_a_feature_that_never_varied_ranks_0_whatever_comes() -> None:
    made = fitted(np.full(50, 0.3, np.float32), "rank")
    seen = np.array([-1e9, 0.3, 7.0], np.float32).reshape(-1, 1, 1)
    np.testing.assert_array_equal(made.transform(seen), np.zeros((3, 1)))


@pytest.mark.parametrize("zeros", [(0.0, 0.0), (-0.0, -0.0), (0.0, -0.0), (-0.0, 0.0)])
def test_both_zeros_are_one_knot_of_the_same_bytes(zeros: tuple[float, float]) -> None:
    column = np.tile(np.array([*zeros, 1.0], np.float32), 500)
    assert '"knots":[[[0.0,1.0]]]' in canonical_json(fitted(column, "rank").document())


@pytest.mark.parametrize("scaling", SCALINGS)
def test_what_is_no_number_stays_none(scaling: str) -> None:
    for column in (spread("normal"), np.zeros(20, np.float32)):
        made = fitted(column, scaling)
        assert np.isnan(made.transform(np.full((1, 1, 1), np.nan, np.float32))).all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rows_outside_the_training_part_change_nothing(scaling: str) -> None:
    features, part = some_features(), np.array([[10, 130], [150, 290]])
    changed = features.copy()
    changed[:10] = changed[130:150] = changed[290:] = 1e6
    made = Normalizer.fit(features, part, scaling).document()
    assert Normalizer.fit(changed, part, scaling).document() == made
    changed[200:280, 1, 1] += 50
    assert (Normalizer.fit(changed, part, scaling).document() == made) is (scaling == "none")


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_row_has_the_same_bits_alone_and_among_others(scaling: str) -> None:
    features = some_features()
    made = Normalizer.fit(features, np.array([[0, 200]]), scaling)
    together = made.transform(features)
    assert together.shape == (300, 6)
    alone = np.concatenate([made.transform(features[row : row + 1]) for row in range(300)])
    assert together.tobytes() == alone.tobytes()
    backwards = made.transform(features[::-1])
    assert np.ascontiguousarray(backwards[::-1]).tobytes() == together.tobytes()
    frozen = features.copy()
    frozen.flags.writeable = False
    assert made.transform(frozen).tobytes() == together.tobytes()
    by_column = np.asfortranarray(features)
    assert made.transform(by_column).tobytes() == together.tobytes()


@pytest.mark.parametrize("scaling", ["standard", "robust", "rank"])
def test_each_column_has_statistics_of_its_own(scaling: str) -> None:
    features = some_features()
    found = Normalizer.fit(features, np.array([[0, 300]]), scaling).transform(features)
    for column in range(6):
        own = features.reshape(300, 6)[:, column]
        np.testing.assert_array_equal(found[:, column], scaled(own, scaling))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_document_gives_the_same_normalizer_again(scaling: str) -> None:
    features = some_features(2_000)
    made = Normalizer.fit(features, np.array([[0, 1_500]]), scaling)
    made = replace(made, account=AccountStatistics(np.ones(11), np.ones(11), 1e-8, 10.0))
    assert ("ranks" in made.document()) is (scaling == "rank")
    read = Normalizer.parse(json.loads(canonical_json(made.document())))
    assert read.document() == made.document()
    assert read.transform(features).tobytes() == made.transform(features).tobytes()


def test_many_columns_get_fewer_knots_and_a_document_that_can_be_read() -> None:
    features = np.random.default_rng(0).normal(size=(400, 3_000, 1)).astype(np.float32)
    made = Normalizer.fit(features, np.array([[0, 400]]), "rank")
    assert made.ranks is not None
    assert 60 < np.diff(made.ranks.starts).max() <= 2**18 // 3_000
    assert len(canonical_json(made.document())) < MOST_DOCUMENT_BYTES


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(PolicyError, match="scaling 'ranks' is unknown; use none, rank, standard"):
        fitted(spread("normal"), "ranks")


def test_features_of_another_number_of_columns_are_refused() -> None:
    made = Normalizer.fit(some_features(), np.array([[0, 200]]), "rank")
    with pytest.raises(PolicyError, match="features have 4 columns; the policy's ranks are of 6"):
        made.transform(some_features()[:, :, :2])


GOOD: dict[str, Any] = {
    "mean": [[0.0, 0.0]],
    "std": [[1.0, 1.0]],
    "account": None,
    "ranks": {"knots": [[[0.0, 1.0, 2.0], [5.0]]], "scores": [[[-1.0, 0.0, 1.0], [0.0]]]},
}
DAMAGE: dict[str, tuple[str, Any, str]] = {
    "an unknown key": ("ranks.more", 1, "ranks.more: Extra"),
    "no scores": ("ranks.scores", None, "ranks.scores: "),
    "another instrument": ("ranks.knots", [[[0.0], [0.0]]] * 2, "ranks: knots and scores must be"),
    "a feature less": ("ranks.scores.0", [[0.0]], "ranks: knots and scores must be"),
    "other features than mean": ("mean.0", [0.0], "the document: ranks must have"),
    "a score less": ("ranks.scores.0.0", [0.0], "3 knots but 1 scores of instrument 0, feature 0"),
    "no knots": ("ranks.knots.0.1", [], "ranks.knots.0.1: .*at least 1"),
    "too many knots": ("ranks.knots.0.1", [float(n) for n in range(257)], "at most 256"),
    "knots that fall": ("ranks.knots.0.0", [0.0, 2.0, 1.0], "knots of instrument 0, .* increase"),
    "knots that a float32 makes equal": (
        "ranks.knots.0.0",
        [0.0, 1.0, 1.0 + 1e-12],
        "feature 0 must increase",
    ),
    "scores that fall": ("ranks.scores.0.0", [0.0, 1.0, 0.5], "scores of .* must not decrease"),
    "a score beyond any rank": ("ranks.scores.0.1", [11.0], "scores.0.1.0: .*less than or equal"),
    "text for a number": ("ranks.knots.0.1", ["5"], "knots.0.1.0: .*number"),
    "a knot that is no number": ("ranks.knots.0.1", [float("nan")], "knots.0.1.0: "),
    "an infinite knot": ("ranks.knots.0.1", [float("inf")], "knots.0.1.0: "),
    "a mean as well": ("mean.0", [0.0, 0.5], "beside ranks every mean must be 0"),
    "a deviation as well": ("std.0", [2.0, 1.0], "every std 1"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_ranks_are_refused(case: str) -> None:
    assert Normalizer.parse(GOOD).document() == GOOD
    path, value, message = DAMAGE[case]
    damaged = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    part: Any = damaged
    for parent in parents:
        part = part[int(parent) if isinstance(part, list) else parent]
    part[int(last) if isinstance(part, list) else last] = value
    with pytest.raises(PolicyError, match=message):
        Normalizer.parse(damaged)


def test_ranks_are_needed_by_scaling_rank_and_by_no_other() -> None:
    policy = untrained.SPECIFICATIONS["mlp"]
    weights = untrained.weights_of(untrained.network(policy))
    ranked = copy.deepcopy(policy)
    ranked["observation"]["scaling"] = "rank"
    PolicyRunner(ranked, Normalizer.parse(GOOD), weights)
    with pytest.raises(PolicyError, match="holds no ranks, but the policy's scaling is rank"):
        PolicyRunner(ranked, untrained.PLAIN, weights)
    with pytest.raises(PolicyError, match="holds ranks, but the policy's scaling is standard"):
        PolicyRunner(policy, Normalizer.parse(GOOD), weights)


@pytest.mark.parametrize("scaling", ["none", "robust", "rank"])
def test_a_policy_is_trained_stored_and_run_with_its_scaling(tmp_path: Path, scaling: str) -> None:
    dataset = replace(synthetic.dataset(), scaling=scaling)
    experiment = synthetic.experiment(
        algorithm={"total_frames": 256, "normalize": {"account": True}}
    )
    environment, algorithm = experiment.variant("base")
    trial = experiment.trials()["base.f0.s0"]
    folder = ArtifactLocation(tmp_path, "policy")
    trained = train(
        dataset, environment, algorithm, trial, folder, print, lambda: 0.0, tensorboard=False
    )
    runner = PolicyRunner.load(folder)
    assert runner.specification["observation"]["scaling"] == scaling
    assert runner.normalizer.account is not None
    fold = dataset.folds[0]
    wanted = Normalizer.fit(dataset.features, fold.train, scaling)
    seen = runner.features(dataset)
    assert seen.tobytes() == wanted.transform(dataset.features).tobytes()
    segments = [part for part in fold.validation if part[1] - part[0] >= environment.window + 2]
    equity = evaluate(runner, dataset.market, seen, np.array(segments), environment).equity
    assert float(equity[-1] / equity[0] - 1) == trained.metrics["validation_return"]

    write_sb3(folder, tmp_path / "policy.zip")
    write_onnx(folder, trained.reference.version, tmp_path / "policy.onnx")
    said = {one.key: one.value for one in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert json.loads(said["observation"])["scaling"] == scaling
    told = json.loads(said["scaling"])
    assert set(told) == {"mean", "std"} | ({"ranks"} if scaling == "rank" else set())
    elsewhere = dataset.features.astype(np.float64)
    for n, f in np.ndindex(elsewhere.shape[1:]):
        if scaling == "rank":
            ranks = told["ranks"]["knots"][n][f], told["ranks"]["scores"][n][f]
            elsewhere[:, n, f] = np.interp(elsewhere[:, n, f], *ranks)
        elsewhere[:, n, f] = (elsewhere[:, n, f] - told["mean"][n][f]) / told["std"][n][f]
    np.testing.assert_allclose(seen, elsewhere.reshape(seen.shape), rtol=1e-5, atol=1e-6)
