"""The verbs of a script: who is there, what they do, how time passes. What is none of them is an operator's command.

Each verb is a function that reads its words completely – so that a script with a mistake is refused before anything is carried out –
and returns what is to be done on the stage. `grammar` finds the verb of a command; the other modules enter theirs when they are imported here.
"""

from bursar.simulation.scenario.verbs import agents, frameworks, gangs, offers, showing, time
from bursar.simulation.scenario.verbs.grammar import Action, Names, parse_verb, usages

__all__ = ["Action", "Names", "agents", "frameworks", "gangs", "offers", "parse_verb", "showing", "time", "usages"]
