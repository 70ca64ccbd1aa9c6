"""The manifests for Kubernetes: what KubeRay's schemas say, and what the project needs beside."""

import copy

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.config import ServeConfig
from tests.deploy.files import CONFIG_NAME, DEPLOY, RAY_KINDS, ROOT, cluster_spec, manifest, pinned, pods

SCHEMA = yaml.safe_load((ROOT / "tests/deploy/kuberay.yaml").read_text())


@pytest.mark.parametrize(("name", "kind"), RAY_KINDS.items())
def test_manifest_is_valid(name, kind):
    document = manifest(name)
    assert document["kind"] == kind
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpecs"), {}),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (
            (
                "spec",
                "workerGroupSpecs",
                0,
                "template",
                "spec",
                "containers",
                0,
                "resources",
                "limits",
                "memory",
            ),
            "1000 GB",
        ),
        (("spec", "workerGroupSpecs", 0, "minReplica"), 1),
    ],
)
def test_schema_refuses_mistakes(path, value):
    document = copy.deepcopy(manifest("raycluster.yaml"))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


@pytest.mark.parametrize("name", RAY_KINDS)
def test_pods_fit_together(name):
    document = manifest(name)
    assert cluster_spec(document)["rayVersion"] == pinned("ray")
    claim = manifest("storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod_name, pod in pods(document):
        # KubeRay runs `ray start` in the first container.
        container = pod["containers"][0]
        assert container["image"] == "zero2hero:gpu"
        resources = container["resources"]
        assert resources["limits"] == resources["requests"], "Ray counts limits, Kubernetes places requests"
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        # Every process of a run reads and writes the same folder, by the same path.
        shared = volumes[mounts["/runs"]]["persistentVolumeClaim"]["claimName"]
        assert shared == claim["metadata"]["name"]
        if pod_name == "head":
            assert "nvidia.com/gpu" not in resources["limits"]
        else:
            assert int(resources["limits"]["nvidia.com/gpu"]) >= 1
            # The default of a container is 64 MiB.
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def test_autoscaled_groups_start_empty_and_others_are_whole():
    for name in RAY_KINDS:
        spec = cluster_spec(manifest(name))
        (group,) = spec["workerGroupSpecs"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        if not spec.get("enableInTreeAutoscaling"):
            assert group["minReplicas"] == group["maxReplicas"]


def test_the_services_configuration_is_one_of_serve_and_of_this_project():
    text = manifest("rayservice.yaml")["spec"]["serveConfigV2"]
    assert not CONFIG_NAME.search(text)
    settings = yaml.safe_load(text)
    ServeDeploySchema.model_validate(settings)
    (application,) = settings["applications"]
    arguments = application["args"]
    target = arguments.pop("target")
    config = ServeConfig.model_validate(arguments)
    options = settings["http_options"]
    assert (config.host, config.port) == (options["host"], options["port"])
    assert target.startswith("/runs/")
    assert config.api_keys, "an address that other machines reach needs keys"
    (worker,) = [pod for name, pod in pods(manifest("rayservice.yaml")) if name != "head"]
    assert float(worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) >= config.gpus
    assert (DEPLOY / "rayservice.yaml").read_text().count("containerPort: 8000") == 1
