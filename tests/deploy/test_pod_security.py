"""Rights of Volley's pods: no root, no capabilities, no Kubernetes token, and Ray's token only from its Secret."""

import re
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, KUBERAY, documents, pods

PODS = [
    pytest.param(pod, id=f"{name}-{role}")
    for name in ("raycluster.yaml", "rayjob.yaml")
    for role, pod in pods(documents(name)[0]).items()
]
SECRET = "volley-ray-token"


@pytest.mark.parametrize("pod", PODS)
def test_the_restricted_pod_security_standard_holds(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not [volume for volume in spec.get("volumes", ()) if "hostPath" in volume]
    assert not spec.get("initContainers")
    for container in spec["containers"]:
        context = container["securityContext"]
        # KubeRay copies the container's context, and not the pod's, to the containers that it adds.
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not [port for port in container.get("ports", ()) if "hostPort" in port]


@pytest.mark.parametrize("pod", PODS)
def test_no_pod_has_a_kubernetes_token(pod: dict[str, Any]) -> None:
    assert pod["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("pod", PODS)
def test_rays_token_comes_from_the_secret(pod: dict[str, Any]) -> None:
    for container in pod["spec"]["containers"]:
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        token = environment["RAY_AUTH_TOKEN"]
        assert "value" not in token
        assert token["valueFrom"]["secretKeyRef"] == {"name": SECRET, "key": "auth_token"}


def test_the_operator_uses_the_same_secret() -> None:
    for name in ("raycluster.yaml", "rayjob.yaml"):
        spec = documents(name)[0]["spec"]
        assert spec.get("rayClusterSpec", spec)["authOptions"] == {"mode": "token", "secretName": SECRET}


@pytest.mark.parametrize("pod", PODS)
def test_every_container_has_limits_and_a_pinned_image(pod: dict[str, Any]) -> None:
    for container in pod["spec"]["containers"]:
        resources = container["resources"]
        for which in ("requests", "limits"):
            assert {"cpu", "memory"} <= resources[which].keys()
        assert re.search(r":\d[\w.-]*$", container["image"]), "an image needs a version"


def test_the_namespace_enforces_the_standard() -> None:
    (namespace,) = documents("namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_tree_contains_no_secret() -> None:
    """No Secret objects, no literal values of variables that are called like one, nothing that looks like a token."""
    named_like_a_secret = re.compile(r"TOKEN$|PASSWORD|SECRET|API_?KEY|CREDENTIAL")
    for path in KUBERAY.glob("*.yaml"):
        for manifest in documents(path.name):
            assert manifest["kind"] != "Secret"
            for pod in pods(manifest).values() if manifest["kind"].startswith("Ray") else ():
                for container in pod["spec"]["containers"]:
                    for entry in container["env"]:
                        assert "value" not in entry or not named_like_a_secret.search(entry["name"])
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "grafana" not in path.parts:
            assert not re.search(r"\b(?:[0-9a-f]{32,}|hf_\w{20,}|AKIA\w{16})\b", path.read_text()), path
