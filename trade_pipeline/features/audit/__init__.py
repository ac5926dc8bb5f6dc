"""Audits of foreign work for look-ahead: functions over data frames, environments over them.

Needs numpy, and pandas or polars only where such a frame is given; nothing else of this package, so
that these files run inside other projects' environments. Start at `audit_function` and
`audit_environment`.
"""

from trade_pipeline.features.audit.environments import audit_environment
from trade_pipeline.features.audit.functions import audit_function
from trade_pipeline.features.audit.report import Audit, Finding

__all__ = ["Audit", "Finding", "audit_environment", "audit_function"]
