"""Which policy of an experiment is to be used: chosen on validation, then shown the final period.

Every variant stands for its median seed. The policy proposed is one of the last fold; it must be
better there, on rows that are neither test nor final, than the baselines and than what is promoted
now. Only after the choice the final period is run, once a policy version. Start at `promote`.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trade_pipeline.backtest import bundle
from trade_pipeline.backtest.engine import BacktestResult, backtest
from trade_pipeline.backtest.promotion_record import (
    FINAL,
    RECORD,
    PromotedPolicy,
    finals,
    promoted,
)
from trade_pipeline.backtest.promotion_rule import Candidate, Choice, Figures, Incumbent, decide
from trade_pipeline.backtest.report.pictures import equity_png
from trade_pipeline.backtest.strategies import PolicyStrategy, Strategy, baseline
from trade_pipeline.backtest.trial import require_dataset
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import ExperimentSettings, Trial
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference, seal
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training.dataset import Dataset, load_dataset
from trade_pipeline.training.policy import PolicyError, PolicyRunner
from trade_pipeline.training.splits import Rows, SplitError

IMPLEMENTATION = 1
PICTURE, COMPARED = "equity.png", "beside_baselines.json"
FIGURES = ("sharpe", "sortino", "calmar", "psr", "total_return", "cagr", "max_drawdown", "trades")
SHOWN = ("sharpe", "total_return", "max_drawdown", "trades")


@dataclass(frozen=True)
class Promotion:
    """What a materialization says.

    Attributes:
        reference: the sealed bundle to make current; None: the pointer stays.
        version: of the promotion that counts now; None: nothing was promoted yet.
        reason: what was decided and why, in sentences.
        table: candidates, baselines and incumbent on the validation part, as markdown.
        final: figures in the final period by name, the policy first; None where it was not run.
        final_evaluations: policy versions that the final period was run for, ever.
        picture: equity in the final period (PNG), or None.
    """

    reference: BundleReference | None
    version: str | None
    reason: str
    table: str
    final: dict[str, Figures] | None
    final_evaluations: int
    picture: bytes | None


def promote(store: Path, name: str, experiment: ExperimentSettings) -> Promotion:
    """Apply the experiment's rule; seal a new promotion where it says so.

    Raises:
        StorageError: a policy is missing, or was trained on another version of the dataset.
    """
    dataset = load_dataset(bundles.current(layout.experiment_bundle(store, name, "dataset")))
    incumbent, note = _incumbent(store, name, experiment, dataset)
    rule = experiment.promotion
    beat = [
        one.label for one in experiment.baselines if rule.beat == "all" or one.kind in rule.beat
    ]
    candidates = _candidates(store, name, experiment, dataset)
    choice = decide(rule, candidates, beat, incumbent)
    reason = " ".join([*_sentences(choice, incumbent), *note])
    table = _table(rule.metric, choice, incumbent)
    home = layout.experiment_bundle(store, name, "promoted")
    looks = finals(home)
    if choice.chosen is None:
        version = bundles.current_version(home)
        final, picture = (None, None) if version is None else _shown(home.child(version))
        return Promotion(None, version, reason, table, final, len(looks), picture)
    policy = _described(name, choice.chosen, dataset)
    with _new_staging(store, f"{name}-promoted") as staging:
        members = [RECORD]
        if len(dataset.final):
            if policy.version in looks:
                _copy_final(looks[policy.version], staging)
            else:
                _run_final(store, experiment, dataset, policy, staging)
            looks.setdefault(policy.version, staging)
            members += [f"{FINAL}/{member}" for member in (*bundle.DETERMINISTIC, COMPARED)]
        known = {
            "experiment": name,
            "rule": rule.model_dump(mode="json"),
            "dataset": dataset.version,
            "policy": policy.model_dump(mode="json"),
            "validation": _validation(choice, incumbent),
            "reason": reason,
            "final_evaluations": len(looks),
        }
        write_json(staging.child(RECORD), known)
        reference = seal(staging, members)
        final, picture = _shown(staging)
        return Promotion(reference, reference.version, reason, table, final, len(looks), picture)


def _candidates(
    store: Path, name: str, experiment: ExperimentSettings, dataset: Dataset
) -> list[Candidate]:
    """Every trial of the last fold, run on the validation part."""
    rule, last = experiment.promotion, experiment.folds - 1
    trials = experiment.trials().values()
    beaten: dict[str, dict[str, Figures]] = {}
    found = []
    for trial in (one for one in trials if one.fold == last):
        environment, _ = experiment.variant(trial.variant)
        costs = environment.model_dump_json()
        if costs not in beaten:
            beaten[costs] = {
                one.name: _figures(dataset, dataset.folds[last].validation, environment, one, name)
                for one in _baselines(experiment)
            }
        policy, figures = _trial_figures(store, name, environment, dataset, trial)
        scores = [figures[rule.metric]]
        if rule.fold == "all":
            earlier = [
                one
                for one in trials
                if (one.variant, one.seed) == (trial.variant, trial.seed) and one.fold != last
            ]
            scores += [
                _trial_figures(store, name, environment, dataset, one)[1][rule.metric]
                for one in earlier
            ]
        known = [score for score in scores if score is not None]
        mean = sum(known) / len(known) if len(known) == len(scores) else None
        found.append(Candidate(trial, policy, mean, figures, beaten[costs]))
    return found


def _trial_figures(
    store: Path, name: str, environment: EnvironmentSettings, dataset: Dataset, trial: Trial
) -> tuple[str, Figures]:
    """Version of a trial's current policy, and its figures on its fold's validation part."""
    location = bundles.current(layout.experiment_bundle(store, name, "policy", trial.key))
    runner = PolicyRunner.load(location)
    require_dataset(runner, dataset, f"{name}/policy {trial.key}")
    segments = dataset.folds[trial.fold].validation
    strategy = PolicyStrategy(runner, trial.key)
    return location.path.name, _figures(dataset, segments, environment, strategy, name)


def _incumbent(
    store: Path, name: str, experiment: ExperimentSettings, dataset: Dataset
) -> tuple[Incumbent | None, list[str]]:
    """What is promoted now, on today's validation part and under today's costs; and remarks."""
    policy = promoted(store, name)
    if policy is None:
        return None, []
    segments = dataset.folds[-1].validation
    try:
        runner = PolicyRunner.load(policy.location(store))
        trained = runner.specification
        here, there = list(dataset.instruments), trained["observation"]["instruments"]
        if here != list(there):
            raise PolicyError(f"it trades {', '.join(there)}, the dataset has {', '.join(here)}")
        strategy = PolicyStrategy(runner, policy.trial)
        environment = _environment_of(policy, experiment, trained)
        figures = _figures(dataset, segments, environment, strategy, name)
    except (StorageError, PolicyError, SettingsError, SplitError) as error:
        return (
            Incumbent(policy.trial, policy.version, None),
            [f"The promoted {policy.trial} cannot be compared: {error}"],
        )
    remarks = []
    if policy.trained_until > _utc(dataset.ts[segments[0, 0]]):
        remarks.append(
            f"The promoted {policy.trial} was trained on rows of this validation part, which "
            "favours it."
        )
    return Incumbent(policy.trial, policy.version, figures), remarks


def _environment_of(
    policy: PromotedPolicy, experiment: ExperimentSettings, trained: Mapping[str, Any]
) -> EnvironmentSettings:
    """Costs and limits of today, with the window and the actions that a policy was trained with."""
    known = policy.variant in experiment.variants
    variant = policy.variant if known else next(iter(experiment.variants))
    its = parse_settings(
        trained["configuration"]["environment"], EnvironmentSettings, f"policy {policy.key}"
    )
    today = experiment.variant(variant)[0]
    return today.model_copy(update={"window": its.window, "actions": its.actions})


def _run_final(
    store: Path,
    experiment: ExperimentSettings,
    dataset: Dataset,
    policy: PromotedPolicy,
    staging: ArtifactLocation,
) -> None:
    """Run policy and baselines over the final period and write the backtest bundle of it."""
    environment, _ = experiment.variant(policy.variant)
    runner = PolicyRunner.load(policy.location(store))

    def run(strategy: Strategy) -> BacktestResult:
        return backtest(dataset, dataset.final, environment, strategy, f"{policy.key}, final")

    results = [run(PolicyStrategy(runner, policy.trial))]
    results += [run(one) for one in _baselines(experiment)]
    title = f"{policy.key}: final period"
    folder = staging.child(FINAL)
    compared = [[one.name, _chosen(bundle.figures(one, dataset))] for one in results]
    write_json(folder.child(COMPARED), compared)
    curves = {one.name: (one.ts, one.equity) for one in results}
    folder.child(PICTURE).path.write_bytes(equity_png(curves, title))
    bundle.write_backtest(
        results[0],
        dataset,
        folder,
        title=title,
        provenance={"dataset": dataset.version, "policy": policy.version},
        baselines=results[1:],
    )


def _copy_final(promotion: ArtifactLocation, staging: ArtifactLocation) -> None:
    """Take over what a policy version showed in the final period; it is not run again."""
    bundles.verify(promotion)
    shutil.copytree(promotion.child(FINAL).path, staging.child(FINAL).path)


def _shown(promotion: ArtifactLocation) -> tuple[dict[str, Figures] | None, bytes | None]:
    """Figures and picture of a promotion's final period, if it has one."""
    if not promotion.child(FINAL, COMPARED).path.is_file():
        return None, None
    compared = read_json(promotion.child(FINAL, COMPARED))
    return dict(compared), promotion.child(FINAL, PICTURE).path.read_bytes()


def _described(name: str, chosen: Candidate, dataset: Dataset) -> PromotedPolicy:
    trial = chosen.trial
    last = int(dataset.folds[trial.fold].train[-1, 1]) - 1
    return PromotedPolicy(
        key=f"{name}/policy/{trial.key}",
        version=chosen.policy,
        trial=trial.key,
        variant=trial.variant,
        fold=trial.fold,
        seed=trial.seed,
        trained_until=_utc(dataset.close_ts[last]),
    )


def _validation(choice: Choice, incumbent: Incumbent | None) -> dict[str, Any]:
    """What the choice was made from, as `promotion.json` holds it."""
    variants = {
        variant: {
            "candidate": one.trial.key,
            "objections": choice.objections[variant],
            "baselines": one.baselines,
        }
        for variant, one in choice.medians.items()
    }
    trials = {
        one.trial.key: {"policy": one.policy, "score": one.score, "figures": one.figures}
        for one in choice.candidates
    }
    return {
        "variants": variants,
        "trials": trials,
        "incumbent": None if incumbent is None else asdict(incumbent),
    }


def _sentences(choice: Choice, incumbent: Incumbent | None) -> list[str]:
    """What was decided, and how each variant stands to it."""
    if choice.chosen is not None:
        decided = f"{choice.chosen.trial.key} is promoted."
    elif incumbent is None:
        decided = "No policy qualifies, so nothing is promoted."
    else:
        decided = f"{incumbent.trial} stays promoted."
    return [decided] + [
        f"{variant} ({one.trial.key}): {'; '.join(choice.objections[variant]) or 'qualifies'}."
        for variant, one in choice.medians.items()
    ]


def _table(metric: str, choice: Choice, incumbent: Incumbent | None) -> str:
    """Everybody on the last fold's validation part, as markdown."""
    shown = [metric, *(name for name in SHOWN if name != metric)]
    rows: list[tuple[str, Figures]] = []
    for one in choice.candidates:
        middle = " (median)" if choice.medians[one.trial.variant] is one else ""
        rows.append((f"{one.trial.key}{middle}", one.figures))
    rows += [*next(iter(choice.medians.values())).baselines.items()]
    if incumbent is not None and incumbent.figures is not None:
        rows.append((f"{incumbent.trial} (promoted now)", incumbent.figures))
    return markdown(rows, shown)


def markdown(rows: Iterable[tuple[str, Figures]], shown: Sequence[str] = SHOWN) -> str:
    """Figures of several strategies as a table; an undefined one is an en dash."""
    lines = [["strategy", *shown], ["---"] * (len(shown) + 1)]
    for name, figures in rows:
        values = [figures[key] for key in shown]
        lines.append([name, *("–" if value is None else f"{value:.4g}" for value in values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(
    dataset: Dataset,
    segments: Rows,
    environment: EnvironmentSettings,
    strategy: Strategy,
    origin: str,
) -> Figures:
    result = backtest(dataset, segments, environment, strategy, f"{origin}, validation")
    return _chosen(bundle.figures(result, dataset))


def _chosen(found: Mapping[str, Any]) -> Figures:
    return {name: found["values"][name] for name in FIGURES}


def _baselines(experiment: ExperimentSettings) -> list[Strategy]:
    return [baseline(settings) for settings in experiment.baselines]


@contextmanager
def _new_staging(store: Path, name: str) -> Iterator[ArtifactLocation]:
    """A staging folder that is removed when filling it fails or is cancelled."""
    staging = bundles.staging(store, name)
    try:
        yield staging
    except BaseException:  # a cancelled run raises no Exception
        shutil.rmtree(staging.path, ignore_errors=True)
        raise


def _utc(ms: Any) -> str:
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat()
