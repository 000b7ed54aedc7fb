"""The lab: each claim of attention's theory as an experiment, its prediction written before, its verdict computed.

    from softlookup import lab
    result = lab.run(lab.claims()["scaling"], quick=True)
    result.verdict(), result.flips, result.rows()
"""

from .claim import Claim, Quantity, claims
from .run import Given, Result, committed, run
from .verdict import Measured, Verdict

__all__ = ["Claim", "Given", "Measured", "Quantity", "Result", "Verdict", "claims", "committed", "run"]
