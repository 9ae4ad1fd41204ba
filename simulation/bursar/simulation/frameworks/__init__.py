"""Frameworks that speak the contract by hand, well or badly; those written with the SDK are in `sessions`.

Whatever they do must harm nobody but themselves. `raw` is what they have in common, a module for each kind beside it.
"""

from bursar.simulation.frameworks.feeding import Feeding
from bursar.simulation.frameworks.flapping import Flapping
from bursar.simulation.frameworks.ganging import Ganging
from bursar.simulation.frameworks.greedy import Greedy, Hog, Reserving
from bursar.simulation.frameworks.keeping import Keeping
from bursar.simulation.frameworks.lying import Liar
from bursar.simulation.frameworks.raw import GIB, ROLES, RawFramework
from bursar.simulation.frameworks.silent import Silent

__all__ = [
    "GIB",
    "ROLES",
    "Feeding",
    "Flapping",
    "Ganging",
    "Greedy",
    "Hog",
    "Keeping",
    "Liar",
    "RawFramework",
    "Reserving",
    "Silent",
]
