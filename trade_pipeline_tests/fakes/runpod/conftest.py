"""Fixtures of the fake RunPod's own tests."""

from collections.abc import Iterator

import httpx
import pytest

from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.fakes.runpod.clients import quick


@pytest.fixture
def fake() -> Iterator[FakeRunPod]:
    with FakeRunPod(timing=quick()) as running:
        yield running


@pytest.fixture
def api(fake: FakeRunPod) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {fake.api_key}"}
    with httpx.Client(base_url=fake.rest_url, headers=headers, timeout=10, verify=False) as client:
        yield client
