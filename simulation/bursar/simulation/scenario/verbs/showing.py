"""Looking at what there is now."""

from __future__ import annotations

from bursar.core.messages import operator as op
from bursar.core.text import format_duration, format_milli
from bursar.simulation.scenario.stage import Stage
from bursar.simulation.scenario.verbs.grammar import Action, Names, verb
from bursar.simulation.scenario.words import Words


@verb("show offers|shares|tasks|time")
def _show(words: Words, names: Names) -> Action:
    shows: dict[str, Action] = {
        "offers": Stage.show_offers,
        "shares": _show_shares,
        "tasks": _show_tasks,
        "time": lambda stage: stage.show(f"{format_duration(stage.at_ms)} since the start"),
    }
    what = words.keyword(shows.keys())
    if what is None:
        raise words.problem("what to show is missing")
    return shows[what]


def _show_shares(stage: Stage) -> None:
    answer = stage.ask(op.ListRolesRequest())
    assert isinstance(answer, op.ListRolesResponse)
    for view in answer.roles:
        share, weight = view.share_millionths, view.weight_milli
        stage.show(f"{view.role}: share {share // 10_000}.{share // 100 % 100:02d}%, weight {format_milli(weight)}")


def _show_tasks(stage: Stage) -> None:
    answer = stage.ask(op.ListTasksRequest())
    assert isinstance(answer, op.ListTasksResponse)
    for task in answer.tasks:
        stage.show(
            f"{task.task_id} of {task.framework_id} for {task.role} on {task.agent_id}: {task.state.name.lower()}"
        )
    if not answer.tasks:
        stage.show("no tasks")
