"""Scenarios: scripts of commands that the real machine of a master carries out in virtual time, with a transcript.

A script says who is there, what they do and how much time passes; after each command stands what it caused, in words: every offer,
every rescind, every refusal (docs/scenarios.md has the grammar). It serves twice: operators try a policy before they set it, and
`tests/scenarios/` holds one script per rule of the allocator, whose transcript is the expectation.

`script` reads the text and writes it again with its transcript, `verbs` are the commands, topic by topic, `stage` holds the machine and
the clock, `peers` are the agents and frameworks that act on it, `bundles` what frameworks are given for gangs, `outcomes` says what can
happen, in words and as data.
"""

from bursar.simulation.scenario.outcomes import Outcome
from bursar.simulation.scenario.script import Entry, Operate, Operated, ScriptError, Transcript, run_script

__all__ = ["Entry", "Operate", "Operated", "Outcome", "ScriptError", "Transcript", "run_script"]
