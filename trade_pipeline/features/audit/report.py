"""What an audit found, and how it is told. Start at `Audit.report`."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["clean", "looks ahead", "not deterministic", "failed"]
SHOWN = 20  # findings in a report


@dataclass(frozen=True)
class Finding:
    """One column, or one part of an observation, that is at fault, where it first is.

    Attributes:
        component: the column, or the part of the observation such as `features[3, 2]`.
        row: of the frame, from 0: the first bad row of a column; the row that an observation has
            read too early.
        what: the rest of the sentence that `component` begins.
        step: of the environment, 0 at `reset`; None for functions.
    """

    component: str
    row: int
    what: str
    step: int | None = None


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    Attributes:
        subject: what was audited.
        verdict: `clean` means that nothing was found where it was looked for.
        findings: at most one a component.
        tried: what was done, a sentence.
        notes: what could not be judged, sentences.
    """

    subject: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    tried: str
    notes: tuple[str, ...] = ()

    def report(self) -> str:
        """Plain text of a few lines, for an issue or a log."""
        lines = [f"{self.subject}: {self.verdict}", self.tried]
        lines += [f"- {one.component} {one.what}" for one in self.findings[:SHOWN]]
        if len(self.findings) > SHOWN:
            lines.append(f"- and {len(self.findings) - SHOWN} more")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def told(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def name_of(subject: object) -> str:
    """What a function is called."""
    return str(getattr(subject, "__qualname__", type(subject).__name__))


def shown(value: object) -> str:
    """A value, short."""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
