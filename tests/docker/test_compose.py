"""docker/compose.yaml, as far as it can be judged without a container engine; test_commands.py parses what it starts."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
# A service that ends is asked for its exit code; these services answer nobody, so they are restarted when they end and that is all.
WITHOUT_CHECK = {"deploy", "prefect-services"}
WORKERS = ["worker-cpu", "worker-mi300x"]


def without_code(lines: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", lines, flags=re.M)


def test_it_validates_against_the_published_schema_offline() -> None:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", FILE]
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    assert "network_mode" not in SERVICES[name]
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port), port


def test_databases_are_not_published_and_workers_do_not_reach_them() -> None:
    assert yaml.safe_load(FILE.read_text())["networks"]["databases"] == {"internal": True}
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["databases"]
        assert "ports" not in SERVICES[name]
    for name in (*WORKERS, "deploy"):
        assert SERVICES[name]["networks"] == ["clients"]


def test_secrets_have_no_default_and_are_named_in_the_example() -> None:
    used = re.findall(r"\$\{(\w+)(:[-?])?([^}]*)\}", without_code(FILE.read_text()))
    secret = {name for name, _, _ in used if re.search("PASSWORD|AUTH|SECRET|KEY", name)}
    assert secret == {"POSTGRES_PASSWORD", "PREFECT_AUTH"}
    for name, operator, rest in used:
        assert operator == (":?" if name in secret else ":-"), name
        assert rest or name == "PIP_EXTRA_INDEX_URL"
    example = (FILE.parent / ".env.example").read_text().splitlines()
    assert {line for line in example if line and not line.startswith("#")} == {f"{name}=" for name in secret}
    assert not re.search(r"://\w*:[^/@\s]+@", FILE.read_text())  # nor does one stand in an address


@pytest.mark.parametrize("name", SERVICES)
def test_what_names_a_prefect_setting_is_one(name: str) -> None:
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    # The last two are read by prefect-redis, which this environment need not have; each of its modules has its own.
    known = {*_get_valid_setting_names(Settings), "PREFECT_REDIS_MESSAGING_URL", "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL"}
    used = {variable for variable in SERVICES[name].get("environment", {}) if variable.startswith("PREFECT_")}
    assert used <= known


@pytest.mark.parametrize("name", SERVICES)
def test_what_names_an_mlflow_setting_is_one(name: str) -> None:
    from mlflow import environment_variables
    from mlflow.cli import server

    known = {*vars(environment_variables), *(option.envvar for option in server.params if isinstance(option.envvar, str))}
    assert {variable for variable in SERVICES[name].get("environment", {}) if variable.startswith("MLFLOW_")} <= known


def test_an_api_server_without_services_shares_messages_with_the_services() -> None:
    assert "--no-services" in SERVICES["prefect-server"]["command"]
    page = {"PREFECT_SERVER_UI_API_URL": "http://127.0.0.1:${PREFECT_PORT:-4200}/api"}
    server, services = SERVICES["prefect-server"]["environment"], SERVICES["prefect-services"]["environment"]
    assert server == services | page
    in_memory = {key: value for key, value in services.items() if value.startswith("prefect.server") or "memory" in value}
    assert not in_memory
    assert {value.partition(".")[0] for key, value in services.items() if "MESSAGING_" in key and "URL" not in key} == {"prefect_redis"}


@pytest.mark.parametrize("name", SERVICES)
def test_it_waits_for_services_that_exist_and_that_can_be_found_healthy(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[needed]
        elif how["condition"] == "service_completed_successfully":
            assert SERVICES[needed]["restart"] == "no"
        else:
            assert needed in SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_it_has_a_health_check_unless_it_answers_nobody(name: str) -> None:
    assert ("healthcheck" in SERVICES[name]) == (name not in WITHOUT_CHECK)


@pytest.mark.parametrize("name", SERVICES)
def test_its_volumes_files_and_networks_exist(name: str) -> None:
    whole = yaml.safe_load(FILE.read_text())
    for volume in SERVICES[name].get("volumes", []):
        source = volume.partition(":")[0]
        assert (FILE.parent / source).is_file() if source.startswith(".") else source in whole["volumes"]
    assert set(SERVICES[name]["networks"]) <= set(whole["networks"])


@pytest.mark.parametrize("name", SERVICES)
def test_its_image_is_built_here_or_has_a_version(name: str) -> None:
    built = {service["image"]: service["build"] for service in SERVICES.values() if "build" in service}
    image = SERVICES[name]["image"]
    if image not in built:
        assert re.fullmatch(r"\w+:\d+-bookworm", image)
        return
    assert (FILE.parent / built[image]["context"] / built[image]["dockerfile"]).is_file()
    assert "build" in SERVICES[name] or SERVICES[name]["pull_policy"] == "never"


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_starts_on_its_pool_and_shares_the_store(name: str) -> None:
    assert SERVICES[name]["command"][:6] == ["prefect", "worker", "start", "--pool", name.removeprefix("worker-"), "--type"]
    assert "store:/store" in SERVICES[name]["volumes"]
    assert SERVICES[name]["environment"]["TRLM_STORE"] == "/store"
    assert "HF_HUB_OFFLINE" not in SERVICES[name]["environment"]
    assert SERVICES[name]["depends_on"]["deploy"] == {"condition": "service_completed_successfully"}


def test_the_gpu_s_worker_has_the_gpu_alone_and_starts_only_when_asked_for() -> None:
    worker = SERVICES["worker-mi300x"]
    assert worker["profiles"] == ["gpu"]
    assert worker["devices"] == ["/dev/kfd", "/dev/dri"]
    assert "video" in worker["group_add"]
    assert worker["shm_size"]
    assert worker["entrypoint"] == ["python3", "docker/with_gpu.py"]
    assert [name for name in SERVICES if "devices" in SERVICES[name]] == ["worker-mi300x"]


def test_mlflow_answers_to_the_name_that_workers_call_it_by() -> None:
    address = SERVICES["worker-cpu"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    allowed = next(word for word in SERVICES["mlflow"]["command"] if word.startswith("--allowed-hosts="))
    assert address in allowed.partition("=")[2].split(",")
