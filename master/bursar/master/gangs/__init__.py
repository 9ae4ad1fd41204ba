"""The life of a gang: asked for, waiting its turn, answered by one bundle, taken (design.md §7; field.md, "gang over offers").

Gangs are served before single offers, in one line: by how often they held already, then by fair share, then by age. Whoever fits
into what is free gets a bundle at once. The first that does not may *hold*: what it can use is withheld for it as it becomes free,
on the agents that lack the least, never more than it still needs – so that no stream of small tasks starves it. One gang holds at
a time, so that two that each need most of the cluster come one after the other and never each wait for what the other holds; and
for `--gang-hold-timeout` at most, after which it rests for as long and the next one has its turn. A hold gives way to whatever else
happens to an agent: reservations of operators, its loss, changes of its devices.

Everything here is soft: it ends with the framework's stream, and with the master.

`calls` is what frameworks say, `admission` what is refused at once, `line` whose turn it is; `room` finds what agents have for a gang,
`limits` what quota allows it, `offering` makes the bundle and `holding` withholds; `explaining` and
`showing` tell how it stands with each. The state is in `bursar.master.bundles`, the
arithmetic of places in `bursar.master.allocator.gangs`.
"""

from bursar.master.gangs.calls import cancel, end_in_roles, gang_of, request, taken
from bursar.master.gangs.line import expire, serve, turn_over

__all__ = ["cancel", "end_in_roles", "expire", "gang_of", "request", "serve", "taken", "turn_over"]
