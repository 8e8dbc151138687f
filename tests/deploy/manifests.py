"""Reads the manifests and checks them as strictly as a Kubernetes server with `--validate=strict` would.

The models of the Kubernetes client define the fields, their types, and which are required. The client ignores unknown
fields; here they are errors. KubeRay's kinds are not in the client: the fields that we use are listed below, from
ray-operator/apis/ray/v1 of KubeRay 1.6 (authOptions.secretName).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client as models

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
KUBERAY = DEPLOY / "kuberay"

Schema = dict[str, Any]
"""Field to type: a type name of the client ("str",
"V1PodTemplateSpec", "dict[str, str]", "list[...]"), or a Schema, or a
list with one Schema. A field whose name ends in "!" is required."""

RAY_CLUSTER_SPEC: Schema = {
    "suspend": "bool",
    "managedBy": "str",
    "rayVersion": "str",
    "enableInTreeAutoscaling": "bool",
    "headServiceAnnotations": "dict[str, str]",
    "authOptions": {"mode": "str", "secretName": "str", "enableK8sTokenAuth": "bool"},
    "headGroupSpec!": {
        "template!": "V1PodTemplateSpec",
        "rayStartParams!": "dict[str, str]",
        "serviceType": "str",
        "headService": "V1Service",
        "enableIngress": "bool",
    },
    "workerGroupSpecs": [
        {
            "groupName!": "str",
            "replicas": "int",
            "minReplicas!": "int",
            "maxReplicas!": "int",
            "numOfHosts": "int",
            "idleTimeoutSeconds": "int",
            "rayStartParams!": "dict[str, str]",
            "template!": "V1PodTemplateSpec",
        }
    ],
}
RAY_JOB_SPEC: Schema = {
    "entrypoint": "str",
    "metadata": "dict[str, str]",
    "runtimeEnvYAML": "str",
    "jobId": "str",
    "submissionMode": "str",
    "submitterPodTemplate": "V1PodTemplateSpec",
    "submitterConfig": {"backoffLimit": "int"},
    "activeDeadlineSeconds": "int",
    "backoffLimit": "int",
    "shutdownAfterJobFinishes": "bool",
    "ttlSecondsAfterFinished": "int",
    "suspend": "bool",
    "managedBy": "str",
    "clusterSelector": "dict[str, str]",
    "entrypointNumCpus": "float",
    "entrypointNumGpus": "float",
    "entrypointResources": "str",
    "rayClusterSpec": RAY_CLUSTER_SPEC,
}


def _ray_kind(spec: Schema) -> Schema:
    return {"apiVersion!": "str", "kind!": "str", "metadata!": "V1ObjectMeta", "spec!": spec}


KINDS: dict[tuple[str, str], Any] = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("v1", "Secret"): "V1Secret",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("ray.io/v1", "RayCluster"): _ray_kind(RAY_CLUSTER_SPEC),
    ("ray.io/v1", "RayJob"): _ray_kind(RAY_JOB_SPEC),
}
SCALARS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (float, int)}


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a file below deploy/kuberay."""
    return [each for each in yaml.safe_load_all((KUBERAY / name).read_text()) if each is not None]


def problems(manifest: dict[str, Any]) -> list[str]:
    """What a strict server would refuse; empty if nothing."""
    kind = (manifest.get("apiVersion", ""), manifest.get("kind", ""))
    if kind not in KINDS:
        return [f"unknown kind {kind}"]
    return list(_check(manifest, KINDS[kind], kind[1]))


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pod templates of a RayCluster or RayJob, by their role."""
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {f"worker {group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in spec:
        found["submitter"] = spec["submitterPodTemplate"]
    return found


def gibibytes(quantity: str) -> float:
    """A quantity of memory such as 16Gi or 1073741824."""
    match = re.fullmatch(r"([0-9.]+)(Ki|Mi|Gi|Ti|)", quantity)
    assert match, quantity
    return float(match[1]) * {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "": 1}[match[2]] / 2**30


def _check(value: Any, kind: Any, where: str) -> Iterator[str]:
    if isinstance(kind, dict):
        yield from _check_schema(value, kind, where)
    elif isinstance(kind, list):
        for index, each in enumerate(value):
            yield from _check(each, kind[0], f"{where}[{index}]")
    elif match := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{where}: not a list"
            return
        for index, each in enumerate(value):
            yield from _check(each, match[1], f"{where}[{index}]")
    elif match := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", kind):
        if not isinstance(value, dict):
            yield f"{where}: not a mapping"
            return
        for key, each in value.items():
            yield from _check(each, match[1], f"{where}.{key}")
    elif kind in SCALARS:
        # In Python `true` is also an int, and the server refuses an unquoted 1 in a map of strings.
        if not isinstance(value, SCALARS[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield f"{where}: {value!r} is not {kind}"
    elif kind not in ("object", "datetime"):
        yield from _check_model(value, getattr(models, kind), where)


def _check_schema(value: Any, schema: Schema, where: str) -> Iterator[str]:
    fields = {name.rstrip("!"): kind for name, kind in schema.items()}
    if not isinstance(value, dict):
        yield f"{where}: not a mapping"
        return
    yield from (f"{where}.{key}: no such field" for key in value if key not in fields)
    yield from (f"{where}.{name[:-1]}: not set" for name in schema if name.endswith("!") and name[:-1] not in value)
    for key in value.keys() & fields.keys():
        yield from _check(value[key], fields[key], f"{where}.{key}")


def _check_model(value: Any, model: Any, where: str) -> Iterator[str]:
    attributes = {theirs: ours for ours, theirs in model.attribute_map.items()}
    if not isinstance(value, dict):
        yield f"{where}: not a mapping"
        return
    yield from (f"{where}.{key}: no such field" for key in value if key not in attributes)
    known = {attributes[key]: each for key, each in value.items() if key in attributes}
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    yield from (f"{where}.{model.attribute_map[name]}: not set" for name in required if name not in known)
    for name, each in known.items():
        yield from _check(each, model.openapi_types[name], f"{where}.{model.attribute_map[name]}")
