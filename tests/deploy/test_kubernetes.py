"""The Kubernetes manifests are valid, confined, and fit together and with the service."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment import DEPLOY
from solocron.service import Solocron
from solocron.settings import load

FOLDER = DEPLOY / "kubernetes"
FILES = sorted(each for each in FOLDER.glob("*.yaml") if each.name != "kustomization.yaml")
OBJECTS: dict[str, dict[str, Any]] = {each.stem: yaml.safe_load(each.read_text()) for each in FILES}
PODS = {name: OBJECTS[name]["spec"]["template"] for name in ("deployment", "migrate")}
SECRETS = "/run/secrets/solocron"


@pytest.mark.parametrize("file", FILES, ids=lambda each: each.stem)
def test_kubernetes_takes_each_manifest(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the validator's own use of its libraries
        validator = pytest.importorskip(
            "kubernetes_validate", reason="pip install kubernetes-validate"
        )
        versions = validator.utils.all_versions()
        assert len(versions) > 5
        for version in (versions[-1], versions[-6]):  # the newest, and one two years older
            validator.validate(OBJECTS[file.stem], version, strict=True)


def test_the_kustomization_has_every_file() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert sorted(listed["resources"]) == [each.name for each in FILES]
    images = {each["image"] for pod in PODS.values() for each in pod["spec"]["containers"]}
    assert {each["name"] for each in listed["images"]} == images


def test_no_secret_is_in_the_files() -> None:
    assert "Secret" not in {each["kind"] for each in OBJECTS.values()}
    for pod in PODS.values():
        names = [each["secret"]["secretName"] for each in pod["spec"]["volumes"]]
        assert names == ["solocron"]


@pytest.mark.parametrize("name", PODS)
def test_each_pod_is_confined(name: str) -> None:
    spec = PODS[name]["spec"]
    assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
    security = spec["securityContext"]
    assert security["runAsNonRoot"] and security["seccompProfile"] == {"type": "RuntimeDefault"}
    user = f"USER {security['runAsUser']}:{security['runAsGroup']}"
    assert user in (DEPLOY / "Dockerfile").read_text()
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert "memory" in container["resources"]["limits"]
    assert "cpu" not in container["resources"]["limits"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == SECRETS and mount["readOnly"]
    assert OBJECTS["namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]


def test_the_settings_load_and_the_service_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"database-url": "postgresql://u:p@db/solocron", "redis-url": "redis://:p@redis/0",
              "auth-secret": "x" * 32}  # fmt: skip
    for name, value in values.items():
        (tmp_path / name).write_text(value)
        assert f"--from-file={name}=" in (DEPLOY / "README.md").read_text()
    for name, value in OBJECTS["configmap"]["data"].items():
        assert isinstance(value, str)
        monkeypatch.setenv(name, value.replace(SECRETS, str(tmp_path)))
    settings = load()
    assert settings.redis == values["redis-url"] and settings.environment == "production"
    Solocron(settings)
    assert PODS["deployment"]["spec"]["terminationGracePeriodSeconds"] > settings.grace + 10


def test_the_probes_are_open_routes() -> None:
    (container,) = PODS["deployment"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": 8080} and "EXPOSE 8080" in (DEPLOY / "Dockerfile").read_text()
    for probe, path in (
        ("liveness", "/healthz"),
        ("startup", "/healthz"),
        ("readiness", "/readyz"),
    ):
        get = container[f"{probe}Probe"]["httpGet"]
        assert (get["path"], get["port"]) == (path, "http")
    assert "lifecycle" not in container  # SIGTERM drains


def test_what_selects_the_workers_selects_them_only() -> None:
    workers = PODS["deployment"]["metadata"]["labels"]
    migrate = PODS["migrate"]["metadata"]["labels"]
    selectors = [
        OBJECTS["deployment"]["spec"]["selector"]["matchLabels"],
        OBJECTS["service"]["spec"]["selector"],
        OBJECTS["poddisruptionbudget"]["spec"]["selector"]["matchLabels"],
        PODS["deployment"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for each in selectors:
        assert each.items() <= workers.items() and not each.items() <= migrate.items()
    confined = OBJECTS["networkpolicy"]["spec"]["podSelector"]["matchLabels"]
    assert confined.items() <= workers.items() and confined.items() <= migrate.items()
    assert OBJECTS["service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_the_network_policy_lets_redis_the_database_and_names_through() -> None:
    spec = OBJECTS["networkpolicy"]["spec"]
    out = {(each["protocol"], each["port"]) for rule in spec["egress"] for each in rule["ports"]}
    assert {("TCP", 6379), ("TCP", 5432), ("UDP", 53), ("TCP", 53)} <= out
    assert [each["port"] for rule in spec["ingress"] for each in rule["ports"]] == ["http"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
