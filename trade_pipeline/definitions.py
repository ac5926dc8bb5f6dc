"""The code location: everything of `defs/`, bound to this deployment's store and machines.

Dagster loads `defs`. `TRADE_PIPELINE_CONFIGS` and `TRADE_PIPELINE_STORE` say which folders.
"""

import os
import warnings

import dagster as dg

# Used on purpose and covered by tests; the warning would hide what a user should see.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from trade_pipeline.defs.build import build_definitions  # noqa: E402
from trade_pipeline.settings.project import Places  # noqa: E402

defs = build_definitions(Places.from_environment(os.environ))
