"""Who may see what: matching, the filter as one rule, and what is kept for GPUs. The decisions themselves, without a master."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.devices import Device
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, OfferId, TaskId
from bursar.core.messages.agent import AgentInfo
from bursar.core.messages.framework import GPU_RESOURCES, FrameworkInfo
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.core.resources import (
    Reservation,
    ReservationType,
    ReservedResources,
    Resources,
    Stack,
    holding_total,
)
from bursar.core.role_expressions import parse_role_expression
from bursar.master.allocator.rules import (
    GPU_FILTER,
    CompiledRule,
    Headroom,
    compile_gpu_filter,
    compile_rule,
    facts_of_agent,
    parse_framework_match,
    parse_headroom,
    rule_problem,
)
from bursar.master.allocator.shares import Client, Shares
from bursar.master.allocator.visibility import Visibility, keep_for_gpus, strip
from bursar.master.ledger import Books, Ledger, TaskKey

ML: Stack = (Reservation(ReservationType.STATIC, "ml"),)


def agent(
    agent_id: str = "a", gpus: int = 0, reserved: int = 0, cpus: int = 8000, **attributes: str | int
) -> AgentInfo:
    """An agent with unreserved GPUs, and some reserved to ml."""
    devices = tuple(Device(DeviceUuid(f"{agent_id}{index}"), "gpus", model="H100") for index in range(gpus + reserved))
    uuids = [device.uuid for device in devices]
    parts = [ReservedResources((), Resources({"cpus": cpus, "mem": cpus}, (), frozenset(uuids[:gpus])))]
    if reserved:
        parts.append(ReservedResources(ML, Resources({}, (), frozenset(uuids[gpus:]))))
    return AgentInfo(AgentId(agent_id), attributes=attributes, resources=tuple(parts), devices=devices)


def framework(*capabilities: str, name: str = "f", **more: object) -> FrameworkInfo:
    return FrameworkInfo(FrameworkId(name), name=name, capabilities=capabilities, **more)  # type: ignore[arg-type]


def visibility(*rules: CompiledRule, **groups: str) -> Visibility:
    found = Visibility()
    members = {name: parse_role_expression(text) for name, text in groups.items()}
    found.set_rules(rules, Headroom(50_000), members)
    return found


def hide(name: str = "r", **parts: object) -> CompiledRule:
    return compile_rule(Rule(name, RuleAction.HIDE_AGENT, **parts))  # type: ignore[arg-type]


# --- the filter ---

capability_sets = st.sets(st.sampled_from([GPU_RESOURCES, "REGION_AWARE", "gpu_resources", "X"])).map(sorted)


@given(
    st.sampled_from(["true", "false", "strip"]),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=4),
    st.lists(capability_sets, min_size=1, max_size=4),
)
def test_the_flag_is_one_rule_and_that_rule_is_the_flag(
    value: str, machines: list[tuple[int, int]], programs: list[list[str]]
) -> None:
    """GPU-3: `filterGpuResources && !capable && hasGpu`; an operator's rule of the same words decides the same."""
    built_in = compile_gpu_filter(value)
    words = f"--action {'hide-agent' if value == 'true' else value}"
    mine = [compile_rule(replace(rule.rule, name="mine")) for rule in built_in]
    both = visibility(*built_in), visibility(*mine)
    for index, (gpus, reserved) in enumerate(machines):
        info = agent(f"a{index}", gpus, reserved)
        for number, capabilities in enumerate(programs):
            program = framework(*capabilities, name=f"f{number}")
            filtered = value != "false" and GPU_RESOURCES not in capabilities and gpus + reserved > 0
            for one in both:
                rule = one.verdict(info, "*", program)
                assert (rule is not None) == filtered, words
                if rule is not None:
                    assert rule.action is (RuleAction.HIDE_AGENT if value == "true" else RuleAction.STRIP)
                    assert rule.stripped == (frozenset({"gpus"}) if value == "strip" else frozenset())
                    assert rule.rule.reason
    assert [rule.name for rule in built_in] == ([] if value == "false" else [GPU_FILTER])


# --- matching ---


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("has=GPU_RESOURCES", True),
        ("has=OTHER", False),
        ("has=OTHER|GPU_RESOURCES", True),
        ("has=REGION_AWARE,has=GPU_RESOURCES", True),
        ("has=OTHER,has=GPU_RESOURCES", False),
        ("lacks=OTHER", True),
        ("lacks=GPU_RESOURCES", False),
        ("lacks=OTHER|GPU_RESOURCES", False),
        ("role=ml", True),
        ("role=ml/**", True),
        ("role==ml", False),
        ("role=(ml/** | eng) & !ml/interns", True),
        ("role=!ml", False),
        ("role=@trainers", True),
        ("role=@nobody", False),
        ("role=*", False),
        ("name=nightly-*", True),
        ("name=weekly", False),
        ("name!=weekly", True),
        ("principal=alice|bob", True),
        ("!principal", False),
        ("label.team=vision", True),
        ("label.team", True),
        ("!label.team", False),
        ("label.stage", False),
        ("label.version=7", True),
        ("has=GPU_RESOURCES, role=ml/train , name=nightly-*", True),
        ("has=GPU_RESOURCES,role=ml/train,name=x", False),
    ],
)
def test_which_frameworks_a_rule_speaks_of(text: str, matches: bool) -> None:
    info = framework(
        GPU_RESOURCES,
        "REGION_AWARE",
        name="nightly-7",
        principal="bob",
        labels={"team": "vision", "version": "7"},
    )
    groups = {"trainers": parse_role_expression("ml/train | ml/tune")}
    assert parse_framework_match(text).matches(info, "ml/train", groups) is matches


def test_the_role_that_everybody_has_is_asked_for_by_its_name() -> None:
    assert parse_framework_match("role=*").matches(framework(), "*", {})
    assert not parse_framework_match("role=!ml").matches(framework(), "*", {}), "no expression covers it"


def test_a_framework_without_a_name_or_principal_has_none() -> None:
    nameless = FrameworkInfo(FrameworkId("f"))
    assert parse_framework_match("!name,!principal").matches(nameless, "*", {})


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("capability=X", "no selector 'capability'", "has, lacks"),
        ("label=team", "no selector 'label'", "label."),
        ("label.=team", "no selector 'label.'", ""),
        ("has=", "is not a capability", GPU_RESOURCES),
        ("has=a b", "is not a capability", ""),
        ("has!=X", "not written like that", "has=VALUE"),
        ("has", "not written like that", ""),
        ("role=ml/*", "role expression", ""),
        ("role=(ml", "role expression", ""),
        ("role=", "role expression", ""),
        ("name=~x.*", "not an operator", ""),
        ('name="x', "open quote", ""),
        ("name=x,,", "nothing between two commas", ""),
        ("name=" + "x" * 5000, "too many", ""),
    ],
)
def test_what_a_framework_part_cannot_be(text: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidText) as caught:
        parse_framework_match(text)
    assert message in caught.value.detail.message and hint in caught.value.detail.hint
    assert caught.value.detail.message.startswith("framework: ")


def test_agents_are_matched_by_their_totals_and_by_kinds() -> None:
    info = agent(gpus=1, reserved=2, rack="r1")
    assert hide(agent="gpus=3,rack=r1,gpu.model=H100").matches_agent(info, facts_of_agent(info))
    assert not hide(agent="gpus>3").matches_agent(info, facts_of_agent(info))
    assert hide(resources=("gpus",)).matches_agent(info, facts_of_agent(info)) and hide(
        resources=("disk", "cpus")
    ).matches_agent(info, facts_of_agent(info))
    assert not hide(resources=("disk", "ports")).matches_agent(info, facts_of_agent(info))
    # What is described and not offered is not there.
    hidden = replace(info, resources=info.resources[:1])
    assert hide(agent="gpus=1").matches_agent(hidden, facts_of_agent(hidden)) and not hide(
        agent="gpus=3"
    ).matches_agent(hidden, facts_of_agent(hidden))


def test_the_first_rule_that_matches_decides() -> None:
    allow = compile_rule(Rule("mine", RuleAction.ALLOW, framework="name=legacy"))
    rules = visibility(allow, *compile_gpu_filter("true"))
    assert rules.verdict(agent(gpus=1), "*", framework(name="legacy")) is None
    assert rules.judge(agent(gpus=1), "*", framework(name="legacy")).winner is allow
    other = rules.verdict(agent(gpus=1), "*", framework(name="other"))
    assert other is not None and other.name == GPU_FILTER
    assert rules.judge(agent(), "*", framework(name="other")).winner is None
    assert rules.decisions == {"mine": 1, GPU_FILTER: 1}, "judging is not counted"


def test_roles_are_decided_one_by_one() -> None:
    rules = visibility(hide(framework="role=ml/**"))
    program = framework(roles=("ml/train", "eng"))
    assert rules.verdict(agent(), "ml/train", program) and not rules.verdict(agent(), "eng", program)


def test_audit_decides_nothing_and_is_counted_only_where_it_would_have_decided() -> None:
    watch = hide("watch", mode=RuleMode.AUDIT, agent="rack=r1")
    late = hide("late", mode=RuleMode.AUDIT)
    rules = visibility(watch, hide("real", agent="rack=r2"), late)
    assert rules.verdict(agent("a", rack="r1"), "*", framework()) is None
    assert rules.decisions == {"watch": 1, "late": 1}
    judgement = rules.judge(agent("b", rack="r2"), "*", framework())
    assert judgement.winner is not None and judgement.winner.name == "real" and judgement.audited == ()


def test_what_a_peer_says_anew_of_itself_counts() -> None:
    """M-05: the answers of rules are remembered for as long as the facts are the same."""
    rules = visibility(*compile_gpu_filter("true"))
    program = framework()
    assert rules.verdict(agent(gpus=0), "*", program) is None
    assert rules.verdict(agent(gpus=1), "*", program) is not None
    assert rules.verdict(agent(gpus=1), "*", framework(GPU_RESOURCES)) is None
    assert rules.verdict(agent(gpus=0), "*", program) is None


names = st.sampled_from(["r1", "r2", "r3"])


@st.composite
def written_rules(draw: st.DrawFn) -> list[Rule]:
    parts = st.sampled_from(["", "rack=r1", "gpus>0", "!rack", "rack!=r1|r2", "gpus>=2,rack=r*"])
    whom = st.sampled_from(["", "lacks=G", "has=G", "role=ml/**", "role=*", "name=f0", "has=G,role==ml", "!principal"])
    return [
        Rule(
            f"rule-{index}",
            draw(st.sampled_from([RuleAction.ALLOW, RuleAction.HIDE_AGENT])),
            draw(st.sampled_from([RuleMode.ENFORCE, RuleMode.AUDIT])),
            draw(whom),
            draw(parts),
            draw(st.sampled_from([(), ("gpus",)])),
        )
        for index in range(draw(st.integers(0, 6)))
    ]


@given(
    written_rules(),
    st.lists(st.tuples(st.integers(0, 2), st.none() | names), min_size=1, max_size=4),
    st.lists(st.tuples(st.booleans(), st.sampled_from(["*", "ml", "ml/a", "x"])), min_size=1, max_size=4),
)
def test_decisions_are_those_of_asking_every_rule(
    written: list[Rule], machines: list[tuple[int, str | None]], programs: list[tuple[bool, str]]
) -> None:
    """Against the obvious way, in words of its own."""

    def says_agent(text: str, gpus: int, rack: str | None) -> bool:
        return {
            "": True,
            "rack=r1": rack == "r1",
            "gpus>0": gpus > 0,
            "!rack": rack is None,
            "rack!=r1|r2": rack not in ("r1", "r2"),
            "gpus>=2,rack=r*": gpus >= 2 and rack is not None,
        }[text]

    def says_framework(text: str, number: int, has: bool, role: str) -> bool:
        return {
            "": True,
            "lacks=G": not has,
            "has=G": has,
            "role=ml/**": role == "ml/a",
            "role=*": role == "*",
            "name=f0": number == 0,
            "has=G,role==ml": has and role == "ml",
            "!principal": True,
        }[text]

    rules = visibility(*map(compile_rule, written))
    for gpus, rack in machines * 2:
        info = replace(agent(f"a{gpus}{rack}", gpus), attributes={} if rack is None else {"rack": rack})
        for number, (has, role) in enumerate(programs):
            program = framework(*(["G"] if has else []), name=f"f{number}")
            matching = [
                rule
                for rule in written
                if says_agent(rule.agent, gpus, rack)
                and says_framework(rule.framework, number, has, role)
                and (not rule.resources or gpus > 0)
            ]
            winner = next((rule for rule in matching if rule.mode is RuleMode.ENFORCE), None)
            found = rules.judge(info, role, program)
            assert (None if found.winner is None else found.winner.rule) == winner
            before = matching[: matching.index(winner)] if winner is not None else matching
            assert [one.rule for one in found.audited] == [rule for rule in before if rule.mode is RuleMode.AUDIT]
            verdict = rules.verdict(info, role, program)
            hidden = winner is not None and winner.action is RuleAction.HIDE_AGENT
            assert (verdict is not None) == hidden


# --- headroom ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50%", {"cpus": 8000, "mem": 4 << 30}),
        ("12.5%", {"cpus": 2000, "mem": 1 << 30}),
        ("0%", {}),
        ("cpus:2", {"cpus": 2000}),
        ("cpus:2;mem:8GiB;licence:0.5", {"cpus": 2000, "mem": 8 << 30, "licence": 500}),
    ],
)
def test_headroom_of_one_gpu(text: str, expected: dict[str, int]) -> None:
    total = {"cpus": 64_000, "mem": 32 << 30, "gpus": 4000, "disk": 1 << 40}
    assert parse_headroom(text).per_gpu(total) == expected
    assert parse_headroom(text).per_gpu({"cpus": 64_000}) == {}, "no GPUs, no headroom"


@pytest.mark.parametrize("text", ["", "50", "-1%", "101%", "x%", "gpus:1", "cpus(ml):1", "ports:[1-2]", "cpus:many"])
def test_what_headroom_cannot_be(text: str) -> None:
    with pytest.raises(InvalidText):
        parse_headroom(text)


def books(info: AgentInfo) -> tuple[Ledger, Books]:
    ledger = Ledger(Shares())
    ledger.add_agent(info.agent_id, {part.stack: part.resources for part in info.resources})
    return ledger, ledger.books[info.agent_id]


def test_a_bucket_pays_for_its_own_gpus_first() -> None:
    info = replace(
        agent(gpus=1, cpus=10_000),
        resources=(
            ReservedResources((), Resources({"cpus": 10_000}, (), frozenset({DeviceUuid("a0")}))),
            ReservedResources(ML, Resources({"cpus": 3_000}, (), frozenset({DeviceUuid("a1"), DeviceUuid("a2")}))),
        ),
    )
    _, account = books(info)
    kept = keep_for_gpus(account, account.free, {"cpus": 2_000})
    assert kept.amounts == {ML: {"cpus": 3_000}, (): {"cpus": 3_000}} and not kept.lacking
    kept = keep_for_gpus(account, account.free, {"cpus": 5_000})
    assert kept.amounts == {ML: {"cpus": 3_000}, (): {"cpus": 10_000}} and kept.lacking == {"cpus": 2_000}


def test_broken_gpus_need_nothing_and_busy_ones_what_their_task_lacks() -> None:
    info = agent(gpus=4, cpus=10_000)
    ledger, account = books(info)
    ledger.set_withheld(info.agent_id, {DeviceUuid("a3"): "unhealthy: ECC"})
    task: dict[Stack, Resources] = {(): Resources({"cpus": 500}, (), frozenset({DeviceUuid("a0"), DeviceUuid("a1")}))}
    ledger.allocate(info.agent_id, TaskKey(FrameworkId("f"), TaskId("t")), Client("*", FrameworkId("f")), task)
    kept = keep_for_gpus(account, account.free, {"cpus": 2_000})
    assert kept.amounts == {(): {"cpus": 2 * 2_000 - 500 + 2_000}}
    going = keep_for_gpus(account, account.free, {"cpus": 2_000}, frozenset({DeviceUuid("a2")}))
    assert going.amounts == {(): {"cpus": 2 * 2_000 - 500}}


def test_strip_takes_kinds_away_and_leaves_the_rest() -> None:
    holding = {(): Resources({"cpus": 1, "disk": 2}, (), frozenset({DeviceUuid("a")})), ML: Resources({"disk": 1})}
    assert strip(holding, frozenset({"gpus"})) == {(): Resources({"cpus": 1, "disk": 2}), ML: Resources({"disk": 1})}
    assert strip(holding, frozenset({"disk", "gpus"})) == {(): Resources({"cpus": 1})}


@given(st.data())
def test_no_gpu_is_ever_stranded_by_what_strip_gives_away(data: st.DataObject) -> None:
    """M-06 as a law: GPU tasks come and go as they like, work without GPUs takes all that it is ever shown: what is kept stays."""
    info = agent(gpus=data.draw(st.integers(1, 3)), reserved=data.draw(st.integers(0, 2)), cpus=20_000)
    ledger, account = books(info)
    per_gpu = {"cpus": data.draw(st.integers(1, 4_000))}
    charge = Client("*", FrameworkId("f"))
    running: list[TaskKey] = []
    assert not keep_for_gpus(account, account.free, per_gpu).lacking
    for step in range(data.draw(st.integers(1, 12))):
        key = TaskKey(FrameworkId("f"), TaskId(f"t{step}"))
        move = data.draw(st.sampled_from(["gpu", "cpu", "offer", "end"]))
        free = account.free
        if move == "end" and running:
            ledger.release_task(running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif move in ("gpu", "offer"):
            devices = sorted(holding_total(free).devices)
            if devices:
                wanted = devices[: data.draw(st.integers(1, len(devices)))]
                # With any amount up to all that belongs to these GPUs.
                cpus = data.draw(st.integers(0, min(len(wanted) * per_gpu["cpus"], free[()].scalars.get("cpus", 0))))
                part: dict[Stack, Resources] = {}
                for stack, rest in free.items():
                    mine = frozenset(wanted) & rest.devices
                    if mine or (stack == () and cpus):
                        part[stack] = Resources({"cpus": cpus} if stack == () and cpus else {}, (), mine)
                if move == "gpu":
                    ledger.allocate(info.agent_id, key, charge, part)
                    running.append(key)
                else:
                    ledger.offer(info.agent_id, OfferId(f"o{step}"), charge, part)
        elif move == "cpu":
            shown = strip(free, frozenset({"gpus"}))
            kept = keep_for_gpus(account, free, per_gpu).amounts.get((), {})
            cpus = shown.get((), Resources()).scalars.get("cpus", 0) - kept.get("cpus", 0)
            if cpus > 0:
                ledger.allocate(info.agent_id, key, charge, {(): Resources({"cpus": cpus})})
                running.append(key)
        assert not keep_for_gpus(account, account.free, per_gpu).lacking, move


# --- what an operator may write ---


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "No Spaces"}, "name"),
        ({"name": ""}, "name"),
        ({"name": GPU_FILTER}, "name"),
        ({"action": RuleAction.UNSPECIFIED}, "action"),
        ({"mode": RuleMode.UNSPECIFIED}, "mode"),
        ({"framework": "colour=red"}, "framework"),
        ({"agent": "gpus>=many"}, "agent"),
        ({"resources": ("gpus", "gpus")}, "resources"),
        ({"resources": ("g p u",)}, "resources"),
        ({"headroom": "cpus:1"}, "headroom"),
        ({"action": RuleAction.STRIP, "headroom": "200%"}, "headroom"),
        ({"reason": "x" * 501}, "reason"),
        ({"expires_at_ms": 999}, "expires_at_ms"),
    ],
)
def test_a_bad_rule_is_refused_with_the_field(changes: dict[str, object], field: str) -> None:
    good = Rule("fine", RuleAction.HIDE_AGENT, expires_at_ms=1001)
    assert rule_problem(good, 1000) is None
    problem = rule_problem(replace(good, **changes), 1000)  # type: ignore[arg-type]
    assert problem is not None and problem.field == f"rule.{field}" and problem.hint
