"""What all fake venues share: an HTTP server on 127.0.0.1, and faults that wait for their answers.

Knows no venue, wire format or clock; those are in the modules of the fakes. Start at `FakeServer`;
a fake is a subclass that gives `answer`, and keeps its faults in `PlannedFaults`.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import parse_qsl

from trade_pipeline_tests.fakes.web import HangUpError, Reply, Request, WebServer

HUNG_UP = ("timeout", "connection reset")


class Answer(NamedTuple):
    """What goes over the wire.

    Attributes:
        content_type: empty: the answer does not say.
        missing: bytes that the answer announces and does not send, before it hangs up.
    """

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    missing: int = 0


class Received(NamedTuple):
    """One request; `query` as pairs, `headers` by their names in small letters."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    form: dict[str, str]

    @property
    def params(self) -> dict[str, str]:
        """The query by name; of a name that came twice, the last."""
        return dict(self.query)


def as_json(content: Any, status: int = 200) -> Answer:
    """An answer with this content."""
    return Answer(json.dumps(content).encode(), status)


class FakeServer:
    """A venue over loopback HTTP, to be used as a context manager.

    Attributes:
        url: address to use instead of the venue's.
        hold_s: how long the fault "timeout" keeps silent before it hangs up.
    """

    keeps_open: ClassVar[bool] = True  # whether a connection may carry more than one request

    def __init__(self) -> None:
        self.hold_s = 0.5
        self._lock = threading.Lock()
        self._web = WebServer(self._passed_on)
        self.url = self._web.url

    def __enter__(self) -> Self:
        self._web.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._web.stop()

    @property
    def stopping(self) -> threading.Event:
        """Set when it ends."""
        return self._web.stopping

    def answer(self, received: Received) -> Answer | str:
        """What a request gets; a string is one of `HUNG_UP`. Called by several threads."""
        raise NotImplementedError

    def headers(self) -> Mapping[str, str]:
        """What every answer says beside its type and length, such as the venue's time."""
        return {}

    def _passed_on(self, request: Request) -> Reply:
        form = dict(parse_qsl(request.body.decode(), keep_blank_values=True))
        query = tuple(parse_qsl(request.raw_query, keep_blank_values=True))
        answer = self.answer(
            Received(request.method, request.raw_path, query, request.headers, form)
        )
        if answer == "timeout":
            raise HangUpError(self.hold_s)
        if answer == "connection reset":
            raise HangUpError(reset=True)
        if not isinstance(answer, Answer):
            raise ValueError(f"no fault {answer!r} without a body; there are {HUNG_UP}")
        return Reply(
            answer.status,
            answer.body,
            answer.content_type and f"{answer.content_type}; charset=utf-8",
            self.headers(),
            length=len(answer.body) + answer.missing,
            ends=not self.keeps_open or answer.missing > 0,
        )


@dataclass
class Plan:
    """Faults still to come on a route: after so many other answers, so many times."""

    route: str
    fault: Any
    times: int
    after: int


class PlannedFaults:
    """Faults in the order in which they were asked for."""

    def __init__(self) -> None:
        self._plans: list[Plan] = []

    def add(self, route: str, fault: Any, times: int, after: int) -> None:
        """Plan a fault for the routes whose path holds this text."""
        self._plans.append(Plan(route, fault, times, after))

    def due(self, path: str) -> Plan | None:
        """The fault for the answer being made, if any; it stays until it is `done`."""
        plan = next((one for one in self._plans if one.route in path), None)
        if plan is not None and plan.after:
            plan.after -= 1
            return None
        return plan

    def done(self, plan: Plan) -> None:
        """The fault has happened once."""
        plan.times -= 1
        if not plan.times:
            self._plans.remove(plan)

    @property
    def unused(self) -> list[tuple[str, Any, int]]:
        """What was asked for and did not happen: route, fault, how many times."""
        return [(plan.route, plan.fault, plan.times) for plan in self._plans]
