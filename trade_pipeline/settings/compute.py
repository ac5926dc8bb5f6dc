"""Where training runs: `configs/compute/<name>.yaml`."""

from typing import ClassVar, Literal

from pydantic import Field

from trade_pipeline.settings.base import Settings


class LocalComputeSettings(Settings):
    """A subprocess on the machine that runs Dagster."""

    remote: ClassVar[bool] = False

    kind: Literal["local"]
    timeout_s: float = Field(
        default=86_400, gt=0, description="A task that runs longer is ended and fails."
    )
