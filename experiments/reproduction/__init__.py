"""What the experiments share: a study (its runs, its cost, its analysis), its findings, and the pages made of them."""

from reproduction.findings import Claim, Findings
from reproduction.study import Runs, Study

__all__ = ["Claim", "Findings", "Runs", "Study"]
