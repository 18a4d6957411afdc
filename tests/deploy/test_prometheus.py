"""The alert rules fire and end, the dashboard asks for what there is, and Prometheus says so."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from commands import Cli, listening
from conftest import SECRET, RedisServer
from deployment import DEPLOY, judged, tool

FOLDER = DEPLOY / "prometheus"
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yml").read_text())
ALERTS = {each["alert"]: each for group in RULES["groups"] for each in group["rules"]
          if "alert" in each}  # fmt: skip
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "solocron.json").read_text())
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]

NAMES = {
    "SolocronJobNotRunning", "SolocronTickMissed", "SolocronJobFailed", "SolocronLockUnavailable",
    "SolocronRedisDown", "SolocronDatabaseDown", "SolocronClockSkew", "SolocronLoopBlocked",
    "SolocronDeadLetters", "SolocronWorkerDown",
}  # fmt: skip
HISTOGRAMS = {
    "solocron_lock_hold_seconds", "solocron_tick_lateness_seconds", "solocron_run_duration_seconds",
}  # fmt: skip
# Each metric of /metrics and its labels.
METRICS: dict[str, set[str]] = {
    "solocron_lock_attempts_total": {"job", "result"},
    "solocron_lock_renewals_total": {"job"},
    "solocron_lock_lost_total": {"job"},
    "solocron_lock_hold_seconds": {"job"},
    "solocron_ticks_total": {"job", "verdict"},
    "solocron_tick_lateness_seconds": {"job"},
    "solocron_run_duration_seconds": {"job"},
    "solocron_runs_total": {"job", "state"},
    "solocron_jobs_running": set(),
    "solocron_job_next_tick_timestamp_seconds": {"job"},
    "solocron_job_last_success_timestamp_seconds": {"job"},
    "solocron_job_paused": {"job"},
    "solocron_clock_skew_seconds": set(),
    "solocron_loop_lag_seconds": set(),
    "solocron_redis_up": set(),
    "solocron_database_up": set(),
    "solocron_connections": {"kind"},
    "solocron_hub_stores": set(),
    "solocron_hub_deliveries_total": set(),
    "solocron_relay_queued": set(),
    "solocron_slow_clients_total": set(),
    "solocron_deliveries": {"channel", "state"},
    "solocron_alert": {"alert", "job"},
    "solocron_build_info": {"version", "python"},
}
SCRAPED = {"instance", "namespace"}  # labels that the scrape adds


def promtool() -> str:
    return tool("promtool", "prometheus")


def expressions() -> list[str]:
    """Every PromQL expression of the rules and the dashboard."""
    rules = [each["expr"] for group in RULES["groups"] for each in group["rules"]]
    shown = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return rules + shown


def metrics(expression: str) -> set[str]:
    """The metrics of the service in it; of a histogram, its name without `_bucket`."""
    found = set(re.findall(r"\bsolocron_\w+", expression))
    return {each.removesuffix("_bucket") if each.removesuffix("_bucket") in HISTOGRAMS else each
            for each in found}  # fmt: skip


def selected(expression: str) -> list[tuple[str, str]]:
    """(metric, label) of each selector."""
    return [
        (metric.removesuffix("_bucket"), label)
        for metric, inside in re.findall(r"\b(solocron_\w+)\{([^}]*)\}", expression)
        for label in re.findall(r"(\w+)=", inside)
    ]


def test_prometheus_takes_the_rules_and_the_scrape_job() -> None:
    judged(promtool(), "check", "rules", FOLDER / "rules.yml")
    judged(promtool(), "check", "config", "--syntax-only", FOLDER / "prometheus.yml")


def test_each_alert_fires_and_ends() -> None:
    judged(promtool(), "test", "rules", FOLDER / "rules_test.yml")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_alert_that_never_fires_or_never_ends_would_be_found(name: str, tmp_path: Path) -> None:
    """The file above expects each to fire, and to end."""
    (tmp_path / "rules_test.yml").write_text((FOLDER / "rules_test.yml").read_text())
    command = [promtool(), "test", "rules", str(tmp_path / "rules_test.yml")]
    expr = ALERTS[name]["expr"]
    goes_on = f"last_over_time(({expr})[1d:1m])"  # once it has fired
    for expression in ("vector(0) > 1", f"({expr}) or vector(1)", goes_on):
        rules = json.loads(json.dumps(RULES))
        for group in rules["groups"]:
            for each in group["rules"]:
                if each.get("alert") == name:
                    each["expr"] = expression
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
        assert subprocess.run(command, capture_output=True).returncode != 0, expression


def test_the_alerts_are_those_of_the_runbook() -> None:
    told = re.findall(r"^\| `(Solocron\w+)` \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert set(told) == set(ALERTS) == NAMES and len(told) == len(NAMES)
    for each in ALERTS.values():
        assert each["labels"]["severity"] in ("critical", "warning")
        assert set(each["annotations"]) == {"summary", "description"}


def test_only_metrics_and_labels_that_exist_are_asked_for() -> None:
    for expression in expressions():
        unknown = metrics(expression) - set(METRICS)
        assert not unknown, expression
        for metric, label in selected(expression):
            assert label in METRICS[metric], (metric, label)
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            labels = {each.strip() for each in grouped.split(",")} - SCRAPED - {"le"}
            for metric in metrics(expression):
                assert labels <= METRICS[metric] | {"job"}, (expression, metric)


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {each for panel in PANELS for target in panel["targets"]
             for each in metrics(target["expr"])}  # fmt: skip
    assert shown == set(METRICS)


def test_prometheus_takes_the_dashboards_expressions(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions())
    ]
    text = yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})
    (tmp_path / "panels.yml").write_text(text)
    judged(promtool(), "check", "rules", tmp_path / "panels.yml")


def test_the_panels_stand_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [each["refId"] for each in panel["targets"]]
        assert len(set(refs)) == len(refs)


def test_the_scrape_keeps_the_label_job() -> None:
    (scrape,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["honor_labels"] is True and scrape["job_name"] == "solocron"
    assert "credentials_file" in scrape["authorization"]


async def test_the_metrics_are_those_that_a_server_has(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str
) -> None:
    cli = Cli(tmp_path, {
        "REDIS_URL": redis_server.url, "DATABASE_URL": sqlite_url, "SOLOCRON_PORT": "0",
        "SOLOCRON_AUTH_SECRET": SECRET,
    })  # fmt: skip
    try:
        port = await listening(await cli.start("serve"))
        token = (await cli("token", "--stores", "*", "--scope", "admin")).out.strip()
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as http,
            http.get("/metrics") as answer,
        ):
            if answer.status == 404:
                return  # this release has none yet
            text = await answer.text()
    finally:
        await cli.close()
    types = dict(re.findall(r"^# TYPE (solocron_\w+) (\w+)$", text, re.MULTILINE))
    assert {each for each in types if not each.endswith("_created")} == set(METRICS)
    assert {each for each, kind in types.items() if kind == "histogram"} == HISTOGRAMS
