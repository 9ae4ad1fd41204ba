"""A whole cluster in one thread, from one seed (design.md §2, style of the tigerbeetle simulator).

The machines of the master, of the agents and of the SDK's sessions are the real ones; everything around them is simulated:
time (`timeline`), the shells that step, commit and release (`process`), the network (`network`), the registry (`registry`),
containers and devices (`containers`, `devices`). `master`, `agents`, `frameworks` and `operator` put these together, `faults`
says what goes wrong and how often, `checkers` judge every step by what can be seen from outside, and `world` runs it all: first
under faults, then without, until everything has converged.

Two ways into this world: seeds (`bursar simulate --seed 7`) and tests that drive a `World` by hand. Beside it stands `scenario`: a
master's machine without faults, for scripts of commands with their transcript (`bursar simulate --scenario FILE`, `tests/scenarios/`).
"""
