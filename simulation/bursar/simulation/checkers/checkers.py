"""All judges of one simulated cluster."""

from __future__ import annotations

from collections import Counter

from bursar.simulation.checkers.agents import AgentJudge
from bursar.simulation.checkers.cuts import CutJudge
from bursar.simulation.checkers.durability import DurabilityJudge
from bursar.simulation.checkers.executors import ExecutorJudge
from bursar.simulation.checkers.frameworks import FrameworkJudge
from bursar.simulation.checkers.groups import GroupJudge
from bursar.simulation.checkers.master import MasterJudge
from bursar.simulation.checkers.overuse import OveruseJudge
from bursar.simulation.checkers.repairs import RepairJudge
from bursar.simulation.checkers.volumes import VolumeJudge


class Checkers:
    """All judges. `thorough`: look at the master's own invariants at every step, not only in small clusters."""

    def __init__(self, *, filter_gpu_resources: str = "true", thorough: bool = False) -> None:
        #: How often each rule was looked at: a judge that never sat proves nothing.
        self.verdicts: Counter[str] = Counter()
        self.master = MasterJudge(self.verdicts, filter_gpu_resources=filter_gpu_resources, thorough=thorough)
        self.durability = DurabilityJudge(self.verdicts)
        self.agents = AgentJudge(self.verdicts)
        self.frameworks = FrameworkJudge(self.verdicts)
        self.groups = GroupJudge(self.verdicts)
        self.repairs = RepairJudge(self.verdicts)
        self.executors = ExecutorJudge(self.verdicts)
        self.overuse = OveruseJudge(self.verdicts)
        self.cuts = CutJudge(self.verdicts)
        self.volumes = VolumeJudge(self.verdicts)
