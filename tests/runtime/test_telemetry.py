from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter

from bursar.core.errors import BursarError
from bursar.runtime.telemetry import configure_logging, logger, serve_metrics


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_are_key_value(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("bursar-test", {})
    logger(agent="a").info("it started", port=5)
    logger().debug("too much detail")
    logging.getLogger("some.library").warning("it broke")
    out, err = capsys.readouterr()
    assert out == ""
    own, foreign = err.splitlines()
    assert 'level=info program=bursar-test event="it started"' in own and "agent=a" in own and "port=5" in own
    assert 'level=warning program=bursar-test event="it broke"' in foreign and "_record" not in foreign


def test_what_peers_write_cannot_forge_a_line_or_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("bursar-test", {})
    logger().info("framework_added", name="a\x1b[2Jb\nlevel=error é")
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line and "\\x1b[2Jb" in line and "é" in line


def test_json_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("bursar-test", {"BURSAR_LOG_FORMAT": "json", "BURSAR_LOG_LEVEL": "debug"})
    logger().debug("detail", n=1)
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["n"], line["level"], line["program"]) == ("detail", 1, "debug", "bursar-test")


def test_metrics_are_served_on_loopback_and_the_port_is_told() -> None:
    registry = CollectorRegistry()
    Counter("launches", "Launches.", registry=registry).inc(3)
    server = serve_metrics("127.0.0.1:0", "bursar-test", False, registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            assert "launches_total 3.0" in answer.read().decode()
        with pytest.raises(BursarError, match="in use"):
            serve_metrics(f"127.0.0.1:{server.port}", "bursar-test", False, registry)
    finally:
        server.close()


def test_metrics_off_loopback_need_insecure() -> None:
    with pytest.raises(BursarError, match="--insecure"):
        serve_metrics("0.0.0.0:0", "bursar-test", False, CollectorRegistry())
    server = serve_metrics("0.0.0.0:0", "bursar-test", True, CollectorRegistry())
    server.close()


def test_an_address_that_is_none() -> None:
    with pytest.raises(BursarError, match="is not an address"):
        serve_metrics("nonsense", "bursar-test", False)
