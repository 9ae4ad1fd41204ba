"""`bursar rule`: who may see what."""

from __future__ import annotations

import click

from bursar.cli import output as out
from bursar.cli.options import DURATION_MS, ask, master_option, output_option, wall_ms
from bursar.cli.problems import say
from bursar.core.messages.rules import RuleAction, RuleMode
from bursar.v1 import rules_pb2

_ACTIONS = {action.word: action for action in RuleAction if action}
_MODES = {mode.name.lower(): mode for mode in RuleMode if mode}


def _word(rule: rules_pb2.Rule, field: str) -> str:
    """`hide-agent` of RULE_ACTION_HIDE_AGENT."""
    return out.state(rule, field).lower().replace("_", "-")


LISTING = out.Listing(
    columns={
        "RULE": lambda view: view.rule.name,
        "ACTION": lambda view: _word(view.rule, "action"),
        "MODE": lambda view: _word(view.rule, "mode"),
        "FRAMEWORKS": lambda view: view.rule.framework or "all",
        "AGENTS": lambda view: view.rule.agent or "all",
        "RESOURCES": lambda view: ",".join(view.rule.resources) or "-",
        "EXPIRES": lambda view: out.moment(view.rule.expires_at_ms),
        "DECISIONS": lambda view: str(view.decisions),
    },
    name=lambda view: view.rule.name,
    details={
        "POSITION": lambda view: f"{view.position} (built in)" if view.built_in else str(view.position),
        "HEADROOM": lambda view: view.rule.headroom,
        "REASON": lambda view: view.rule.reason,
    },
)

VERDICTS = out.Listing(
    columns={
        "FRAMEWORK": lambda verdict: verdict.framework_id,
        "NAME": lambda verdict: verdict.framework_name,
        "ROLE": lambda verdict: verdict.role,
        "AGENT": lambda verdict: verdict.hostname or verdict.agent_id,
        "VERDICT": lambda verdict: _word(verdict, "action"),
        "RULE": lambda verdict: verdict.rule or "-",
        "WHY": lambda verdict: verdict.reason,
        "AUDITED": lambda verdict: ",".join(verdict.audited) or "-",
    },
    name=lambda verdict: f"{verdict.framework_id}/{verdict.agent_id}",
    details={},
)

AUDITS = out.Listing(
    columns={
        "RULE": lambda audit: audit.rule.name,
        "ACTION": lambda audit: _word(audit.rule, "action"),
        "DECISIONS": lambda audit: str(audit.decisions),
        "FRAMEWORKS": lambda audit: str(audit.frameworks),
        "AGENTS": lambda audit: str(audit.agents),
        "PAIRS": lambda audit: str(audit.pairs),
        "OFFERS": lambda audit: str(audit.offers),
    },
    name=lambda audit: audit.rule.name,
    details={},
)


@click.group()
def rule() -> None:
    """Who may see what: rules, asked in their order; the first that matches decides."""


@rule.command("ls")
@output_option
@master_option
def list_rules(output: str) -> None:
    """List the rules in the order in which they are asked, the built-in one (filter-gpu-resources) last."""
    out.print_list(ask(lambda client: client.rules()), LISTING, output)


@rule.command("add")
@click.option("--name", required=True, help="Unique; small letters, digits, '.', '_', '-'.")
@click.option("--action", type=click.Choice(list(_ACTIONS)), required=True, help="What the rule does where it matches.")
@click.option(
    "--mode",
    type=click.Choice(list(_MODES)),
    default="enforce",
    show_default=True,
    help="audit: only count what it would do.",
)
@click.option("--framework", default="", help="Which frameworks, such as 'lacks=GPU_RESOURCES,role=ml/**'.  [all]")
@click.option("--agent", default="", help="Which agents, such as 'gpus>=1,rack=r1'.  [all]")
@click.option(
    "--resources", default="", metavar="KIND,…", help="Agents with any of these; what strip takes.  [strip: gpus]"
)
@click.option(
    "--headroom", default="", help="What strip and headroom keep for each GPU.  [as --gpu-headroom of the master]"
)
@click.option("--reason", default="", help="For people who wonder.")
@click.option("--expires", type=DURATION_MS, help="Forget the rule after this time, such as 7d.")
@click.option("--before", default="", metavar="RULE", help="Put it before this one.  [after all others]")
@click.option("--replace", is_flag=True, help="Take the place of the rule of the same name.")
@click.option("--force", is_flag=True, help="Also if nobody would see anything any more.")
@output_option
@master_option
def add_rule(
    name: str,
    action: str,
    mode: str,
    framework: str,
    agent: str,
    resources: str,
    headroom: str,
    reason: str,
    expires: int | None,
    before: str,
    replace: bool,
    force: bool,
    output: str,
) -> None:
    """Add a rule. Offers that it forbids are rescinded before this returns.

    Frameworks are described by has=, lacks=, role=, name=, principal= and label.NAME=; agents by predicates on attributes, hostname,
    amounts of their totals, gpu.model, gpu.mem, gpu.clique and gpu.health.
    """
    wanted = rules_pb2.Rule(
        name=name,
        action=int(_ACTIONS[action]),  # type: ignore[arg-type]
        mode=int(_MODES[mode]),  # type: ignore[arg-type]
        framework=framework,
        agent=agent,
        resources=[kind.strip() for kind in resources.split(",") if kind.strip()],
        headroom=headroom,
        reason=reason,
        expires_at_ms=wall_ms() + expires if expires is not None else 0,
    )
    response = ask(lambda client: client.add_rule(wanted, before=before, replace=replace, force=force))
    out.print_one(response.rule, LISTING, output)
    _say_rescinded(response.rescinded_offers)


@rule.command("rm")
@click.argument("name")
@output_option
@master_option
def remove_rule(name: str, output: str) -> None:
    """Remove a rule. What a rule that allows had shown may be hidden then: such offers are rescinded."""
    response = ask(lambda client: client.remove_rule(name))
    out.print_one(response.rule, LISTING, output)
    _say_rescinded(response.rescinded_offers)


@rule.command("test")
@click.option("--framework", default="", help="An id or prefix.  [all]")
@click.option("--agent", default="", help="An id, prefix or hostname.  [all]")
@output_option
@master_option
def try_rules(framework: str, agent: str, output: str) -> None:
    """Show which rule decides for which framework on which agent, and why."""
    out.print_list(ask(lambda client: client.try_rules(framework, agent)), VERDICTS, output)


@rule.command("audit")
@output_option
@master_option
def audit_rules(output: str) -> None:
    """Show what rules in audit mode would do if they were enforced now.

    DECISIONS counts what each would have decided in allocation cycles since the master started.
    """
    out.print_list(ask(lambda client: client.audit_rules()), AUDITS, output)


def _say_rescinded(count: int) -> None:
    if count:
        say(f"{count} outstanding offer{'s were' if count > 1 else ' was'} rescinded")
