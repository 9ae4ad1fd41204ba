"""Dialogues with the agent's machine about devices that fall ill and come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent_dialogue import GPUS, Agent, R, S, container, key, of, said, states, statuses, task

from bursar.agent.containers.runtime import RecoveredContainer
from bursar.agent.devices.health import DeviceSignal, Remedy, Severity
from bursar.agent.effects import ProbeDevice, StartContainer
from bursar.agent.events import (
    ContainersRecovered,
    DeviceProbed,
    DevicesDiscovered,
    DevicesSignalled,
    NodesOutOfReach,
)
from bursar.agent.machine import AgentMachine
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.messages.agent import DeviceOrder, DeviceOrders, DevicesChanged, Register, TaskUpdates

C = DeviceCondition


class Ill(Agent):
    """An agent that can be started anew, perhaps on other devices."""

    def reborn(self, devices: tuple[Device, ...] = GPUS) -> Ill:
        again = Ill(self.durable)
        again.machine = AgentMachine(
            replace(again.machine.books.config, info=replace(again.machine.info, devices=devices)), self.durable.copy()
        )
        again.ms = self.ms
        return again

    def ready(self, *found: RecoveredContainer) -> Ill:
        super().ready(*found)
        return self


FATAL = DevicesSignalled((DeviceSignal(GPUS[0].uuid, Severity.FATAL, "XID 79: off the bus"),))


def shown(effects: Any) -> list[DeviceCondition]:
    """Conditions in the last DevicesChanged."""
    (*_, changed) = [message for message in said(effects) if isinstance(message, DevicesChanged)]
    return [device.condition for device in changed.devices]


def test_who_has_a_device_that_vanished_while_the_agent_was_down_is_told() -> None:
    """This life of the agent never saw the device; its task has it all the same."""
    agent = Ill().ready()
    agent.run(task("t", 0))
    agent.ack_all("t")
    again = agent.reborn(GPUS[1:])
    effects = again.step(ContainersRecovered((RecoveredContainer(container("t"), None),)))
    again.connect()
    effects += again.register()
    record = again.durable.tasks[key("t")]
    (told,) = record.unacknowledged
    assert (told.state, told.reason) == (S.RUNNING, R.DEVICE_FAILED) and "not there any more" in told.message
    again.step(DevicesDiscovered(GPUS[1:], ()))
    assert again.durable.tasks[key("t")].unacknowledged == (told,), "once"
    assert shown(again.step(DevicesDiscovered(GPUS, ())))[0] is not C.HEALTHY, "it has to be probed first"


def test_a_device_that_fails_is_told_of_and_comes_back_after_its_probe() -> None:
    agent = Ill().ready()
    effects = agent.step(FATAL)
    assert shown(effects) == [C.CORDONED, C.UNSPECIFIED, C.UNSPECIFIED, C.UNSPECIFIED]
    (refused,) = statuses(agent.launch(task("t", 0)))
    assert (refused.state, refused.reason) == (S.DROPPED, R.DEVICES_CHANGED) and "XID 79" in refused.message
    effects = agent.wait(60_000)
    assert of(effects, ProbeDevice) == [ProbeDevice(GPUS[0].uuid)]
    assert shown(effects)[0] is C.RECOVERING
    effects = agent.step(DeviceProbed(GPUS[0].uuid, ""))
    assert shown(effects)[0] is C.HEALTHY
    assert [start.container_id for start in of(agent.launch(task("u", 0)), StartContainer)] == [container("u")]


def test_the_task_that_holds_it_is_told_and_goes_on_and_the_probe_waits_for_its_end() -> None:
    agent = Ill().ready()
    agent.run(task("t", 0))
    (told,) = statuses(agent.step(FATAL))
    assert (told.state, told.reason) == (S.RUNNING, R.DEVICE_FAILED)
    assert told.message == "device GPU-0 has failed: XID 79: off the bus" and told.device_uuids == (GPUS[0].uuid,)
    assert agent.step(FATAL) is not None and not statuses(agent.step(FATAL)), "told once"
    assert not of(agent.wait(70_000), ProbeDevice)
    effects = agent.exit("t", 1)
    (end,) = statuses(effects)
    assert (end.state, end.reason, end.exit_code) == (S.FAILED, R.DEVICE_LOST, 1)
    assert "GPU-0 is not healthy: XID 79" in end.message
    assert of(effects, ProbeDevice) == [ProbeDevice(GPUS[0].uuid)]


def test_a_task_that_ends_well_in_spite_of_it_has_finished() -> None:
    agent = Ill().ready()
    agent.run(task("t", 0))
    agent.step(FATAL)
    (end,) = statuses(agent.exit("t", 0))
    assert (end.state, end.reason) == (S.FINISHED, R.COMMAND_EXITED)


def test_health_outlives_the_agent_and_a_probe_that_was_under_way_is_asked_for_again() -> None:
    agent = Ill().ready()
    agent.step(FATAL)
    again = agent.reborn()
    effects = again.step(ContainersRecovered(()))
    assert not of(effects, ProbeDevice), "it still cools down"
    (register,) = [message for message in said(again.connect()) if isinstance(message, Register)]
    assert register.info.devices[0].condition is C.CORDONED
    again.wait(60_000)
    third = again.reborn()
    assert of(third.step(ContainersRecovered(())), ProbeDevice) == [ProbeDevice(GPUS[0].uuid)]


def test_a_task_is_told_also_of_what_was_found_out_while_the_agent_was_down() -> None:
    agent = Ill().ready()
    agent.run(task("t", 0))
    ill = replace(GPUS[0], health=DeviceHealth.UNHEALTHY, health_reason="GPU is lost")
    again = agent.reborn(devices=(ill, *GPUS[1:]))
    again.step(ContainersRecovered((RecoveredContainer(container("t"), None),)))
    unacknowledged = again.machine.state.tasks[next(iter(again.machine.state.tasks))].unacknowledged
    assert unacknowledged[-1].reason is R.DEVICE_FAILED


def test_a_device_that_vanished_comes_back_only_after_a_probe() -> None:
    agent = Ill().ready()
    agent.step(DevicesDiscovered(GPUS[1:], ()))
    assert agent.machine.state.health[GPUS[0].uuid].condition is C.CORDONED
    assert not of(agent.wait(60_000), ProbeDevice), "not while it is away"
    effects = agent.step(DevicesDiscovered(GPUS, ()))
    assert of(effects, ProbeDevice) == [ProbeDevice(GPUS[0].uuid)]


def test_the_drivers_word_that_a_reset_was_done_is_waited_for() -> None:
    agent = Ill().ready()
    agent.step(DevicesSignalled((DeviceSignal(GPUS[0].uuid, Severity.FATAL, "XID 48: DBE", Remedy.RESET),)))
    agent.wait(60_000)
    assert not of(agent.step(DevicesDiscovered(GPUS, (), {GPUS[0].uuid: Remedy.RESET})), ProbeDevice)
    assert of(agent.step(DevicesDiscovered(GPUS, (), {GPUS[0].uuid: Remedy.NONE})), ProbeDevice)


def test_a_device_of_which_its_driver_cannot_speak_is_not_offered_but_not_ill() -> None:
    agent = Ill().ready()
    dumb = tuple(
        replace(gpu, health=DeviceHealth.UNHEALTHY, health_reason="unknown: the plugin crashed") for gpu in GPUS
    )
    agent.step(DevicesDiscovered(dumb, ()))
    assert agent.machine.state.health == {}
    effects = agent.step(DevicesDiscovered(GPUS, ()))
    changed = [message for message in said(effects) if isinstance(message, DevicesChanged)]
    assert [device.health for device in changed[0].devices] == [DeviceHealth.HEALTHY] * 4


def test_an_operators_order_is_kept_and_older_ones_are_not_heard_again() -> None:
    agent = Ill().ready()
    agent.run(task("t", 0))
    effects = agent.hear(DeviceOrders((DeviceOrder(GPUS[0].uuid, True, "fan", 5),)))
    (told,) = statuses(effects)
    assert (told.state, told.reason) == (S.RUNNING, R.DEVICE_CORDONED) and "by an operator: fan" in told.message
    assert shown(effects)[0] is C.CORDONED
    assert not said(agent.hear(DeviceOrders((DeviceOrder(GPUS[0].uuid, True, "fan", 5),)))), "said again at each start"
    again = agent.reborn()
    assert again.machine.info.devices[0].condition is C.CORDONED
    (end,) = statuses(agent.exit("t", 1))
    assert end.reason is R.COMMAND_EXITED, "nothing was wrong with the device"
    effects = agent.hear(DeviceOrders((DeviceOrder(GPUS[0].uuid, False, "", 6),)))
    assert shown(effects)[0] is C.HEALTHY


def test_notices_are_repeated_until_acknowledged_like_any_update() -> None:
    agent = Ill().ready()
    agent.run(task("t", 0))
    agent.step(FATAL)
    effects = agent.wait(10_000)
    repeated = [update for message in said(effects) if isinstance(message, TaskUpdates) for update in message.updates]
    assert repeated[-1].reason is R.DEVICE_FAILED
    assert states(effects)[-1] is S.RUNNING


def test_devices_that_were_never_ill_are_told_as_their_driver_describes_them() -> None:
    assert Agent().machine.info.devices == GPUS
    assert all(isinstance(device, Device) for device in GPUS)


def test_a_task_is_told_once_that_it_may_not_open_its_devices_any_more() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    cut_off = NodesOutOfReach({container("t"): ("/dev/nvidia0", "/dev/nvidiactl"), container("gone"): ("/dev/x",)})
    assert not statuses(agent.step(NodesOutOfReach({container("t"): ()})))
    (told,) = statuses(agent.step(cut_off))
    assert (told.state, told.reason) == (S.RUNNING, R.DEVICE_ACCESS_LOST)
    assert told.message.startswith("its container may not open /dev/nvidia0, /dev/nvidiactl any more: something")
    assert not statuses(agent.step(cut_off))
    agent.step(NodesOutOfReach({container("t"): ()}))
    assert statuses(agent.step(cut_off)), "it could meanwhile"
    agent.kill("t")
    assert not statuses(agent.step(cut_off))
