"""Small programs, one for each pattern that a hand-written program may have, with log p(x) by other means.

entry      `Entry`, `Built`, and the list `ZOO`
integrals  quadrature and forward recursions, which share no code with the library
vaes, positions, series, plates, supports   the programs
"""

from zoo import plates, positions, series, supports, vaes
from zoo.entry import ZOO, Built, Entry

__all__ = ["ZOO", "Built", "Entry", "plates", "positions", "series", "supports", "vaes"]
