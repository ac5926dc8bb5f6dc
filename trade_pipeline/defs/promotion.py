"""The `<experiment>/promoted` asset: a pointer to the policy that is to be used."""

from typing import Any

import dagster as dg

from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store
from trade_pipeline.settings.code_version import code_version, implementation_of
from trade_pipeline.settings.experiment import ExperimentSettings

NOTHING = "nothing promoted"  # data version while no policy was good enough


def build_promoted(
    name: str, experiment: ExperimentSettings, report: dg.AssetsDefinition, report_version: str
) -> dg.AssetsDefinition:
    """The asset of one experiment.

    Args:
        name: of the experiment.
        experiment: its rule is `promotion`.
        report: stands for all trials.
        report_version: its code version.
    """
    version = code_version(
        {"report": report_version, "rule": experiment.promotion.model_dump(mode="json")},
        {"promotion": implementation_of("trade_pipeline.backtest.promotion")},
    )

    @dg.asset(
        key=[name, "promoted"],
        deps=[report],
        code_version=version,
        io_manager_key="bundles",
        group_name=name,
        kinds={"numba"},
        description="The policy to use: the best on validation, if it beats baselines and "
        "incumbent. Only what is promoted is shown the final period, once.",
    )
    def promoted(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        from trade_pipeline.backtest.promotion import markdown, promote

        done = promote(store.path, name, experiment)
        context.log.info(done.reason)
        metadata: dict[str, Any] = {
            "decision": done.reason,
            "validation": dg.MetadataValue.md(done.table),
            "final evaluations": done.final_evaluations,
        }
        if done.final is not None:
            metadata["final"] = dg.MetadataValue.md(markdown(done.final.items()))
        elif done.version is None:
            metadata["final"] = "No policy is promoted, so the final period was not looked at."
        else:
            metadata["final"] = "No final report: its dataset has no final period (final_from)."
        if done.picture is not None:
            metadata["final equity"] = png("equity in the final period", done.picture)
        data_version = dg.DataVersion(done.version or NOTHING)
        if done.reference is None:  # the pointer stays: without a value nothing is written
            return dg.MaterializeResult(data_version=data_version, metadata=metadata)
        return dg.MaterializeResult(
            value=done.reference, data_version=data_version, metadata=metadata
        )

    return promoted
