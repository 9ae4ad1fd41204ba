"""Judges of the cluster, apart from the code that they judge: each rule is computed anew from what can be seen from outside.

Seen are: what really runs (containers), what is durable (the registry, the checkpoints), and what was said (messages as they
leave). Of the machines' insides only `check()` and the views needed to name a culprit are used. A broken rule raises Violation.

`master`, `offers` and `durability` judge the master, `agents` the agents and what really runs, `frameworks` the promises made to them, `groups` task groups, `executors` executors, `cuts` cards that are cut;
`facts` is what the master has decided, `rest` how things must be in the end.
"""

from bursar.simulation.checkers.checkers import Checkers
from bursar.simulation.checkers.verdicts import Violation

__all__ = ["Checkers", "Violation"]
