"""Evaluates the rules of networkpolicy.yaml: which pods can reach which, on which port."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.deploy.manifests import documents, pods

HOME = "volley"
POLICIES = documents("networkpolicy.yaml")


@dataclass(frozen=True)
class Peer:
    labels: dict[str, str]
    namespace: dict[str, str] = field(default_factory=lambda: {"kubernetes.io/metadata.name": HOME})

    @property
    def at_home(self) -> bool:
        return self.namespace["kubernetes.io/metadata.name"] == HOME


def _labels(role: str) -> dict[str, str]:
    labels: dict[str, str] = pods(documents("rayjob.yaml")[0])[role]["metadata"]["labels"]
    return labels


HEAD, WORKER, SUBMITTER = Peer(_labels("head")), Peer(_labels("worker gpu")), Peer(_labels("submitter"))
NEIGHBOUR = Peer({"app": "notebook"})
STRANGER = Peer({"app.kubernetes.io/part-of": "volley"}, {"kubernetes.io/metadata.name": "other"})
OPERATOR = Peer({}, {"kubernetes.io/metadata.name": "kuberay-system", "volley-dashboard": "allowed"})
PROMETHEUS = Peer({}, {"kubernetes.io/metadata.name": "monitoring", "volley-metrics": "allowed"})
DNS = Peer({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"})
INTERNET = Peer({}, {"kubernetes.io/metadata.name": ""})


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def _matches(peer: Peer, rule: dict[str, Any]) -> bool:
    assert rule.keys() <= {"podSelector", "namespaceSelector"}
    if "namespaceSelector" in rule:
        here = _selects(rule["namespaceSelector"], peer.namespace)
    else:
        here = peer.at_home
    return here and _selects(rule.get("podSelector", {}), peer.labels)


def _lets(direction: str, this: Peer, other: Peer, port: int, protocol: str) -> bool:
    """Whether the policies that select `this` let traffic to or from `other` pass."""
    if not this.at_home:
        return True
    chosen = [policy["spec"] for policy in POLICIES if _selects(policy["spec"]["podSelector"], this.labels)]
    chosen = [spec for spec in chosen if direction in spec["policyTypes"]]
    rules = [rule for spec in chosen for rule in spec.get(direction.lower(), ())]
    side = "from" if direction == "Ingress" else "to"
    return not chosen or any(
        any(_matches(other, each) for each in rule[side])
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules
    )


def _reaches(source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    return _lets("Egress", source, target, port, protocol) and _lets("Ingress", target, source, port, protocol)


@pytest.mark.parametrize("source", [HEAD, WORKER, SUBMITTER])
@pytest.mark.parametrize("target", [HEAD, WORKER])
@pytest.mark.parametrize("port", [6379, 8265, 8080, 34567])
def test_the_pods_reach_each_other_on_every_port(source: Peer, target: Peer, port: int) -> None:
    assert _reaches(source, target, port)


@pytest.mark.parametrize("source", [NEIGHBOUR, STRANGER, INTERNET])
@pytest.mark.parametrize("port", [6379, 8265, 8080, 10001, 52365])
def test_nothing_else_reaches_the_pods(source: Peer, port: int) -> None:
    assert not _reaches(source, HEAD, port)
    assert not _reaches(source, WORKER, port)


def test_labels_give_namespaces_access() -> None:
    assert _reaches(OPERATOR, HEAD, 8265)
    assert not _reaches(OPERATOR, HEAD, 6379)
    assert not _reaches(OPERATOR, HEAD, 8080)
    assert not _reaches(OPERATOR, WORKER, 8265)
    assert _reaches(PROMETHEUS, HEAD, 8080)
    assert _reaches(PROMETHEUS, WORKER, 8080)
    assert not _reaches(PROMETHEUS, HEAD, 8265)


@pytest.mark.parametrize("source", [HEAD, WORKER, SUBMITTER])
def test_only_dns_is_reachable_outside(source: Peer) -> None:
    assert _reaches(source, DNS, 53, "UDP")
    assert _reaches(source, DNS, 53, "TCP")
    assert not _reaches(source, DNS, 443)
    assert not _reaches(source, INTERNET, 443)
    assert not _reaches(source, INTERNET, 53, "UDP")
    assert not _reaches(source, OPERATOR, 443)
