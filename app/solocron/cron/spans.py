"""What is traced of ticks: a span of each tick that is tried here, and one of each run.

`tick <job>` is this server's part in a tick, with its verdict, also if that is that another server
runs it. `cron <job>` is a run, with its own trace, that links to the tick it was begun for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from solocron.cron.job import Job
from solocron.cron.outcome import Outcome, verdict_of
from solocron.tracing import Span, Tracer


def tick_span(tracer: Tracer, job: Job, tick: int, origin: str) -> AbstractContextManager[Span]:
    """Around all that is done here about a tick. By hand, it is part of what asked for it."""
    return tracer.span(
        f"tick {job.name}",
        {"solocron.job": job.name, "solocron.tick": tick, "solocron.origin": origin},
        root=origin != "manual",
    )


def run_span(
    tracer: Tracer, job: Job, tick: int, attempt: int, fallback: bool
) -> AbstractContextManager[Span]:
    """Around a run, from its begin in the ledger to its end there."""
    return tracer.span(
        f"cron {job.name}",
        {
            "solocron.job": job.name, "solocron.tick": tick, "solocron.attempt": attempt,
            "solocron.fallback": fallback,
        },
        links=(tracer.here(),),
    )  # fmt: skip


def end(span: Span, job: Job, tick: int, outcome: Outcome, origin: str) -> None:
    """Say how it went."""
    span.set({"solocron.verdict": verdict_of(job, tick, outcome, origin)})
    if outcome.attempt:
        span.set({"solocron.attempt": outcome.attempt})
    if outcome.state in ("failed", "lost"):
        span.fail(outcome.reason or outcome.state)
