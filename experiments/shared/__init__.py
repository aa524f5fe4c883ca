"""What the experiments share: a study (its runs, its cost, its analysis), its findings, and the pages made of them."""

from experiments.shared.findings import Claim, Findings
from experiments.shared.study import BASE_RUNS, Runs, Study

__all__ = ["BASE_RUNS", "Claim", "Findings", "Runs", "Study"]
