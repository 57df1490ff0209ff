"""`dialoom audit`: training data looked at before training: tokens, masks, and what simulators get wrong.

Changes nothing, trains nothing; a model takes part as a judge only, and only if it is named.
"""

from dialoom.audit.findings import CHECKS, Finding, Tally
from dialoom.audit.look import Report, audit, look

__all__ = ["CHECKS", "Finding", "Report", "Tally", "audit", "look"]
