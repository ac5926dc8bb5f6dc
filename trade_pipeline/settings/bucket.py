"""The bucket that holds the truth of a deployment's store, where there is one.

Key pair and region are no settings of ours: boto3 finds them (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`, or a profile).
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from trade_pipeline.settings.base import Settings, parse_settings

S3_VARIABLE = "TRADE_PIPELINE_S3"
S3_URL_VARIABLE = "TRADE_PIPELINE_S3_URL"


class BucketSettings(Settings):
    """A bucket and the prefix of its keys."""

    uri: Annotated[
        str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)*$")
    ] = Field(description="Such as s3://bucket/prefix; the prefix may be absent.")
    url: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        default=None, description="Endpoint of an S3 that is not AWS's."
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "BucketSettings | None":
        """Read `TRADE_PIPELINE_S3` and `TRADE_PIPELINE_S3_URL`; None where the first is not set.

        Raises:
            SettingsError: a variable is no such address.
        """
        uri = environment.get(S3_VARIABLE)
        if not uri:
            return None
        found = {"uri": uri.rstrip("/"), "url": environment.get(S3_URL_VARIABLE) or None}
        return parse_settings(found, cls, f"environment ({S3_VARIABLE}, {S3_URL_VARIABLE})")

    @property
    def bucket(self) -> str:
        """Its name."""
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """Of its keys, without slashes around it; may be empty."""
        return self.uri.removeprefix("s3://").partition("/")[2]
