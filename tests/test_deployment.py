"""The container image, the KubeRay manifests, and the project's files for GitHub."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError as ValidationFault
from support.deploy import kuberay, kuberay_crds
from support.deploy.dockerfile import Instruction, instructions, stages
from support.docs.commands import WrongCommand, check_command, check_line

ROOT = Path(__file__).parent.parent
KUBERAY = sorted((ROOT / "deploy/kuberay").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)


# -- KubeRay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_accepts_the_manifest_in_every_supported_version(path: Path) -> None:
    assert kuberay.newer_fields(kuberay.read(path)) == []


RUN = (ROOT / "deploy/kuberay/run.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("enableInTreeAutoscaling", "enableAutoscaling"), "enableAutoscaling"),
        (("upscalingMode: Default", "upscalingMode: Fast"), "autoscalerOptions.upscalingMode"),
        (("idleTimeoutSeconds: 120", "idleTimeoutSeconds: 2m"), "idleTimeoutSeconds"),
        (("backoffLimit: 5", 'backoffLimit: "5"'), "spec.backoffLimit"),
        (("mode: token", "mode: tokens"), "authOptions.mode"),
        (("maxReplicas: 8", ""), "'maxReplicas' is a required property"),
        (('num-cpus: "0"', "num-cpus: 0"), "rayStartParams"),
        (("emptyDir:", "emptyDirectory:"), "emptyDirectory"),
        (("containerPort: 6379", 'containerPort: "6379"'), "containerPort"),
        (("terminationGracePeriodSeconds", "gracePeriodSeconds"), "gracePeriodSeconds"),
    ],
)
def test_unknown_fields_and_wrong_values_are_refused(change: tuple[str, str], place: str) -> None:
    with pytest.raises(ValueError, match=place):
        kuberay.check(yaml.safe_load(RUN.replace(*change, 1)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"), "ttlSeconds"),
        (("K8sJobMode", "InteractiveMode"), "backoffLimit is not possible"),
        (('rayVersion: "2.60.0"', 'rayVersion: "2.51.0"'), "2.52.0 or later, not 2.51.0"),
        (("terminationGracePeriodSeconds: 120", "restartPolicy: Always"), "gpu: restartPolicy"),
        (("rayStartParams: {}", "rayStartParams: {labels: a=b}"), "gpu: labels belong"),
        (
            (
                "ports:",
                "env: [{name: RAY_REDIS_ADDRESS, value: 'redis:6379'}]\n              ports:",
            ),
            "needs gcsFaultToleranceOptions",
        ),
    ],
)
def test_what_the_operator_would_refuse_is_refused(change: tuple[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        kuberay.check(yaml.safe_load(RUN.replace(*change, 1)))


def test_fields_of_newer_versions_are_found() -> None:
    job = yaml.safe_load(RUN)
    kuberay.cluster_of(job)["authOptions"] = {"mode": "token", "secretName": "x"}
    kuberay.check(job)
    assert kuberay.newer_fields(job) == [
        ".spec.rayClusterSpec.authOptions.secretName (KubeRay 1.6)"
    ]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Definitions in the published form, made from the description of the API in ``data``."""
    folder = tmp_path_factory.mktemp("crds")
    for kind in ("RayJob", "RayService"):
        text = yaml.safe_dump(kuberay.published(kind))
        (folder / f"ray.io_{kind.lower()}s.yaml").write_text(text)
    return folder


def test_files_are_checked_against_definitions_in_the_published_form(definitions: Path) -> None:
    for path in KUBERAY:
        document = yaml.safe_load(path.read_text())
        kuberay.check_published(document, definitions)
        with pytest.raises(ValueError, match=r"unknown fields: .spec.colour"):
            kuberay.check_published(
                {**document, "spec": {**document["spec"], "colour": 1}}, definitions
            )
    job = yaml.safe_load(RUN)
    job["spec"]["backoffLimit"] = "5"
    with pytest.raises(ValidationFault, match="'5' is not of type 'integer'"):
        kuberay.check_published(job, definitions)


def test_definitions_are_fetched_by_version(definitions: Path, tmp_path: Path) -> None:
    there = tmp_path / "there/v9" / kuberay_crds.FOLDER_THERE
    shutil.copytree(definitions, there)
    source = (tmp_path / "there").as_uri()
    fetched = kuberay_crds.fetch(tmp_path / "here", "v9", source)
    assert [path.name for path in fetched] == list(kuberay_crds.FILES)
    assert fetched[0].read_text() == (there / fetched[0].name).read_text()
    (there / fetched[0].name).write_text("kind: Page\n")
    with pytest.raises(ValueError, match="holds no CustomResourceDefinition"):
        kuberay_crds.fetch(tmp_path / "here", "v9", source)


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder")
@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberays_published_definitions_accept_the_manifest(path: Path) -> None:
    kuberay.check_published(yaml.safe_load(path.read_text()), Path(os.environ["KUBERAY_CRDS"]))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_clusters_autoscale_and_require_a_token(path: Path) -> None:
    cluster = kuberay.cluster_of(kuberay.read(path))
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == PINS["ray"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_the_head_runs_no_lanes_and_no_container_runs_as_root(path: Path) -> None:
    head, *workers = kuberay.groups_of(kuberay.read(path))
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    for group in (head, *workers):
        for container in group["template"]["spec"]["containers"]:
            assert container["securityContext"]["runAsNonRoot"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_run_is_a_command_that_farm_accepts_and_fits_its_workers() -> None:
    job = kuberay.read(ROOT / "deploy/kuberay/run.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    check_command(words)
    options = dict(zip(words, words[1:], strict=False))
    (group,) = kuberay.cluster_of(job)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert options["--gpus"] == limits["nvidia.com/gpu"]
    assert options["--cpus"] == limits["cpu"]
    assert int(options["--nodes"]) == group["maxReplicas"]
    assert "--yes" in words
    assert options["--address"] == "auto"


def test_a_stopping_worker_is_drained_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # KubeRay sets it in every Ray container
    _, worker = kuberay.groups_of(kuberay.read(ROOT / "deploy/kuberay/run.yaml"))
    pod = worker["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    check_command(command)
    assert "--now" in command
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_the_endpoint_is_the_one_of_jobs_serve() -> None:
    from farm.serving.settings import EndpointConfig

    service = kuberay.read(ROOT / "deploy/kuberay/serve.yaml")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert config == yaml.safe_load((ROOT / "jobs/serve.yaml").read_text())
    endpoint = EndpointConfig.model_validate(config["applications"][0]["args"])
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > endpoint.limits.deadline_s
    _, worker = kuberay.groups_of(service)
    pod = worker["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > endpoint.replicas.drain_s
    mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    assert any(endpoint.cache_folder.startswith(path) for path in mounts)


def test_pages_apply_only_files_that_are_checked() -> None:
    check_line("kubectl apply -f deploy/kuberay/run.yaml")
    with pytest.raises(WrongCommand):
        check_line("kubectl apply -f deploy/kuberay/other.yaml")


# -- the container image --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dockerfile() -> list[Instruction]:
    return instructions((ROOT / "Dockerfile").read_text())


def test_the_image_has_a_target_for_cpu_and_one_for_cuda(dockerfile: list[Instruction]) -> None:
    assert {"cpu", "cuda"} <= set(stages(dockerfile))
    check_line("docker build --target cuda --tag x .")
    with pytest.raises(WrongCommand):
        check_line("docker build --target rocm --tag x .")


def test_every_stage_builds_on_a_pinned_image_or_an_earlier_stage(
    dockerfile: list[Instruction],
) -> None:
    known: set[str] = set()
    for name, image in stages(dockerfile).items():
        assert image in known or re.fullmatch(r"[\w/]+:[\w.${}-]*\d[\w.-]*|.*slim-bookworm", image)
        assert not image.endswith(":latest")
        known.add(name)


def test_the_image_copies_only_what_the_build_context_holds(dockerfile: list[Instruction]) -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for one in dockerfile:
        if one.name == "COPY" and "--from" not in one.flags:
            sources = [source.removeprefix("./") for source in one.words[:-1]]
            assert set(sources) <= allowed
            assert all((ROOT / source).exists() for source in sources)


def test_the_image_runs_as_a_user_with_the_id_that_kuberay_uses(
    dockerfile: list[Instruction],
) -> None:
    text = " ".join(one.text for one in dockerfile)
    assert re.search(r"useradd .*--uid 1000 .*\bray\b", text)
    assert [one.text for one in dockerfile if one.name == "USER"] == ["ray"]


def test_the_clusters_token_is_put_where_the_images_user_reads_it() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert list(cluster["file_mounts"]) == ["/home/ray/.ray/auth_token"]


def test_login_shells_find_the_farm(dockerfile: list[Instruction]) -> None:
    (path,) = [one.text for one in dockerfile if one.name == "ENV" and "PATH=" in one.text]
    folder = path.split("PATH=")[1].split(":")[0]
    assert any(f"PATH={folder}:$PATH' > /etc/profile.d" in one.text for one in dockerfile)


def test_what_the_image_installs_is_pinned(dockerfile: list[Instruction]) -> None:
    for one in dockerfile:
        if one.name != "RUN":
            continue
        for command in re.split(r"&&|;", one.text):
            if "pip install" in command:
                assert "--constraint" in command or re.search(r"\w==[\d.]+", command), command
                assert re.search(r"--no-cache(-dir)?\b", command), command
            if "apt-get install" in command:
                assert "--no-install-recommends" in command
                assert "rm -rf /var/lib/apt/lists/*" in one.text
    (extras,) = {tuple(found) for found in re.findall(r"\[(s3),(gcs)\]", str(dockerfile))}
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    version = re.search(r"ARG PYTHON_VERSION=([\d.]+)", (ROOT / "Dockerfile").read_text())
    assert version is not None
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


# -- the project's files --------------------------------------------------------------------------


def _yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_workflow_runs_what_ci_runs() -> None:
    jobs = _yaml(".github/workflows/ci.yaml")["jobs"]
    for name, script in (("checks-and-tests", ".ci/run"), ("lowest-versions", ".ci/lowest")):
        steps = jobs[name]["steps"]
        assert any(step.get("run") == script for step in steps)
        assert os.access(ROOT / script, os.X_OK)
    for job in jobs.values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.search(r"@v\d+$", step["uses"])
        assert job["permissions"] == {"contents": "read"}


def test_the_citation_names_this_version() -> None:
    citation = _yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert {"message", "type", "authors", "abstract"} <= set(citation)


def test_every_issue_form_asks_for_something_required() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yaml"))
    assert len(forms) == 2
    for path in forms:
        form = _yaml(str(path.relative_to(ROOT)))
        assert {"name", "description", "body"} <= set(form)
        assert any(field.get("validations", {}).get("required") for field in form["body"])
        ids = [field["id"] for field in form["body"] if "id" in field]
        assert len(ids) == len(set(ids))


def test_pre_commit_runs_commands_that_make_check_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for repo in _yaml(".pre-commit-config.yaml")["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            assert hook["language"] == "system"
            assert hook["entry"].removeprefix(".venv/bin/").split()[0] in makefile
