"""RunPod on 127.0.0.1, for tests of whoever talks to it; start at `server`."""

from trade_pipeline_tests.fakes.runpod.faults import NO_CAPACITY, NO_MONEY
from trade_pipeline_tests.fakes.runpod.pods import Timing
from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

__all__ = ["NO_CAPACITY", "NO_MONEY", "FakeRunPod", "Timing"]
