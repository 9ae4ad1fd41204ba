"""`bursar explain`: why somebody is not offered what they want, and what would change it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ROLE, ask, master_option, output_option
from bursar.core.text import format_milli


@click.group()
def explain() -> None:
    """Why not? What stands in the way of offers, and what would change it.

    The answers come from the code that decides. For every pair of a framework (in a role) and an agent there is an offer, or one
    reason why not; pairs with the same reason are told together, the reason that is nearest to success last.
    """


@explain.command("role")
@click.argument("role", type=ROLE)
@output_option
@master_option
def explain_role(role: str, output: str) -> None:
    """Why the frameworks in a role, and in those below it, are not offered what they want.

    Example: bursar explain role research/vision
    """
    answer = ask(lambda client: client.explain_role(role))
    _print(answer, output, [("ROLE", role), ("FRAMEWORKS", str(answer.frameworks)), ("AGENTS", str(answer.agents))])


@explain.command("framework")
@click.argument("framework")
@click.option("--agent", default="", help="Only of this agent: an id, prefix or hostname.")
@click.option("--role", type=ROLE, help="Only in this one of its roles.")
@output_option
@master_option
def explain_framework(framework: str, agent: str, role: str | None, output: str) -> None:
    """Why a framework, by id or prefix, is not offered what it wants.

    Example: bursar explain framework 4f0c --agent gpu-1
    """
    answer = ask(lambda client: client.explain_framework(framework, agent=agent, role=role or ""))
    _print(answer, output, [("FRAMEWORK", answer.framework_id), ("AGENTS", agent or str(answer.agents))])


@explain.command("agent")
@click.argument("agent")
@output_option
@master_option
def explain_agent(agent: str, output: str) -> None:
    """Why an agent, by id, prefix or hostname, is not offered.

    Example: bursar explain agent gpu-1
    """
    answer = ask(lambda client: client.explain_agent(agent))
    _print(
        answer,
        output,
        [("AGENT", answer.agent_id), ("HOSTNAME", answer.hostname), ("FRAMEWORKS", str(answer.frameworks))],
    )


def _print(answer: Any, output: str, head: list[tuple[str, str]]) -> None:
    if output == "json":
        out.write(out.dump_json(out.to_json(answer)))
        return
    if output == "name":
        out.write("".join(f"{out.state(refusal, 'reason')}\n" for refusal in answer.refusals))
        return
    out.write_pairs(
        [
            *head,
            ("SERVED", "\n".join(_place(place) for place in answer.order)),
            ("OFFERS", f"{answer.outstanding_offers} outstanding"),
            ("LOOKED AT", _looked_at(answer)),
        ]
    )
    for gang in getattr(answer, "gangs", ()):
        out.write("\n" + "".join(f"{out.printable(line)}\n" for line in _lines_of_gang(gang)))
    for refusal in answer.refusals:
        out.write("\n" + "".join(f"{out.printable(line)}\n" for line in _lines(refusal)))


def _place(place: Any) -> str:
    turn = f"{place.place} of {place.places}" if place.place else "never"
    share = f"{place.share_millionths // 10_000}.{place.share_millionths % 10_000 // 100:02d}%"
    weight = format_milli(place.weight_milli)
    return f"{turn}: {out.named(place.framework_id, place.framework_name)} in role {place.role} (the role's share {share}, weight {weight})"


def _looked_at(answer: Any) -> str:
    if not answer.pairs:
        return "nothing: there is no agent, or no framework"
    of_all = "" if answer.examined == answer.pairs else f" of {answer.pairs} (evenly spread)"
    parts = [f"{answer.offered} with an offer"]
    if answer.due:
        parts.append(f"{answer.due} offered in a moment")
    refused = answer.examined - answer.offered - answer.due
    noun = "pair" if answer.examined == 1 else "pairs"
    return f"{answer.examined}{of_all} {noun} of a framework and an agent: {', '.join(parts)}, {refused} without"


def _lines(refusal: Any) -> Iterable[str]:
    role = f" in role {refusal.role}" if refusal.role else ""
    frameworks = f" for {refusal.frameworks} frameworks" if refusal.frameworks > 1 else ""
    yield f"{out.state(refusal, 'reason')}{role}{frameworks}"
    yield f"  {refusal.message}"
    for obstacle in refusal.obstacles:
        yield f"  - {obstacle.message}"
    if refusal.more_obstacles:
        yield f"  - and {refusal.more_obstacles} more"
    if refusal.hint:
        yield f"  try: {refusal.hint}"


def _lines_of_gang(gang: Any) -> Iterable[str]:
    place = f"{gang.place} of {gang.places} in line" if gang.place else "on offer"
    holds = ", holding what becomes free" if gang.holds else ""
    yield f"GANG {gang.gang_id} of {out.named(gang.framework_id, gang.framework_name)} in role {gang.role}: {place}{holds}"
    reason = out.state(gang, "reason")
    yield f"  {reason}: {gang.message}" if gang.reason else f"  {gang.message}"
    for obstacle in gang.obstacles:
        yield f"  - {obstacle.message}"
    if gang.hint:
        yield f"  try: {gang.hint}"
