"""Pictures in metadata: small PNGs that the web UI shows in place."""

import base64

import dagster as dg

MOST_BYTES = 100_000  # larger metadata makes the UI slow


def png(alternative: str, content: bytes) -> dg.MetadataValue:
    """A PNG as markdown with a data URI.

    Raises:
        ValueError: the picture is larger than the UI takes well.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"picture {alternative!r} has {len(content)} bytes; at most {MOST_BYTES}")
    text = base64.b64encode(content).decode()
    return dg.MetadataValue.md(f"![{alternative}](data:image/png;base64,{text})")
