"""What deploy/ gives to Prometheus and Grafana, against a real Prometheus that finds a real cluster by the master's list."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def expressions() -> list[str]:
    """Every query of the rules, the alerts and the board."""
    found = []
    for name in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"]:
            found += [rule["expr"] for rule in group["rules"]]
    board = json.loads((DEPLOY / "grafana/bursar.json").read_text())
    return found + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


@pytest.fixture
def prometheus_binary(require: Callable[[bool, str], None]) -> str:
    found = shutil.which("prometheus")
    require(found is not None and shutil.which("promtool") is not None, "no Prometheus (Debian's package prometheus)")
    assert found is not None
    return found


def test_promtool_accepts_what_is_in_deploy(prometheus_binary: str, tmp_path: Path) -> None:
    for kind, name in (("config", "prometheus.yml"), ("rules", "rules.yml"), ("rules", "alerts.yml")):
        command = ["promtool", "check", kind, str(DEPLOY / "prometheus" / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A running one."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str) -> list[Any]:
        """What it says now. Raises OSError while it is not up."""
        said = get(f"{self.url}/query?{urllib.parse.urlencode({'query': expression})}")
        assert said["status"] == "success", said
        result: list[Any] = said["data"]["result"]
        return result

    def tried(self, expression: str) -> list[Any]:
        """As `query`, for waiting."""
        try:
            return self.query(expression)
        except OSError:
            return []


@pytest.fixture
def observed(bare_cluster: Any, prometheus_binary: str, tmp_path: Path) -> Any:
    """A cluster with a task on a simulated GPU, and a Prometheus that is told of the master alone."""
    cluster = bare_cluster
    port = cluster.programs.free_port()
    metrics = f"127.0.0.1:{cluster.programs.free_port()}"
    cluster.start_master("--metrics", metrics)
    cluster.start_agent("gpu", "--metrics", "127.0.0.1:0")
    cluster.until_active("gpu")
    cluster.start("run", "--gpus", "1", "--cpus", "1", "--mem", "64MiB", "--", "sleep", "1000")
    text = (DEPLOY / "prometheus/prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("127.0.0.1:5052", metrics).replace("15s", "1s"))
    for name in ("rules.yml", "alerts.yml"):
        shutil.copyfile(DEPLOY / "prometheus" / name, tmp_path / name)
    flags = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data")
    cluster.programs.start(prometheus_binary, *flags, f"--web.listen-address=127.0.0.1:{port}")
    return cluster, metrics, Prometheus(port)


def test_a_prometheus_that_knows_the_master_finds_all_and_answers_every_query(observed: Any) -> None:
    cluster, metrics, prometheus = observed
    (agent_id,) = [agent["agent_id"] for agent in cluster.ls("agent")]
    listed = cluster.until(lambda: len(found := get(f"http://{metrics}/sd")) == 2 and found, "the agent in the list")
    assert listed[0] == {"targets": [metrics], "labels": {"job": "bursar-master"}}
    assert listed[1]["labels"] == {"job": "bursar-agent", "agent_id": agent_id, "hostname": "gpu"}
    query = prometheus.tried
    cluster.until(lambda: len(query("up == 1")) == 2, "both are scraped", 60)
    device = cluster.uuids("gpu")[0]
    kinds = ("current", "capacity", "pct")
    for name in ("cpu_util", "mem"):
        found = cluster.until(
            lambda name=name: query(f'bursar_container_utilization{{container_metric_name="{name}"}}'), name, 60
        )
        assert {one["metric"]["value_type"] for one in found} == set(kinds)
        assert {(one["metric"]["agent_id"], one["metric"]["role"]) for one in found} == {(agent_id, "*")}
    (used,) = query(f'bursar_device_utilization{{device_metric_name="gpu_util",device_id="{device}",value_type="pct"}}')
    assert used["value"][1] == "0"
    assert query('bursar_stat_task_success_count_total{stat_scope="container"} > 0')
    assert query('bursar_rpc_requests_total{method="ListAgents"} > 0')
    for expression in expressions():
        prometheus.query(expression)
    for record in (
        "bursar:resources_allocated:ratio",
        "bursar:container_utilization:pct_by_role",
        "bursar:rpc_requests:rate5m",
    ):
        cluster.until(lambda record=record: query(record), record, 60)
    (share,) = query('bursar:resources_allocated:ratio{kind="gpus"}')
    assert share["value"][1] == "0.25"


def test_an_alert_of_a_device_out_of_service_is_raised(observed: Any) -> None:
    cluster, _, prometheus = observed
    cluster.until(lambda: len(prometheus.tried("up == 1")) == 2, "both are scraped", 60)
    (cluster.where / "gpu/simulated-faults").write_text("3 xid 79\n")
    cluster.until(lambda: prometheus.tried('bursar_master_devices{condition="cordoned"} == 1'), "the device", 60)
    pending = 'ALERTS{alertname="BursarDeviceOutOfService",condition="cordoned"}'
    cluster.until(lambda: prometheus.tried(pending), "the alert", 60)
