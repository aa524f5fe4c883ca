"""The choice among candidates: mixtures of data, or whatever runs differ by, from runs and tables of them.

mixture_columns: which columns are a mixture, and whether its shares are shares; how often a domain is read
candidates_table: tables, joined where need be, and runs become rows
candidate_runs: rows become runs: curves, ends, and which runs are of one candidate
race: running candidates against each other: where each ends, and which may be stopped
evidence: the end of every run, known or forecast, as the regression reads it
mixture_regression: the loss by mixture and size, with uncertainty
cross_validation: how good that was on the runs themselves, beside simpler ways
next_candidate: which mixture to run next
choice: all of it joined into a choice; consequences: what follows from it, and its scores
"""

from tsl_jax.selection.candidate_runs import Runs
from tsl_jax.selection.candidates_table import read_candidates
from tsl_jax.selection.choice import Choice, choose

__all__ = ["Choice", "Runs", "choose", "read_candidates"]
