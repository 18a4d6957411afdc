"""What the OpenAPI document says of the routes for operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solocron.cron.job import NAME_PATTERN
from solocron.cron.values import MAX_PARAMS
from solocron.locks.keys import MAX_KEY
from solocron.storage.past import MOST_RUNS
from solocron.web.fleet import MOST_LOCKS
from solocron.web.operations import LONGEST_PAUSE_S, MOST_RUNS_EACH, PAUSE_S, RUNS
from solocron.web.schemas import GUARDED, Schema, answers, query, record, ref

_SECURITY: list[dict[str, list[str]]] = [{"token": []}, {"password": []}]
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TIME: Schema = {"type": "integer", "description": "UTC epoch ms."}
_MISSING: Schema = {
    "type": "object",
    "description": "What did not answer, `redis` or `database`, and what is not known therefore.",
    "properties": {"redis": _TEXT, "database": _TEXT},
    "additionalProperties": False,
}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def schemas() -> dict[str, Schema]:
    """The components."""
    now = {"now": _TIME}
    return {
        "Run": record(_run_fields()),
        "Job": record(_job_fields()),
        "JobNow": record({**now, **_job_fields(), "missing": _MISSING}),
        "Jobs": record({**now, "jobs": _list(ref("Job")), "missing": _MISSING}),
        "Runs": record({"runs": _list(ref("Run")), "next": _or_null(_TIME)}),
        "Workers": record(
            {**now, "workers": _list(record(_worker_fields())), "missing": _MISSING}
        ),
        "Locks": record({**now, "locks": _list(record(_lock_fields())), "missing": _MISSING}),
        "Alerts": record({**now, "alerts": _list(record(_alert_fields()))}),
        "Summary": record({**now, **_summary_fields(), "missing": _MISSING}),
        "Paused": record({"job": _TEXT, "paused": _FLAG, "paused_until": _or_null(_TIME)}),
        "PauseInput": record(
            {
                "for_s": {"type": "integer", "minimum": 1, "maximum": LONGEST_PAUSE_S,
                          "default": PAUSE_S}
            },
            optional=("for_s",),
        ),
        "Begun": record({"job": _TEXT, "tick": _TIME}),
        "RunInput": record(
            {"params": {"type": "object", "description": "Those that differ from the job's; "
                        f"at most {MAX_PARAMS} bytes."}},
            optional=("params",),
        ),
    }  # fmt: skip


def _run_fields() -> dict[str, Schema]:
    return {
        "job": _TEXT, "tick": _TIME, "attempt": _COUNT,
        "state": {"enum": ["running", "succeeded", "failed"]},
        "owner": _TEXT,
        "origin": {**_TEXT, "description": "schedule, manual (by hand) or backfill."},
        "asked_by": {**_or_null(_TEXT), "description": "Who asked for it, if not the schedule."},
        "params": {"type": ["object", "null"], "description": "Of a run by hand."},
        "fallback": {**_FLAG, "description": "It was begun without Redis."},
        "started_at": _TIME, "finished_at": _or_null(_TIME), "duration_ms": _or_null(_COUNT),
        "late_ms": {**_or_null(_COUNT), "description": "From when it was due to its beginning."},
        "error": _or_null(_TEXT),
        "result": {"description": "What it returned: any JSON value."},
        "progress": {**_progress(), "type": ["object", "null"]},
    }  # fmt: skip


def _progress() -> Schema:
    number: Schema = {"type": "number", "minimum": 0}
    return record({"done": number, "total": _or_null(number), "note": _TEXT})


def _job_fields() -> dict[str, Schema]:
    runs = {**_or_null(_list(ref("Run"))), "description": "The newest, newest first."}
    return {
        "job": _TEXT, "schedule": _TEXT, "timezone": _TEXT, "lock_key": _TEXT,
        "next_tick": _TIME,
        "delay_ms": {**_COUNT, "description": "Its runs begin so much after its ticks (jitter)."},
        "paused": _or_null(_FLAG), "paused_until": _or_null(_TIME),
        "paused_by": _or_null(_TEXT),
        "owner": {**_or_null(_TEXT), "description": "Who holds its lock."},
        "params": {"type": "object", "description": "Its parameters, with their defaults."},
        "lock_ttl_ms": _or_null({"type": "integer"}), "settled_tick": _or_null(_TIME),
        "runs": runs,
    }  # fmt: skip


def _worker_fields() -> dict[str, Schema]:
    whole: Schema = {"type": "integer"}
    return {
        "worker": _TEXT, "host": _TEXT, "pid": whole, "version": _TEXT, "started_ms": _TIME,
        "seen_ms": _TIME, "seen_ago_ms": _COUNT, "alive": _FLAG,
        "here": {**_FLAG, "description": "It is the one that answers."},
        "skew_ms": whole, "loop_lag_ms": whole, "redis": _TEXT, "database": _TEXT,
        "jobs_running": whole,
        "schedules": {"type": "object", "additionalProperties": _TEXT},
    }  # fmt: skip


def _lock_fields() -> dict[str, Schema]:
    return {
        "key": _TEXT, "owner": _TEXT, "ttl_ms": {"type": "integer"},
        "ours": {**_FLAG, "description": "Held by the worker that answers."},
        "job": _or_null(_TEXT), "tick": _or_null(_TIME),
    }  # fmt: skip


def _alert_fields() -> dict[str, Schema]:
    return {
        "alert": _TEXT, "job": {**_TEXT, "description": "Or the worker; empty: of none."},
        "detail": _TEXT, "severity": {"enum": ["critical", "warning"]}, "since": _TIME,
    }  # fmt: skip


def _summary_fields() -> dict[str, Schema]:
    stores = record({each: _COUNT for each in ("stores", "open", "to_close", "to_remind")})
    counts = ("pending", "sent", "dead", "skipped")
    channel = record({"channel": _TEXT, **{each: _COUNT for each in counts}})
    hour = record(
        {"job": _TEXT, "since": _TIME, "late_ms": {"type": "integer"},
         **{each: _COUNT for each in ("succeeded", "failed", "running")}}
    )  # fmt: skip
    return {
        "stores": _or_null(stores),
        "deliveries": _or_null(_list(channel)),
        "hours": {**_or_null(_list(hour)), "description": "Of the last day, those with runs."},
    }


# -- operations --------------------------------------------------------------------------------


def paths() -> dict[str, Any]:
    """The routes."""
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_RUNS, "default": RUNS}
    before = {"type": "integer", "minimum": 0, "maximum": 2**53}
    return {
        "/api/v1/jobs": _reads("Every job.", "Jobs", 422, parameters=[_runs()]),
        "/api/v1/jobs/{job}": {
            "parameters": [_job()],
            **_reads("One job.", "JobNow", 404, 422, parameters=[_runs()]),
        },
        "/api/v1/jobs/{job}/runs": {
            "parameters": [_job()],
            **_reads("A job's runs, newest first.", "Runs", 404, 422, 503, parameters=[
                query("limit", limit, "At most so many."),
                query("before", before, "Only of ticks before it: `next` of the page before."),
            ]),
        },
        "/api/v1/workers": _reads("The workers seen within a day.", "Workers"),
        "/api/v1/locks": _reads("The locks held now.", "Locks", 422, parameters=[
            query("limit", {**limit, "maximum": MOST_LOCKS, "default": MOST_LOCKS}, "At most."),
        ]),
        "/api/v1/alerts": _reads("The alerts raised now.", "Alerts"),
        "/api/v1/summary": _reads("Stores, deliveries, runs by the hour.", "Summary"),
        **_acts(),
    }  # fmt: skip


def _job() -> dict[str, Any]:
    schema = {**_TEXT, "pattern": f"^{NAME_PATTERN}$"}
    return {"name": "job", "in": "path", "required": True, "schema": schema}


def _runs() -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": MOST_RUNS_EACH, "default": 1}
    return query("runs", schema, "How many of its newest runs each job comes with.")


def _reads(
    text: str, schema: str, *problems: int, parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {
        "get": {
            "summary": f"{text} For tokens with jobs:run or metrics:read.",
            "security": _SECURITY,
            "parameters": parameters or [],
            "responses": answers({200: ("How things are.", ref(schema))}, *GUARDED, *problems),
        }
    }


def _acts() -> dict[str, Any]:
    body = {"content": {"application/json": {"schema": ref("PauseInput")}}}
    wanted = {"content": {"application/json": {"schema": ref("RunInput")}}}
    begun, paused = {202: ("It has begun.", ref("Begun"))}, ref("Paused")
    key = {**_TEXT, "pattern": r"^cron:[^\s{}/]+$", "maxLength": MAX_KEY}
    pause = "No server begins a tick of the job for so long. A run that has begun goes on."
    return {
        "/api/v1/jobs/{job}/run": _post(
            "Run a job now, beside its schedule; without its lock it is a conflict.",
            begun,
            408,
            409,
            413,
            422,
            body=wanted,
        ),
        "/api/v1/jobs/{job}/pause": _post(
            pause, {200: ("It is paused.", paused)}, 408, 413, 422, body=body
        ),
        "/api/v1/jobs/{job}/resume": _post("End a pause.", {200: ("It is not paused.", paused)}),
        "/api/v1/locks/{key}": {
            "parameters": [{"name": "key", "in": "path", "required": True, "schema": key}],
            "delete": {
                "summary": "Delete a lock, whoever holds it. For tokens with admin.",
                "security": _SECURITY,
                "responses": answers({204: ("It is gone.", None)}, *GUARDED, 404, 422, 503),
            },
        },
    }


def _post(
    text: str, good: Mapping[int, tuple[str, Schema | None]], *problems: int,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "parameters": [_job()],
        "post": {
            "summary": f"{text} For tokens with jobs:run.",
            "security": _SECURITY,
            **({"requestBody": body} if body else {}),
            "responses": answers(good, *GUARDED, 404, *problems, 503),
        },
    }
