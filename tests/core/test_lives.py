"""Checks as people write them, and what is wrong with them."""

from __future__ import annotations

import pytest

from bursar.core.errors import InvalidText
from bursar.core.lives import (
    Check,
    CheckStatus,
    HealthCheck,
    HttpCheck,
    RestartMode,
    RestartPolicy,
    TcpCheck,
    check_problem,
    health_problem,
    parse_check,
    parse_restart,
)


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("cmd:test -e ready", Check(command=("sh", "-c", "test -e ready"))),
        ("http:8080", Check(http=HttpCheck(8080))),
        ("http:8080/ready?full=1", Check(http=HttpCheck(8080, "/ready?full=1"))),
        ("https:443/", Check(http=HttpCheck(443, "/", "https"))),
        ("tcp:5432", Check(tcp=TcpCheck(5432))),
        ("tcp:jupyter", Check(tcp=TcpCheck(port_name="jupyter"))),
        ("http:web/ready", Check(http=HttpCheck(path="/ready", port_name="web"))),
    ],
)
def test_a_check_is_read(text: str, check: Check) -> None:
    assert parse_check(text) == check


@pytest.mark.parametrize(
    "text", ["", "cmd:", "http", "http:X", "tcp:-", "http:0", "tcp:70000", "tcp:80/path", "udp:53", "http:80/a b"]
)
def test_what_is_no_check_is_refused(text: str) -> None:
    with pytest.raises(InvalidText):
        parse_check(text)


def test_a_port_by_name_is_the_one_that_the_task_listens_on() -> None:
    for text, found in (("tcp:web", "tcp:31000"), ("https:web/x", "https:31000/x"), ("tcp:80", "tcp:80")):
        assert str(parse_check(text).at({"web": 31000})) == found
        assert str(parse_check(text)) == text


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (Check(tcp=TcpCheck(port_name="web")), "no service port 'web' of TCP: there are api, ssh"),
        (Check(http=HttpCheck(80, port_name="api")), "by 'api' or by 80, not both"),
    ],
)
def test_a_port_that_the_task_has_not_is_said(check: Check, words: str) -> None:
    problem = check_problem(check, ["ssh", "api"])
    assert problem is not None and problem[0] == "port_name" and words in problem[1]
    assert check_problem(Check(tcp=TcpCheck(port_name="api")), ["ssh", "api"]) is None


def test_defaults_are_those_of_mesos() -> None:
    health = HealthCheck(parse_check("tcp:1"))
    assert (health.check.delay, health.check.interval, health.check.timeout) == (15_000, 10_000, 20_000)
    assert (health.failures, health.grace) == (3, 10_000)


@pytest.mark.parametrize(
    ("check", "field"),
    [
        (Check(), "check"),
        (Check(command=("true",), tcp=TcpCheck(1)), "check"),
        (Check(tcp=TcpCheck(1), interval_ms=0), "interval_ms"),
        (Check(tcp=TcpCheck(1), timeout_ms=0), "timeout_ms"),
        (Check(tcp=TcpCheck(1), delay_ms=-1), "delay_ms"),
        (Check(command=("",)), "command"),
        (Check(http=HttpCheck(1, "x")), "http.path"),
        (Check(http=HttpCheck(1, "/", "ftp")), "http.scheme"),
    ],
)
def test_problems_name_their_field(check: Check, field: str) -> None:
    problem = check_problem(check)
    assert problem is not None and problem[0] == field


def test_a_health_check_has_numbers_of_its_own() -> None:
    check = parse_check("tcp:1")
    assert health_problem(HealthCheck(check)) is None
    assert health_problem(HealthCheck(check, consecutive_failures=0)) is not None
    assert health_problem(HealthCheck(check, grace_period_ms=-1)) is not None


@pytest.mark.parametrize(
    ("status", "healthy"),
    [
        (CheckStatus(), False),
        (CheckStatus(exit_code=0), True),
        (CheckStatus(exit_code=1), False),
        (CheckStatus(http_status=199), False),
        (CheckStatus(http_status=200), True),
        (CheckStatus(http_status=399), True),
        (CheckStatus(http_status=400), False),
        (CheckStatus(is_connected=True), True),
        (CheckStatus(is_connected=False), False),
    ],
)
def test_what_is_healthy(status: CheckStatus, healthy: bool) -> None:
    assert status.is_healthy is healthy and str(status)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("never", RestartPolicy()),
        ("on-failure", RestartPolicy(RestartMode.ON_FAILURE)),
        ("on-failure:3", RestartPolicy(RestartMode.ON_FAILURE, 3)),
        ("always:0", RestartPolicy(RestartMode.ALWAYS)),
    ],
)
def test_a_restart_policy_is_read(text: str, policy: RestartPolicy) -> None:
    assert parse_restart(text) == policy


@pytest.mark.parametrize(
    "text", ["", "sometimes", "always:", "always:-1", "never:3", "on-failure:x", "always:9999999999"]
)
def test_what_is_no_restart_policy_is_refused(text: str) -> None:
    with pytest.raises(InvalidText):
        parse_restart(text)


def test_the_back_off_doubles_to_its_bound() -> None:
    policy = RestartPolicy(RestartMode.ALWAYS, backoff_ms=1_000, max_backoff_ms=5_000)
    assert [policy.backoff(n) for n in (1, 2, 3, 4, 1_000)] == [1_000, 2_000, 4_000, 5_000, 5_000]
