"""Rebuilds a bundle from what it records, in a clean store, and says what came out otherwise.

A dataset is assembled again from the bars it names, a policy trained again on that, a backtest run
again with that. The user's store is only read, `configs/` not at all: settings are those recorded.
Start at `reproduce`.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from platform import python_version
from typing import Any, NoReturn

from trade_pipeline.backtest import trial as trials
from trade_pipeline.features.assemble import read_segments
from trade_pipeline.features.plugins.loading import SHIPPED_ONLY, Plugins
from trade_pipeline.features.table import feature_table
from trade_pipeline.market.coverage import coverage
from trade_pipeline.market.stored import read_bars
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import read_whole, write_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError, make_folder
from trade_pipeline.training import dataset as datasets
from trade_pipeline.training import policy as policies
from trade_pipeline.training import recipe as recipes
from trade_pipeline.training import regimes, task, trainer
from trade_pipeline.training.assemble import assemble_dataset
from trade_pipeline.training.callbacks import Progress
from trade_pipeline.training.dense_policy import KERNELS, kernels
from trade_pipeline.training.recipe import Recipe
from trade_pipeline.training.specification import specification

PROVENANCE = "provenance.json"
ADHOC = "adhoc.json"
SECONDS_BETWEEN_LINES = 10.0
MAKES_DATASET = ("series", "features", "from", "to", "splits", "final_from")


class ReproduceError(StorageError):
    """A bundle does not record enough to be rebuilt; the message says what is missing."""


@dataclass(frozen=True)
class Reproduction:
    """How rebuilding a bundle went.

    Attributes:
        key: of the bundle.
        expected: its version.
        found: version of what was rebuilt; None where it was clear before that it would differ.
        differences: what is not as it was, in order of the lineage, each a clause.
    """

    key: str
    expected: str
    found: str | None
    differences: tuple[str, ...]

    @property
    def matches(self) -> bool:
        """Whether the rebuilt bundle has the same hash."""
        return self.found == self.expected

    def __str__(self) -> str:
        if self.matches:
            return f"{self.key}: reproduced, version {self.expected}"
        return f"{self.key}: version {self.expected} is not reproduced: {self.differences[0]}"


class _OtherwiseError(Exception):
    """What differs enters the version, so going on would not give the same one."""


def reproduce(
    bundle: ArtifactLocation,
    work: Path,
    say: Callable[[str], None],
    clock: Callable[[], float],
    plugins: Plugins = SHIPPED_ONLY,
) -> Reproduction:
    """Rebuild a dataset, regime model, policy or backtest bundle and compare versions.

    Args:
        bundle: folder of one version, `<key>/<version>`; its store is only read.
        work: empty folder that becomes the clean store.
        say: receives a line a step.
        clock: monotonic seconds.
        plugins: indicators that are known here.

    Raises:
        BundleError: a byte of the bundle was changed.
        ReproduceError: the bundle does not record enough.
        StorageError: what it names cannot be read.
    """
    index = bundles.verify(bundle)
    members = {member["name"] for member in index["members"]}
    key = bundle.path.parent.relative_to(bundle.store).as_posix()
    rebuild = _Rebuild(bundle.store, work, say, clock, plugins)
    say(f"{key}: settings are those recorded with the bundle; configs/ is not read")
    found: str | None = None
    try:
        if policies.SPEC in members:
            found = rebuild.policy(bundle)
        elif datasets.DOCUMENT in members:
            found = rebuild.dataset_bundle(bundle)
        elif regimes.DOCUMENT in members:
            found = rebuild.regime_model(bundle)
        elif ADHOC in members:
            raise ReproduceError(
                f"{bundle}: ad-hoc backtests are no kind that is rebuilt. Ask for the same again: "
                f"{ADHOC} holds the request, and the same policy and rows give the same version. "
                "What it stands on can be rebuilt: reproduce its policy."
            )
        elif {"equity.parquet", PROVENANCE} <= members:
            found = rebuild.backtest(bundle)
        else:
            raise ReproduceError(
                f"{bundle}: is no dataset, regime model, policy, nor backtest with a {PROVENANCE}, "
                "which are what can be rebuilt; materialize it again instead."
            )
    except _OtherwiseError:
        pass
    except ReproduceError:
        raise
    except (StorageError, ValueError) as error:
        # Other bars may not even make a dataset; that they are others is what to say then.
        if not rebuild.differences:
            raise
        say(f"cannot be rebuilt with that: {error}")
    return Reproduction(key, index["version"], found, tuple(rebuild.differences))


class _Rebuild:
    """A clean store that fills up, and what was found to differ on the way."""

    def __init__(
        self,
        store: Path,
        work: Path,
        say: Callable[[str], None],
        clock: Callable[[], float],
        plugins: Plugins,
    ) -> None:
        self.differences: list[str] = []
        self._store = store
        self._work = work
        self._say = say
        self._clock = clock
        self._plugins = plugins

    def dataset_bundle(self, bundle: ArtifactLocation) -> str:
        """Assemble a dataset again; returns its version."""
        recipe = _recipe(bundle, recipes.recorded(bundle))
        built = self._dataset(recipe, read_json(bundle.child(datasets.INPUTS)))
        self._compare(bundle, built)
        return built.path.name

    def regime_model(self, bundle: ArtifactLocation) -> str:
        """Fit a fold's regimes again; returns the version."""
        document = read_json(bundle.child(regimes.DOCUMENT))
        self._same("implementation", document["implementation"], regimes.IMPLEMENTATION)
        name = bundle.path.parent.relative_to(bundle.store).parts[0]
        home = layout.experiment_bundle(self._store, name, "dataset")
        dataset = home.child(document["dataset_version"])
        if not dataset.path.is_dir():
            raise ReproduceError(
                f"{bundle}: its dataset {dataset.key} is no longer stored, and that records how "
                "it was made."
            )
        recipe = _recipe(dataset, recipes.recorded(dataset))
        built = self._dataset(recipe, read_json(dataset.child(datasets.INPUTS)))
        content = {**recipe.settings, "regimes": document["settings"], "search": None}
        settings = parse_settings(content, ExperimentSettings, recipe.origin)
        fitted = self._regime_model(name, settings, built, document["fold"])
        assert fitted is not None
        self._compare(bundle, fitted)
        return fitted.path.name

    def policy(self, bundle: ArtifactLocation) -> str:
        """Train a policy again; returns its version."""
        spec, known = read_json(bundle.child(policies.SPEC)), _provenance(bundle)
        recipe = _recipe(bundle, known.get("recipe"))
        self._same_versions(spec["versions"])
        self._same("implementation", spec["implementations"], trainer.implementations())
        name, key = known["experiment"], known["trial"]
        settings = self._settings_of_trial(recipe, spec, key)
        environment, algorithm = settings.variant(settings.trials()[key].variant)
        now = {
            "environment": environment.model_dump(mode="json"),
            "algorithm": algorithm.model_dump(mode="json"),
        }
        self._same("configuration", spec["configuration"], now)
        if self.differences:  # they stand in spec.json, which is part of the version
            raise _OtherwiseError
        dataset = self._dataset(recipe, known["inputs"])
        if dataset.path.name != spec["dataset_version"]:
            self._ends(f"dataset was {spec['dataset_version']}, is {dataset.path.name}")
        if self.differences:
            self._say("the dataset is as recorded, so that this changes nothing")
            self.differences.clear()
        self._say(f"training {key}: seed {spec['seed']}, {spec['threads']} thread(s)")
        staging = bundles.staging(self._work, "policy")
        regime_model = self._regime_model(name, settings, dataset, spec["fold"])
        told = specification(
            name, settings, key, dataset, staging, {"recipe": known["recipe"]}, regime_model
        )
        trained = task.run(told, self._progress(), self._clock)
        home = layout.experiment_bundle(self._work, name, "policy", key)
        built = bundles.commit(BundleReference(staging, trained["version"]), home)
        self._compare(bundle, built)
        return built.path.name

    def backtest(self, bundle: ArtifactLocation) -> str:
        """Train the policy again and run it again; returns the backtest's version."""
        known = _provenance(bundle)
        policy = ArtifactLocation(
            self._store, f"{known['policy']['key']}/{known['policy']['version']}"
        )
        if not policy.path.is_dir():
            raise ReproduceError(
                f"{bundle}: its policy {policy.key} is no longer stored, and that records how it "
                "was trained."
            )
        bundles.verify(policy)
        if self.policy(policy) != policy.path.name:
            raise _OtherwiseError
        self._same("implementation", known["implementations"], trials.implementations())
        spec = read_json(policy.child(policies.SPEC))
        configuration = {**spec["configuration"], "environment": known["environment"]}
        recipe = _recipe(policy, _provenance(policy).get("recipe"))
        key = known["trial"]
        settings = self._settings_of_trial(recipe, {**spec, "configuration": configuration}, key)
        staging = bundles.staging(self._work, "backtest")
        trial = settings.trials()[key]
        done = trials.backtest_trial(self._work, known["experiment"], settings, trial, staging)
        home = layout.experiment_bundle(self._work, known["experiment"], "backtest", key)
        built = bundles.commit(done.reference, home)
        self._compare(bundle, built)
        return built.path.name

    def _dataset(self, recipe: Recipe, inputs: Mapping[str, str]) -> ArtifactLocation:
        """Bars, manifests, features and dataset in the clean store; returns the dataset."""
        self._same_versions(recipe.versions)
        try:
            experiment, series = recipe.experiment_settings(), recipe.series_settings()
            feature_set = recipe.features(self._plugins)
        except SettingsError as error:
            self._ends(f"configuration is refused by this code: {error}")
        self._same("implementation", recipe.implementations, recipes.implementations(feature_set))
        now = experiment.model_dump(mode="json", by_alias=True)
        for one in MAKES_DATASET:
            self._same(f"configuration {one}", recipe.settings.get(one), now[one])
        for key, settings in series.items():
            self._bars(key, inputs)
            self._manifest(settings, inputs)
        name = experiment.features
        for key in experiment.series:
            table = feature_table(read_segments(self._work, key, series, feature_set), feature_set)
            digest = write_frame(layout.features(self._work, name, key), table)
            self._same_hash(f"features/{name}|{key}", inputs, digest)
        project = Project(Path(recipe.origin), series, {}, {}, {})
        built = assemble_dataset(self._work, project, experiment, feature_set, recipe.origin)
        staging = bundles.staging(self._work, "dataset")
        write_json(staging.child(recipes.MEMBER), recipe.model_dump(mode="json"))
        reference = datasets.write_dataset(built, staging)
        self._say(f"dataset assembled: version {reference.version}")
        home = layout.experiment_bundle(self._work, recipe.experiment, "dataset")
        return bundles.commit(reference, home)

    def _regime_model(
        self, name: str, settings: ExperimentSettings, dataset: ArtifactLocation, fold: int
    ) -> ArtifactLocation | None:
        """Fit a fold's regimes again, for an experiment that has some."""
        if settings.regimes is None:
            return None
        opened = datasets.load_dataset(dataset)
        fitted = regimes.fit_fold(opened, settings.regimes, fold, name)
        staging = bundles.staging(self._work, "regime_model")
        reference = regimes.write_regime_model(fitted, opened, settings.regimes, fold, staging)
        self._say(f"regimes of fold {fold} fitted: version {reference.version}")
        key = settings.fold_keys[fold]
        home = layout.experiment_bundle(self._work, name, "regime_model", key)
        return bundles.commit(reference, home)

    def _bars(self, series: str, inputs: Mapping[str, str]) -> None:
        """Copy the recorded years of a series; bars of other years had no part in it."""
        prefix = f"ohlcv|{series}|"
        for name in sorted(one for one in inputs if one.startswith(prefix)):
            year = int(name.removeprefix(prefix))
            source = layout.ohlcv(self._store, series, year)
            if not source.path.is_file():
                self._ends(f"{name} is no longer stored; it was {inputs[name][:16]}")
            self._same_hash(name, inputs, read_whole(source).content_hash)
            target = layout.ohlcv(self._work, series, year)
            make_folder(target.path.parent)
            shutil.copyfile(source.path, target.path)

    def _manifest(self, series: SeriesSettings, inputs: Mapping[str, str]) -> None:
        stored = read_bars(self._work, series.key)
        found = coverage(stored.bars, stored.confirmed, series)
        document = found.to_document(series.key, series.coverage, stored.hashes)
        digest = write_json(layout.manifest(self._work, series.key), document)
        self._same_hash(f"manifest|{series.key}", inputs, digest)

    def _settings_of_trial(
        self, recipe: Recipe, spec: Mapping[str, Any], key: str
    ) -> ExperimentSettings:
        """The experiment with one trial, of the configuration that a specification records."""
        variant = key.removesuffix(f".f{spec['fold']}.s{spec['seed']}")
        content = {
            **{one: value for one, value in recipe.settings.items() if one != "search"},
            **spec["configuration"],
            "regimes": spec.get("regimes", {}).get("settings"),
            "variants": {variant: {}},
            "seeds": [spec["seed"]],
        }
        try:
            return parse_settings(content, ExperimentSettings, recipe.origin)
        except SettingsError as error:
            self._ends(f"configuration is refused by this code: {error}")

    def _progress(self) -> Callable[[Progress | str], None]:
        """Passes on what a training says, of its progress not every second."""
        last = self._clock()

        def report(said: Progress | str) -> None:
            nonlocal last
            if isinstance(said, str) or self._clock() - last >= SECONDS_BETWEEN_LINES:
                last = self._clock()
                self._say(str(said))

        return report

    def _same_versions(self, recorded: Mapping[str, str]) -> None:
        """Packages first, then Python: an interpreter seldom changes a number."""
        packages = {name: text for name, text in recorded.items() if name != "python"}
        known = kernels() if KERNELS in packages else {}
        now = {name: known.get(name) or _installed(name) for name in packages}
        self._same("package", packages, now)
        self._same("", {"python": recorded.get("python")}, {"python": python_version()})

    def _same(self, what: str, recorded: Any, now: Any) -> None:
        if (found := first_difference(recorded, now)) is not None:
            self._differs(f"{what} {found}".strip())

    def _same_hash(self, name: str, inputs: Mapping[str, str], found: str) -> None:
        recorded = inputs.get(name, "not recorded")
        if recorded != found:
            self._differs(f"{name} was {recorded[:16]}, is {found[:16]}")
        else:
            self._say(f"{name} as recorded")

    def _differs(self, what: str) -> None:
        """Keep a difference, which may yet turn out to change nothing."""
        if what not in self.differences:
            self.differences.append(what)
            self._say(f"differs: {what}")

    def _ends(self, what: str) -> NoReturn:
        """Keep a difference with which the version cannot be the same, and end here."""
        self._differs(what)
        raise _OtherwiseError

    def _compare(self, bundle: ArtifactLocation, built: ArtifactLocation) -> None:
        """Name the first member that came out otherwise."""
        before, after = _hashes(bundle), _hashes(built)
        for member in sorted(
            before.keys() | after.keys(), key=lambda one: (one != "spec.json", one)
        ):
            if before.get(member) == after.get(member):
                continue
            what = f"member {member} came out otherwise"
            if member.endswith(".json") and member in before and member in after:
                documents = [read_json(one.child(member)) for one in (bundle, built)]
                what += f" ({first_difference(*documents)})"
            if not self.differences:
                what += ", from the same inputs: this machine computes otherwise than that one did"
            self._differs(what)
            return


def first_difference(recorded: Any, now: Any, path: str = "") -> str | None:
    """The first place at which two JSON values differ, as `a.b was 1, is 2`; None if nowhere."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in [*recorded, *(key for key in now if key not in recorded)]:
            inside = f"{path}.{key}" if path else str(key)
            if key not in recorded or key not in now:
                was, found = recorded.get(key, "absent"), now.get(key, "absent")
                return f"{inside} was {was}, is {found}"
            if (found := first_difference(recorded[key], now[key], inside)) is not None:
                return found
        return None
    return None if recorded == now else f"{path} was {recorded}, is {now}".lstrip()


def _installed(package: str) -> str:
    try:
        return package_version(package)
    except PackageNotFoundError:
        return "not installed"


def _hashes(bundle: ArtifactLocation) -> dict[str, str]:
    """SHA-256 of the deterministic members of a bundle."""
    members = read_json(bundle.child(bundles.INDEX))["members"]
    return {one["name"]: one["sha256"] for one in members if one["deterministic"]}


def _provenance(bundle: ArtifactLocation) -> dict[str, Any]:
    if not bundle.child(PROVENANCE).path.is_file():
        raise ReproduceError(f"{bundle}: there is no {PROVENANCE}, so its inputs are not known.")
    known: dict[str, Any] = read_json(bundle.child(PROVENANCE))
    return known


def _recipe(bundle: ArtifactLocation, recorded: Any) -> Recipe:
    if recorded is None:
        raise ReproduceError(
            f"{bundle}: records no recipe (settings of its series, features and experiment), as "
            "bundles of earlier releases do; materialize the dataset again with other rows, and "
            "train on that."
        )
    try:
        return parse_settings(recorded, Recipe, f"{bundle}: recipe")
    except SettingsError as error:
        raise ReproduceError(str(error)) from error
