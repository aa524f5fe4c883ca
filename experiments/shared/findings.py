"""What a study found: tables, figures, claims against the paper's, and sentences; written to its folder of results.

findings.json   claims with their numbers, notes, how and when it was made, and the names of the tables and figures
TABLE.csv       numbers, eight digits; intervals as NAME, NAME_low, NAME_high (tables.py renders them); of many rows
                TABLE.csv.gz
FIGURE.png, .svg, .pdf
"""

from __future__ import annotations

import datetime
import gzip
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from experiments.shared.tables import markdown
from tsl_jax.atomic_write import write_atomically
from tsl_jax.training.provenance import environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS, TABLE_ENDS = 800, (".csv", ".csv.gz")
VERDICTS = ("agrees", "differs", "undecided", "out of reach")


@dataclass(frozen=True)
class Claim:
    """One claim of the paper beside what was found.

    Attributes:
        claim: in a sentence. paper: its figure or finding, with the place. ours: what was found, in a few words.
        verdict: agrees, differs, undecided (the interval says neither), or out of reach at this scale.
        why: where it differs or stays open: what was expected, and why it may be so.
        numbers: rows of a small table that the verdict is of, with intervals; see `tables.rounded`.
    """

    claim: str
    paper: str
    ours: str
    verdict: str
    why: str = ""
    numbers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"findings: a verdict is one of {VERDICTS}, found {self.verdict!r}")


@dataclass(frozen=True)
class Findings:
    """The results of a study.

    Attributes:
        tables: name -> table, the main one first; where a law was fitted, with the columns of solver_comparison.
        figures: name -> matplotlib figure. captions: name -> what a figure shows and how to read it.
        claims: against the paper. notes: sentences, negatives included, in the order to be read.
    """

    tables: Mapping[str, pd.DataFrame]
    claims: Sequence[Claim]
    notes: Sequence[str]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Tables as Markdown, claims and notes, for a terminal and for LOG.md."""
        tables = [markdown(table) for table in self.tables.values()]
        for claim in self.claims:
            words = f"* {claim.claim}: paper {claim.paper}; here {claim.ours}: {claim.verdict}. {claim.why}".rstrip()
            tables += [words, markdown(pd.DataFrame(claim.numbers))] if claim.numbers else [words]
        return "\n\n".join([*tables, "\n".join(f"* {note}" for note in self.notes)])

    def verdict_lines(self, width: int, most: int = 14) -> list[str]:
        """A line a claim, its verdict first, cut to the width, and a line that counts the verdicts."""
        lines = [f"{claim.verdict:<12}  {claim.claim}: {claim.ours}" for claim in self.claims]
        more = [f"and {len(lines) - most} more claims"] if len(lines) > most else []
        cut = [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines[:most]]
        return [*cut, *more, count_verdicts([claim.verdict for claim in self.claims])]


def table_path(folder: Path, name: str) -> Path:
    """The file of a table in a folder of results, compressed or not."""
    plain, compressed = (folder / f"{name}{end}" for end in TABLE_ENDS)
    return compressed if compressed.exists() else plain


def count_verdicts(verdicts: Sequence[str]) -> str:
    """How many claims have each verdict, in words: "2 agree, 1 differs"."""
    number = {verdict: list(verdicts).count(verdict) for verdict in VERDICTS}
    return (
        ", ".join(f"{n} {PLURALS[verdict] if n > 1 else verdict}" for verdict, n in number.items() if n) or "no claims"
    )


PLURALS = {"agrees": "agree", "differs": "differ", "undecided": "undecided", "out of reach": "out of reach"}


def write(findings: Findings, folder: Path, study: Mapping[str, str], seconds: float) -> str:
    """Everything to the folder, figures first, findings.json last.

    Args:
        study: its name, title, date and scale.

    Returns:
        The commit that the findings name, "-dirty" at its end where code or plans were changed; empty: not known.
    """
    from tsl_jax.reporting.plots import save

    machine = environment()
    made = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "analysis_seconds": round(seconds, 1),
        **{name: machine[name] for name in ("machine", "cores", "device", "git_commit")},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in findings.figures.items():
        save(figure, folder / name)
    for name, table in findings.tables.items():
        path, other = (folder / f"{name}{end}" for end in (TABLE_ENDS if len(table) <= MOST_ROWS else TABLE_ENDS[::-1]))
        text = table.to_csv(index=False, float_format="%.8g").encode()
        write_atomically(path, gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
        other.unlink(missing_ok=True)
    facts = {
        **study,
        "command": f"tsl reproduce {study['study']} --scale {study['scale']}",
        "claims": [asdict(claim) for claim in findings.claims],
        "notes": list(findings.notes),
        "tables": list(findings.tables),
        "figures": {name: findings.captions.get(name, "") for name in findings.figures},
        "made": made,
    }
    _write(folder / "findings.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return made["git_commit"] or ""


def _write(path: Path, text: str) -> None:
    write_atomically(path, text)
