"""A cluster whose master, agent, frameworks and operators know each other by certificates, and what everybody else is told."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Pair

from bursar.sdk import BursarError, Credentials, ErrorReason, Framework, Task, run

#: No more than a bound for slow machines, which have the command line to start as well: that the reason is known shows in the words.
AT_ONCE_S = 60.0


@dataclass
class Secured:
    """A cluster with mTLS, and the authority that signs for it."""

    cluster: Any
    ca: Authority
    server: Pair
    operator: Pair

    def flags(self, pair: Pair | None = None, ca: str = "") -> list[str]:
        shown = ["--tls-cert", pair.cert, "--tls-key", pair.key] if pair else []
        return ["--tls-ca", ca or self.ca.ca, *shown]

    def start_master(self) -> None:
        self.cluster.start_master(*self.flags(self.server))

    def start_agent(self, name: str, pair: Pair | None, ca: str = "") -> Any:
        return self.cluster.start_agent(name, *self.flags(pair, ca), devices="none")

    def credentials(self, pair: Pair | None) -> Credentials:
        return Credentials(self.ca.ca, pair.cert, pair.key) if pair else Credentials(self.ca.ca)

    def bursar(self, *arguments: str, pair: Pair | None = None) -> Any:
        return self.cluster.bursar(*self.flags(pair or self.operator), *arguments)


@pytest.fixture(scope="module")
def secured(module_cluster: Any) -> Secured:
    """Shared by the tests of this module: a master and the agent `node`."""
    ca = Authority(module_cluster.where)
    operator = ca.client("ann", "bursar://operator/ann", "bursar://framework/ann")
    secured = Secured(module_cluster, ca, ca.server(), operator)
    secured.cluster.credentials = secured.credentials(operator)
    secured.start_master()
    secured.start_agent("node", ca.client("node", "bursar://agent/node"))
    secured.cluster.until_active("node")
    return secured


class Once(Framework):
    """One task."""

    def __init__(self, *command: str) -> None:
        self.todo = [Task(command)]
        self.ended: list[Any] = []

    def wants(self) -> Any:
        return [(task, 1) for task in self.todo]

    def on_offer(self, offer: Any) -> Any:
        while self.todo and offer.fits(self.todo[-1]):
            yield self.todo.pop()

    def on_status(self, task: Any, status: Any) -> None:
        if status.terminal:
            self.ended.append(status)
            self.stop()


def test_agent_framework_and_command_line_work(secured: Secured, tmp_path: Path) -> None:
    framework = Once("true")
    run(
        framework,
        secured.cluster.address,
        connect_timeout=60,
        credentials=secured.credentials(secured.ca.client("sweep", "bursar://framework/sweep")),
    )
    assert [status.ok for status in framework.ended] == [True]
    done = secured.bursar("run", "--", "sh", "-c", "echo hello; exit 7")
    assert (done.code, done.stdout) == (7, "hello\n"), done
    variables = {
        "BURSAR_TLS_CA": secured.ca.ca, "BURSAR_TLS_CERT": secured.operator.cert, "BURSAR_TLS_KEY": secured.operator.key,
    }  # fmt: skip
    listed = secured.cluster.bursar("agent", "ls", "-o", "json", **variables)
    assert [agent["hostname"] for agent in json.loads(listed.stdout)] == ["node"]


def test_the_command_line_says_what_is_wrong(secured: Secured, tmp_path: Path) -> None:
    cluster, ca = secured.cluster, secured.ca
    other = Authority(tmp_path, "other-ca")
    old = ca.client("old", "bursar://operator/ann", days=-2)
    eve = other.client("eve", "bursar://operator/ann")
    cases: list[tuple[list[str], int, list[str]]] = [
        ([], 1, ["speaks TLS", "--tls-ca"]),
        (["--tls-ca", ca.ca], 1, ["wants to see a certificate", "--tls-cert"]),
        (secured.flags(secured.operator, other.ca), 1, ["not trusted", other.ca]),
        (secured.flags(eve), 1, ["does not accept", eve.cert]),
        (secured.flags(old), 1, [old.cert, "expired"]),
        (["--tls-ca", "/no/such"], 1, ["/no/such", "No such file"]),
        (["--tls-cert", eve.cert], 2, ["--tls-cert without --tls-key"]),
        ([*secured.flags(secured.operator), "--tls-server-name", "else"], 1, ["not for else"]),
    ]
    for flags, code, words in cases:
        begun = time.monotonic()
        done = cluster.bursar(*flags, "agent", "ls")
        assert done.code == code and not done.out, (flags, done)
        assert all(word in done.stderr for word in words), (flags, done)
        assert len(done.stderr.strip().splitlines()) <= 3
        if not flags:
            assert time.monotonic() - begun < AT_ONCE_S, "said at once"
    done = cluster.bursar(*secured.flags(eve), "run", "--", "true")
    assert done.code == 125 and "does not accept" in done.stderr, done


def test_a_framework_is_told_and_ends(secured: Secured) -> None:
    with pytest.raises(BursarError, match="wants to see a certificate") as raised:
        run(Once("true"), secured.cluster.address, credentials=secured.credentials(None))
    assert raised.value.detail.reason is ErrorReason.UNAUTHENTICATED


def test_an_agent_says_it_once_and_goes_on_trying(secured: Secured, tmp_path: Path) -> None:
    """It comes in as soon as its files are in order, without a restart."""
    other = Authority(tmp_path, "other-ca")
    mine = secured.ca.client("late", "bursar://agent/late")
    good_cert, good_key = Path(mine.cert).read_bytes(), Path(mine.key).read_bytes()
    eve = other.client("eve", "bursar://agent/late")
    agent = secured.start_agent("late", eve)
    agent.until_stderr("does not accept")
    agent.until_stderr("trying again")
    Path(eve.key).write_bytes(good_key)
    Path(eve.cert).write_bytes(good_cert)
    secured.cluster.until_active("late")
    assert agent.stderr().count("does not accept") == 1
    secured.cluster.stop("late")


def test_an_agent_does_not_start_with_a_wrong_file(secured: Secured) -> None:
    done = secured.start_agent("wrong", Pair(secured.operator.cert, secured.server.key)).finish()
    assert done.code == 1 and "does not belong" in done.stderr, done


def test_a_master_with_a_renewed_certificate(secured: Secured) -> None:
    """Taken over by new connections at once, and by a new master; those who are in come back by themselves."""
    cluster = secured.cluster
    before = cluster.log("master").count("event=certificate")
    secured.server = secured.ca.server()
    assert secured.bursar("agent", "ls").code == 0
    cluster.until(
        lambda: cluster.log("master").count("event=certificate") > before, "the new certificate is taken over"
    )
    cluster.stop("master")
    secured.start_master()
    cluster.until_active("node")
    assert secured.bursar("run", "--", "true").code == 0


def test_a_master_that_cannot_start(secured: Secured, tmp_path: Path) -> None:
    master = secured.cluster.programs.program("bursar-master")
    old = secured.ca.server("old", days=-2)
    for flags, code, words in (
        (["--listen", "0.0.0.0:0", "--tls-cert", secured.server.cert, "--tls-key", secured.server.key], 1, ["authentication", "--insecure"]),
        (["--listen", "127.0.0.1:0", "--tls-cert", old.cert, "--tls-key", old.key], 1, [old.cert, "expired"]),
        (["--listen", "127.0.0.1:0", "--tls-ca", secured.ca.ca], 2, ["--tls-cert", "--tls-key"]),
    ):  # fmt: skip
        done = secured.cluster.programs.run(master, *flags, "--metrics", "", "--work-dir", str(tmp_path))
        assert done.code == code and all(word in done.stderr for word in words), done
        assert len(done.stderr.strip().splitlines()) <= 6


def test_the_health_check_of_the_image(secured: Secured) -> None:
    """Any certificate of the CA will do; without one the master is not seen to serve."""
    script = str(Path(__file__).resolve().parents[2] / "deploy" / "health.py")
    command = (sys.executable, script, "grpc", secured.cluster.address)
    anybody = secured.ca.client("probe")
    variables = {"BURSAR_TLS_CA": secured.ca.ca, "BURSAR_TLS_CERT": anybody.cert, "BURSAR_TLS_KEY": anybody.key}
    assert secured.cluster.programs.run(*command, **variables).code == 0
    assert secured.cluster.programs.run(*command).code == 1


def test_off_loopback_with_both(secured: Secured, tmp_path: Path) -> None:
    master = secured.cluster.programs.program("bursar-master")
    flags = [*secured.flags(secured.server), "--metrics", "", "--work-dir", str(tmp_path)]
    secured.cluster.programs.start(master, "--listen", "0.0.0.0:0", *flags).until_stderr("event=ready")
