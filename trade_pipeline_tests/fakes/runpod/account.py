"""What an account has: a catalogue of GPUs, network volumes, money, and links for mounts.

Knows no HTTP and no pods. Start at `FakeVolume`.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trade_pipeline_tests.fakes.runpod.pods import Mount

GB = 1_000_000_000


@dataclass
class FakeGpu:
    """A GPU type of the catalogue; `cuda` is what its hosts have, prices are dollars an hour."""

    id: str
    price_usd_h: float
    memory_gb: int = 24
    community_usd_h: float | None = None
    availability: str = "HIGH"
    cuda: tuple[str, ...] = ("12.4", "12.8")


def catalogue() -> dict[str, FakeGpu]:
    gpus = (
        FakeGpu("NVIDIA L4", 0.39),
        FakeGpu("NVIDIA RTX A4000", 0.25, 16, 0.17),
        FakeGpu("NVIDIA GeForce RTX 4090", 0.69, 24, 0.34),
        FakeGpu("NVIDIA A40", 0.40, 48),
        FakeGpu("NVIDIA H100 80GB HBM3", 2.99, 80),
    )
    return {gpu.id: gpu for gpu in gpus}


@dataclass
class FakeVolume:
    """A network volume.

    Attributes:
        path: its folder on this machine: `<path>/x` is `<mount>/x` in a pod and key `x` in its S3.
        limit_bytes: what fits on it by way of its S3; pods are not stopped from writing more.
    """

    id: str
    name: str
    size_gb: int
    data_center: str
    path: Path
    limit_bytes: int

    @property
    def used_bytes(self) -> int:
        """Of all its files."""
        used = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a pod may take it away meanwhile
                    used += Path(folder, name).lstat().st_size
        return used


@dataclass
class FakeAccount:
    """The account; a pod is refused when nothing is left, or when the limit would be passed."""

    balance_usd: float = 100.0
    spend_limit_usd_h: float = 80.0


class Seen(NamedTuple):
    """One request that was answered; `status` 0 where no answer was given."""

    operation: str
    method: str
    path: str
    status: int
    headers: Mapping[str, str]


class MountRefusedError(Exception):
    """A mount path that the fake does not touch."""


@dataclass
class Links:
    """Links that stand for mounts, and how many pods use each."""

    users: dict[Path, int] = field(default_factory=dict)

    def add(self, mount: Mount) -> None:
        """Make a mount path a link to the volume. Raises `MountRefusedError`."""
        path = mount.path
        if path in self.users:
            if path.readlink() != mount.folder:
                raise MountRefusedError(f"another pod has another volume at {path}")
            self.users[path] += 1
            return
        below = Path(tempfile.gettempdir()).resolve()
        if ".." in path.parts or below not in path.parent.resolve().parents:
            raise MountRefusedError(f"mount path {path} is not in a folder below {below}")
        if path.is_symlink() or path.exists():
            raise MountRefusedError(f"mount path {path} exists, and is none of the fake's links")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(mount.folder)
        self.users[path] = 1

    def drop(self, mount: Mount) -> None:
        """Remove the link when no pod uses it any more."""
        self.users[mount.path] -= 1
        if not self.users[mount.path]:
            del self.users[mount.path]
            mount.path.unlink(missing_ok=True)
