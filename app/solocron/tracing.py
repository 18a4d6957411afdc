"""Spans, where the API of OpenTelemetry is installed (the extra `otel`); else nothing, at no cost.

What becomes of a span is the process's own matter: its tracer provider decides, and without one
they are not recorded. A run is a trace of its own, for it may outlive what it was begun by, and be
one of many; a link leads back to that. Log lines get the trace's id in `logs`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from solocron.logs import redact
from solocron.version import __version__

if TYPE_CHECKING:
    from opentelemetry import trace

Attributes = Mapping[str, str | int | bool]


class Span:
    """Something that is being done. This one tells nobody."""

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""

    def fail(self, reason: str) -> None:
        """It failed, for that reason."""


class Tracer:
    """Begins spans. This one begins none."""

    _nothing: AbstractContextManager[Span] = nullcontext(Span())

    def span(
        self,
        name: str,
        attributes: Attributes,
        *,
        links: Iterable[object | None] = (),
        root: bool = True,
    ) -> AbstractContextManager[Span]:
        """A span around what is done within. `links` are what `here` gave elsewhere; unless it
        is a `root` it is part of the span that surrounds it."""
        return self._nothing

    def here(self) -> object | None:
        """What a span links to that goes on with what is done now; None: nothing is traced."""
        return None

    def record(self, error: BaseException) -> None:
        """Note an error with the span that surrounds this."""


def tracer(provider: trace.TracerProvider | None = None) -> Tracer:
    """What traces by `provider` (None: by the process's own), if OpenTelemetry is installed."""
    try:
        return _OpenTelemetry(provider)
    except ImportError:
        return Tracer()


class _Recording(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(dict(attributes))

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR, redact(reason))


class _OpenTelemetry(Tracer):
    """Raises ImportError where it is not installed."""

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        from opentelemetry import context, trace

        self._api, self._context = trace, context
        self._tracer = trace.get_tracer("solocron", __version__, tracer_provider=provider)

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Attributes,
        *,
        links: Iterable[object | None] = (),
        root: bool = True,
    ) -> Iterator[Span]:
        leading = {id(each): each for each in links if isinstance(each, self._api.SpanContext)}
        with self._tracer.start_as_current_span(
            name, context=self._context.Context() if root else None, attributes=dict(attributes),
            links=[self._api.Link(each) for each in leading.values()],
            record_exception=False,  # `record` does, without passwords
            set_status_on_exception=False,
        ) as span:  # fmt: skip
            traced = _Recording(span)
            try:
                yield traced
            except Exception as error:
                self.record(error)
                traced.fail(f"{type(error).__name__}: {error}")
                raise

    def here(self) -> object | None:
        found = self._api.get_current_span().get_span_context()
        return found if found.is_valid else None

    def record(self, error: BaseException) -> None:
        stack = "".join(traceback.format_exception(error))
        self._api.get_current_span().record_exception(
            error, {"exception.message": redact(str(error)), "exception.stacktrace": redact(stack)}
        )
