"""`bursar quota` and `bursar weight` as processes: what is asked, what is printed, what is refused before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bursar.core.messages import operator as op
from bursar.core.messages.operator import Quota, QuotaView, RoleWeight
from bursar.runtime.codec import decode

ML = Quota("ml", {"gpus": 4000, "mem": 2**30}, {"gpus": 8000})


@pytest.fixture
def asked(master: Any) -> list[Any]:
    """What reached the master; it answers with what was asked."""
    seen: list[Any] = []

    def note(answer: Any) -> Any:
        def run(message: Any) -> Any:
            request = decode(getattr(op, type(message).__name__), message)
            seen.append(request)
            return answer(request)

        return run

    master.operator |= {
        "ListWeights": note(lambda r: op.ListWeightsResponse((RoleWeight("a/.", 500), RoleWeight("ml", 2000)))),
        "SetWeights": note(lambda r: op.SetWeightsResponse(r.weights)),
        "ListQuotas": note(lambda r: op.ListQuotasResponse((QuotaView(ML, {"gpus": 6000}, {"mem": 2**29}),))),
        "SetQuotas": note(lambda r: op.SetQuotasResponse(tuple(map(QuotaView, r.quotas)), 2)),
    }
    return seen


# --- weights ---


async def test_weights_are_listed(bursar: Any, asked: list[Any]) -> None:
    assert (await bursar("weight", "ls")).stdout == "ROLE  WEIGHT\na/.   0.5\nml    2\n"
    shown = json.loads((await bursar("weight", "ls", "-o", "json")).stdout)
    assert shown == [{"role": "a/.", "weight_milli": 500}, {"role": "ml", "weight_milli": 2000}]
    assert (await bursar("weight", "ls", "-o", "name")).stdout == "a/.\nml\n"


async def test_several_weights_are_set_in_one_request(bursar: Any, asked: list[Any]) -> None:
    done = await bursar("weight", "set", "ml=2", "eng/web=0.001", "a=b=1.5")
    assert done.code == 0 and done.stdout == "ROLE     WEIGHT\nml       2\neng/web  0.001\na=b      1.5\n"
    (request,) = asked
    assert request.request_id
    assert request.weights == (RoleWeight("ml", 2000), RoleWeight("eng/web", 1), RoleWeight("a=b", 1500))
    await bursar("weight", "reset", "ml", "a/.")
    assert asked[-1].weights == (RoleWeight("ml", 1000), RoleWeight("a/.", 1000))


@pytest.mark.parametrize("words", ["ml", "ml=", "=2", "ml=0", "ml=-1", "ml=nan", "ml=1e3", "ml=1.0005", "a=1 a=2"])
async def test_what_is_no_weight_is_not_even_asked(bursar: Any, asked: list[Any], words: str) -> None:
    refused = await bursar("weight", "set", *words.split())
    assert refused.code == 2 and refused.stderr and not asked


# --- quotas ---


async def test_quotas_are_listed(bursar: Any, asked: list[Any]) -> None:
    table = (await bursar("quota", "ls")).stdout.splitlines()
    assert table[0].split() == ["ROLE", "GUARANTEE", "LIMIT", "CONSUMED", "KEPT", "FREE"]
    assert table[1].split() == ["ml", "mem:1GiB;gpus:4", "gpus:8", "gpus:6", "mem:512MiB"]
    (shown,) = json.loads((await bursar("quota", "ls", "-o", "json")).stdout)
    assert shown == {
        "quota": {"role": "ml", "guarantees": {"gpus": 4000, "mem": 2**30}, "limits": {"gpus": 8000}},
        "consumed": {"gpus": 6000},
        "unmet": {"mem": 2**29},
    }


async def test_a_quota_is_set_and_what_it_cost_is_said(bursar: Any, asked: list[Any]) -> None:
    done = await bursar("quota", "set", "--role", "ml", "--guarantee", "gpus:4;mem:1GiB", "--limit", "gpus:8")
    assert done.code == 0 and "2 outstanding offers were rescinded" in done.stderr
    assert (asked[0].quotas, asked[0].force) == ((ML,), False) and asked[0].request_id
    await bursar("quota", "set", "--role", "*", "--limit", "gpus:0", "--force")
    assert (asked[1].quotas, asked[1].force) == ((Quota("*", {}, {"gpus": 0}),), True)
    await bursar("quota", "rm", "ml", "eng/web", "ml")
    assert asked[2].quotas == (Quota("ml"), Quota("eng/web"))


async def test_several_quotas_come_from_a_file(bursar: Any, asked: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "quotas.json"
    entries = [
        {"role": "ml", "guarantees": "gpus:4;mem:1GiB", "limits": "gpus:8"},
        {"role": "eng", "limits": "cpus:0.5"},
        {"role": "old"},
    ]
    path.write_text(json.dumps(entries))
    assert (await bursar("quota", "set", "--file", str(path))).code == 0
    assert asked[0].quotas == (ML, Quota("eng", {}, {"cpus": 500}), Quota("old"))


WRONG = {
    "no role": ["--limit", "gpus:8"],
    "no amount": ["--role", "ml"],
    "no such role": ["--role", "a//b", "--limit", "gpus:8"],
    "no number": ["--role", "ml", "--limit", "gpus:many"],
    "not finite": ["--role", "ml", "--limit", "cpus:inf"],
    "below nothing": ["--role", "ml", "--limit", "cpus:-1"],
    "huge": ["--role", "ml", "--limit", "cpus:99999999999999999"],
    "half a GPU": ["--role", "ml", "--limit", "gpus:0.5"],
    "ports": ["--role", "ml", "--limit", "ports:[1-2]"],
    "a role inside": ["--role", "ml", "--limit", "gpus(ml):1"],
    "twice": ["--role", "ml", "--limit", "gpus:1;gpus:2"],
    "no such file": ["--file", "/no/such/file"],
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_no_quota_is_not_even_asked(bursar: Any, asked: list[Any], what: str) -> None:
    refused = await bursar("quota", "set", *WRONG[what])
    assert refused.code == 2 and refused.stderr and not asked


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[1]", '[{"limits": "gpus:1"}]', '[{"role": "a", "limit": "gpus:1"}]',
             '[{"role": "a//b"}]', '[{"role": "a", "limits": {"gpus": 1}}]', '[{"role": "a", "limits": "gpus"}]'],
)  # fmt: skip
async def test_a_file_that_holds_no_quotas_is_refused(bursar: Any, asked: list[Any], tmp_path: Path, text: str) -> None:
    path = tmp_path / "quotas.json"
    path.write_text(text)
    refused = await bursar("quota", "set", "--file", str(path))
    assert refused.code == 2 and "--file" in refused.stderr and not asked
    assert text or 'is not JSON at line 1, column 1 (write [{"role": "ml"' in refused.stderr


# --- roles ---


def role(name: str, **more: Any) -> Any:
    return op.RoleView(name, **more)


TREE = (
    role("*"),
    role("eng", limits={"gpus": 5000}, consumed={"gpus": 4000}, limit_left={"gpus": 1000}, unmet={"gpus": 1000}),
    role("eng-x", framework_ids=("f",)),
    role(
        "eng/web", weight_milli=2500, guarantees={"gpus": 2000}, consumed={"gpus": 7000},
        limit_left={"gpus": -2000}, own_weight_milli=500, framework_ids=("f", "g"),
    ),
    role("lone/child"),
)  # fmt: skip


async def test_roles_are_shown_as_a_tree(bursar: Any, asked: list[Any], master: Any) -> None:
    master.operator["ListRoles"] = lambda request: op.ListRolesResponse(TREE)
    lines = (await bursar("role", "tree")).stdout.splitlines()
    assert lines[0].split("  ")[0] == "ROLE" and "KEPT FREE" in lines[0] and "LEFT" in lines[0]
    assert [line.split("  ")[0] or line.strip().split()[0] for line in lines[1:]] == [
        "*", "eng", "web", ".", "eng-x", "child"
    ]  # fmt: skip
    assert lines[2].split() == ["eng", "1", "0.00%", "-", "gpus:5", "gpus:4", "gpus:1", "gpus:1", "-", "0"]
    assert lines[3].startswith("  web ")
    assert lines[3].split() == ["web", "2.5", "0.00%", "gpus:2", "-", "gpus:7", "gpus:0", "-", "-", "2"]
    assert lines[4].split()[:2] == [".", "0.5"]
    names = (await bursar("role", "tree", "-o", "name")).stdout.split()
    assert names == ["*", "eng", "eng/web", "eng-x", "lone/child"]


async def test_the_tree_as_json_nests(bursar: Any, asked: list[Any], master: Any) -> None:
    master.operator["ListRoles"] = lambda request: op.ListRolesResponse(TREE)
    shown = json.loads((await bursar("role", "tree", "-o", "json")).stdout)
    assert [entry["role"] for entry in shown] == ["*", "eng", "eng-x", "lone/child"]
    (web,) = shown[1].pop("children")
    assert web["children"] == [] and web["limit_left"] == {"gpus": -2000} and web["own_weight_milli"] == 500
    flat = json.loads((await bursar("role", "ls", "-o", "json")).stdout)
    assert shown[1] == next(entry for entry in flat if entry["role"] == "eng")
