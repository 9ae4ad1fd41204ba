"""Memory that is planned: how the memory of a task, an agent and a GPU is divided into pools, and how a conflict is told.

One pure library, used by the CLI, the SDK, the master and the agent, so that all of them come to the same bytes (F49-09).

* `pools`: a pool's rule, the settings that override it, the plan that comes out, and the conflict that may come instead.
* `division`: the arithmetic, from a total downwards and from parts upwards.
* `profiles`: which pools a task has, by the runtime inside it (plain, jvm, pytorch), and the options that make that runtime
  keep to them.
* `tasks`, `agents`: the plans of a task; of an agent's machine and of a GPU.
* `text`: settings as people write them.
* `overrun`: which pool a task overran, and which option to raise.
"""
