"""What a host needs to use RunPod: API, exchange, ledger and budget, from settings and environment.

Secrets come from the environment alone and stay in here. Start at `connect`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from trade_pipeline.compute.runpod.api import RunPodApi, Volume
from trade_pipeline.compute.runpod.budget import Budget
from trade_pipeline.compute.runpod.errors import AccessDenied
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.compute.runpod.plan import volume_of
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline.settings.compute import RunPodComputeSettings, S3Exchange
from trade_pipeline.storage import layout
from trade_pipeline.storage.objects import ObjectStore

API_KEY = "RUNPOD_API_KEY"
S3_KEYS = ("RUNPOD_S3_ACCESS_KEY_ID", "RUNPOD_S3_SECRET_ACCESS_KEY")
AWS_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
FOLDER = "trade_pipeline"  # on a volume, beside what else lies there


@dataclass(frozen=True)
class Connection:
    """RunPod as one deployment uses it.

    Attributes:
        settings: of the compute.
        store: folder of this host's artefacts.
        api: pods, logs, volumes, prices.
        ledger: leases of this host.
        budget: what may be asked for.
        secrets: values that no pod, log or file may hold.
    """

    settings: RunPodComputeSettings
    store: Path
    api: RunPodApi
    ledger: Ledger
    budget: Budget
    secrets: tuple[str, ...] = field(repr=False)
    _s3_keys: tuple[str | None, str | None] = field(repr=False)

    @cached_property
    def volumes(self) -> list[Volume]:
        """Network volumes of the account."""
        return self.api.volumes()

    @cached_property
    def objects(self) -> ObjectStore:
        """The exchange. Raises `PlanError` where the volume is not the account's."""
        exchange = self.settings.exchange
        if isinstance(exchange, S3Exchange):
            return ObjectStore.connect(
                exchange.bucket, exchange.prefix, url=exchange.url, region=exchange.region
            )
        volume = volume_of(self.settings, self.volumes)
        assert volume is not None
        key_id, secret = self._s3_keys
        if not key_id or not secret:
            raise AccessDenied(
                f"{' and '.join(S3_KEYS)} are not both set: make an S3 key in RunPod's console "
                "(Settings, S3 API keys) and set them for the processes of Dagster.",
                401,
            )
        return ObjectStore.connect(
            volume.id,
            FOLDER,
            url=self.settings.s3_url.format(data_center=volume.data_center.lower()),
            region=volume.data_center,
            access_key_id=key_id,
            secret_access_key=secret,
        )


def connect(
    settings: RunPodComputeSettings, store: Path, environment: Mapping[str, str]
) -> Connection:
    """Take what the environment holds; nothing is asked of RunPod yet.

    Args:
        settings: of the compute.
        store: folder of this host's artefacts; the ledger of leases lies there.
        environment: such as `os.environ`.

    Raises:
        AccessDenied: there is no API key.
        LedgerError: the ledger cannot be used.
    """
    api_key = environment.get(API_KEY, "")
    if not api_key:
        raise AccessDenied(
            f"{API_KEY} is not set: make an API key in RunPod's console (Settings, API keys) and "
            "set it for the processes of Dagster.",
            401,
        )
    ledger = Ledger(layout.leases(store), utc_now)
    key_id, secret = (environment.get(name) for name in S3_KEYS)
    found = (api_key, secret, *(environment.get(name) for name in AWS_SECRETS))
    return Connection(
        settings=settings,
        store=store,
        api=RestApi(settings.rest_url, api_key),
        ledger=ledger,
        budget=Budget(settings.budget, ledger),
        secrets=tuple(one for one in found if one),
        _s3_keys=(key_id, secret),
    )


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)
