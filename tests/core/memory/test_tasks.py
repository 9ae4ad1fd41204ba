"""The memory of a task: every beginning, every rule of FLIP-49, and that a plan sums up exactly or is no plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.errors import InvalidText
from bursar.core.memory.pools import GIB, MIB, MemoryConflict, MemoryPlan, PoolSetting
from bursar.core.memory.profiles import PROFILES, profile_named, runtime_environment
from bursar.core.memory.tasks import MemorySettings, plan_task, split_managed, with_container, with_shm
from bursar.core.memory.text import format_settings, parse_memory, parse_memory_text


def plan(text: str) -> MemoryPlan:
    return plan_task(parse_memory_text(text), "task.yaml")


def sizes(text: str) -> dict[str, int]:
    return {name: size // MIB for name, size in plan(text).sizes().items() if size}


def test_from_the_container_downwards() -> None:
    # 10 % overhead, at most 1 GiB; 10 % of the total for shm; the rest is the app's.
    assert sizes("container=20GiB") == {
        "app": 19 * 1024 - 1945 - 1,
        "shm": 1945,
        "total": 19 * 1024,
        "overhead": 1024,
        "container": 20 * 1024,
    }


def test_from_the_total_upwards_the_overhead_is_a_tenth_of_what_comes_out() -> None:
    assert sizes("total=4500MiB") == {"app": 4050, "shm": 450, "total": 4500, "overhead": 500, "container": 5000}


def test_from_the_parts_upwards_the_shm_is_a_tenth_of_what_comes_out() -> None:
    found = sizes("app=4050MiB")
    assert found == {"app": 4050, "shm": 450, "total": 4500, "overhead": 500, "container": 5000}


def test_a_floor_and_a_ceiling_hold_upwards_too() -> None:
    assert sizes("app=100MiB") == {"app": 100, "shm": 64, "total": 164, "overhead": 192, "container": 356}
    assert sizes("app=100GiB")["overhead"] == 1024


def test_a_jvm_has_direct_memory_and_metaspace() -> None:
    found = sizes("profile=jvm,container=8GiB")
    assert found["metaspace"] == 256
    assert found["overhead"] == 819
    total = found["total"]
    assert total == 8192 - 256 - 819 - 1
    assert found["managed"] == total * 4 // 10
    assert sum(found[name] for name in ("app", "managed", "shm")) in (total, total - 1)


def test_a_size_beats_a_fraction() -> None:
    setting = PoolSetting("shm", size_bytes=GIB, fraction_milli=900)
    assert plan_task(MemorySettings(container_bytes=8 * GIB, pools=(setting,)))["shm"] == GIB


def test_equal_bounds_pin_a_pool() -> None:
    assert sizes("container=8GiB,shm.min=300MiB,shm.max=300MiB")["shm"] == 300


@pytest.mark.parametrize(
    ("text", "problem", "names"),
    [
        # Nothing that could be a beginning: all three are named (F49-01).
        ("shm=1GiB", "not enough is said", ("container", "total", "app", "shm 1GiB (shm in task.yaml)")),
        ("profile=jvm,app=1GiB", "not enough is said", ("total", "managed")),
        # The rest must lie in its bounds, there is no silent cut (F49-05).
        (
            "total=8GiB,app=7GiB,shm=4GiB",
            "take 3GiB more than it has",
            ("total 8GiB (total in task.yaml)", "app 7GiB", "shm 4GiB"),
        ),
        ("container=8GiB,app=4GiB", "takes at most 1GiB", ("container 8GiB", "total", "raise overhead.max")),
        ("total=8GiB,container=9500MiB", "takes at most 1GiB", ("overhead",)),
        ("total=8GiB,container=8200MiB", "8MiB are left for overhead, which needs at least 192MiB", ()),
        ("total=8GiB,app=8150MiB", "are left for shm", ("at least 64MiB",)),
        # All said, and wrong (F49-06).
        (
            "total=8GiB,app=4GiB,shm=1GiB,managed=1GiB,tmpfs=1GiB",
            "come to 7GiB, 1GiB less than total",
            ("app 4GiB (app in task.yaml)", "tmpfs 1GiB", "set total to 7GiB"),
        ),
        ("container=10GiB,total=8GiB,overhead=1GiB", "come to 9GiB, 1GiB less than container", ("overhead 1GiB",)),
        ("container=300MiB,overhead=300MiB", "leaves nothing", ("overhead 300MiB",)),
        ("container=100MiB", "leaves nothing of 100MiB", ("default: 10% of container, at least 192MiB",)),
        ("app=1GiB,shm=50%,managed=50%", "not enough", ()),
        ("app=1GiB,managed=0,shm=50%,tmpfs=50%", "the fractions of total come to 100%", ("lower shm.fraction",)),
        ("container=8GiB,shm.min=2GiB,shm.max=1GiB", "the floor of shm, 2GiB, is above its ceiling, 1GiB", ()),
    ],
)
def test_a_conflict_names_all_that_takes_part_in_it(text: str, problem: str, names: tuple[str, ...]) -> None:
    with pytest.raises(MemoryConflict) as caught:
        plan(text)
    words = str(caught.value)
    assert problem in words
    for name in names:
        assert name in words


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("profile=jwm,container=8GiB", "did you mean jvm?"),
        ("container=8GiB,swap=1GiB", "no pool 'swap'"),
        ("container=8GiB,shm=1GiB,shm=2GiB", "set twice"),
        ("container=8GiB,shm=100%", "not below 1"),
        ("container=8GiB,shm=-1GiB", "below zero"),
        ("container=8GiB,shm=nan", "unknown unit"),
        ("container=0", "0 bytes"),
        ("container", "no setting"),
        ("container=8GiB,shm.most=1GiB", "no setting of a pool"),
        ("container=8GiB,shm.size=1GiB,shm.max=512MiB", "outside its own shm.max"),
        ("container=8GiB,shm=1GiB,shm-size=1GiB", "two names"),
        ("container=8GiB,shm=0.33333%", "more than three decimal places"),
        ("container=8GiB,shm=33.33%", "finer than a thousandth"),
        ("container=9PiB", "unknown unit"),
        ("total=8388607GiB,overhead=4000000GiB", "at most 8 PiB"),
    ],
)
def test_settings_that_make_no_sense_say_so(text: str, problem: str) -> None:
    with pytest.raises(InvalidText) as caught:
        plan(text)
    assert problem in str(caught.value)


def test_a_fraction_that_the_rest_does_not_meet_is_a_note() -> None:
    found = plan("total=8GiB,app=6GiB,shm=10%")
    assert found["shm"] == 2 * GIB
    assert found.notes == ("shm is the rest of total, 2GiB; its fraction of 10% is not used",)
    assert not plan("total=10GiB,app=9GiB,shm=10%").notes


def test_an_old_name_is_read_with_a_note() -> None:
    settings, notes = parse_memory({"limit": "8GiB", "pinned": "1GiB"})
    assert plan_task(settings)["managed"] == GIB
    assert notes == ("limit is called container here", "pinned is called managed here")


def test_the_tasks_mem_is_the_container() -> None:
    settings = parse_memory_text("shm=1GiB")
    assert plan_task(with_container(settings, 8 * GIB))["container"] == 8 * GIB
    assert with_container(settings, 0) == settings
    with pytest.raises(MemoryConflict, match=r"container 4GiB \(the memory settings\), container 8GiB \(mem\)"):
        with_container(parse_memory_text("container=4GiB"), 8 * GIB)


def test_the_containers_shm_is_the_pool() -> None:
    settings = parse_memory_text("container=8GiB")
    assert plan_task(with_shm(settings, GIB))["shm"] == GIB
    assert plan_task(with_shm(with_shm(settings, GIB), GIB))["shm"] == GIB
    with pytest.raises(MemoryConflict, match=r"shm 2GiB \(the memory settings\), shm 1GiB \(container.shm_bytes\)"):
        with_shm(parse_memory_text("shm=2GiB"), GIB)


def test_what_holds_a_pool_to_its_size_is_said() -> None:
    held = {item.name: item.enforced_by for item in plan("profile=jvm,container=8GiB").components}
    assert held == {
        "app": "-Xmx",
        "shm": "ShmSize",
        "managed": "-XX:MaxDirectMemorySize",
        "tmpfs": "size of the tmpfs",
        "total": "sum",
        "metaspace": "-XX:MaxMetaspaceSize",
        "overhead": "advisory",
        "container": "memory.max",
    }
    as_process = plan_task(parse_memory_text("container=8GiB"), runtime="process")
    assert {item.enforced_by for item in as_process.components} == {"advisory", "sum"}


def test_a_jvm_is_told_its_sizes() -> None:
    found = plan("profile=jvm,container=8GiB")
    environment = runtime_environment("jvm", found, {"JAVA_TOOL_OPTIONS": "-Dfoo=1"}, ["java", "-jar", "x.jar"])
    assert environment["JAVA_TOOL_OPTIONS"].split() == [
        f"-Xms{found['app']}",
        f"-Xmx{found['app']}",
        f"-XX:MaxDirectMemorySize={found['managed']}",
        f"-XX:MaxMetaspaceSize={256 * MIB}",
        "-Dfoo=1",
    ]
    assert environment["BURSAR_MEM_APP_BYTES"] == str(found["app"])
    for own, command in (({"JAVA_TOOL_OPTIONS": "-Xmx1g"}, []), ({}, ["java", "-Xmx1g"])):
        with pytest.raises(MemoryConflict, match="-Xmx1g"):
            runtime_environment("jvm", found, own, command)
    assert "JAVA_TOOL_OPTIONS" not in runtime_environment("plain", found, {"JAVA_TOOL_OPTIONS": "-Xmx1g"}, [])


def test_managed_memory_is_split_by_the_weights_of_those_who_are_there() -> None:
    found = plan("container=8GiB,managed=1000MiB")
    weights = {"OPERATOR": 70, "PYTHON": 30, "STATE": 100}
    assert split_managed(found, weights, frozenset({"OPERATOR", "PYTHON"})) == {
        "OPERATOR": 700 * MIB,
        "PYTHON": 300 * MIB,
    }
    assert split_managed(found, weights, frozenset()) == {}
    with pytest.raises(InvalidText, match="SQL uses managed memory, but has no weight"):
        split_managed(found, weights, frozenset({"SQL"}))


_POOLS = ["app", "shm", "managed", "tmpfs", "overhead", "metaspace"]
amounts = st.one_of(st.integers(0, 64 * MIB), st.integers(0, 64 * GIB))
settings_of_pools = st.builds(
    PoolSetting,
    st.sampled_from(_POOLS),
    st.none() | amounts,
    st.none() | st.integers(0, 999),
    st.none() | amounts,
    st.none() | amounts,
)
all_settings = st.builds(
    MemorySettings,
    st.sampled_from(["", *PROFILES]),
    st.none() | amounts,
    st.none() | amounts,
    st.lists(settings_of_pools, max_size=5, unique_by=lambda pool: pool.name).map(tuple),
)


@given(all_settings)
def test_a_plan_sums_up_exactly_and_keeps_all_that_was_said_or_there_is_none(settings: MemorySettings) -> None:
    try:
        found = plan_task(settings)
    except InvalidText as error:
        assert error.detail.hint or error.detail.message
        return
    profile = profile_named(settings.profile)
    assert all(size >= 0 for size in found.sizes().values())
    assert found["total"] == sum(found[name] for name in profile.inside)
    assert found["container"] == found["total"] + sum(found[name] for name in profile.outside)
    assert settings.container_bytes in (None, found["container"])
    assert settings.total_bytes in (None, found["total"])
    for pool in settings.pools:
        assert pool.size_bytes in (None, found[pool.name])
        if pool.size_bytes is None:
            assert pool.min_bytes is None or found[pool.name] >= pool.min_bytes
            assert pool.max_bytes is None or found[pool.name] <= pool.max_bytes
    for item in found.components:
        if item.name in profile.inside or item.name in profile.outside:
            said = any(pool.name == item.name and pool.size_bytes is not None for pool in settings.pools)
            assert said or item.min_bytes <= item.size_bytes <= (item.max_bytes or item.size_bytes)


@given(all_settings)
def test_what_a_plan_came_to_can_be_said_and_gives_the_same(settings: MemorySettings) -> None:
    """A plan written out in full is no conflict."""
    try:
        found = plan_task(settings)
    except InvalidText:
        return
    profile = profile_named(settings.profile)
    names = [*profile.inside, *profile.outside]
    full = MemorySettings(
        settings.profile,
        found["container"],
        found["total"],
        tuple(PoolSetting(name, found[name]) for name in names),
    )
    assert plan_task(full).sizes() == found.sizes()


@given(all_settings)
def test_settings_are_read_as_they_are_written(settings: MemorySettings) -> None:
    def in_kib(size: int | None) -> int | None:
        # Text has three places of a KiB, so not every byte has one.
        return None if size is None else size // 1024 * 1024

    whole = MemorySettings(
        settings.profile,
        in_kib(settings.container_bytes),
        in_kib(settings.total_bytes),
        tuple(
            PoolSetting(
                pool.name, in_kib(pool.size_bytes), pool.fraction_milli, in_kib(pool.min_bytes), in_kib(pool.max_bytes)
            )
            for pool in settings.pools
            if pool != PoolSetting(pool.name)
        ),
    )
    assert parse_memory_text(format_settings(whole)) == whole
