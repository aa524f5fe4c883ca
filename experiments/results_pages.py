"""The pages of all results, made of the findings of every study: no number or verdict on them is typed in by hand.

    python -m experiments.results_pages       writes results/index.html and results/paper_and_ours.html

Figures are the PNG files beside the findings of each study, named relative to results/.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from experiments.shared.tables import cells
from tsl_jax.reporting.markup import Html, folded, paragraph, section, table

RESULTS = Path(__file__).parent / "results"
ORDER = (
    "position_law",
    "temporal_fit",
    "temporal_prediction",
    "learning_dynamics",
    "position_weighting",
    "mid_run_changes",
    "selection_cost",
)
ROWS = 40  # of a table that is shown whole
PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src 'self'">
<title>$title</title>
<style>
$style
figure.print { margin: 1.2rem 0; }
figure.print img { max-width: 100%; height: auto; background: #fff; padding: 8px; border-radius: 6px; }
.verdict { font-weight: 600; white-space: nowrap; }
table.prose td, table.prose th { white-space: normal; text-align: left; vertical-align: top; padding-right: 0.9rem; }
table.prose { font-size: 0.9rem; }
</style>
</head>
<body>
<main>
<header><h1>$title</h1>
$head
</header>
$body
</main>
</body>
</html>
"""
)
# What is known of the paper's set-up, and what had to be filled in: (item, the paper, here, kind).
SETUP = (
    ("The law over positions", "L(i) = a0/(1 + a1 i) + a2", "the same", "known"),
    ("The laws over tokens", "logarithmic (a0), hyperbolic (a1), piecewise with a cosine (a2), in words",
     "a0 log, a1 reciprocal, a2 reciprocal then cosine; value and slope continuous at N_sep", "reconstructed"),
    ("Fitting", "nonlinear least squares",
     "variable projection, the global optimum; jaxopt's Levenberg-Marquardt beside it in every table", "different"),
    ("Data", "the Pile, with an in-distribution and an out-of-distribution validation set",
     "9.9 M tokens of text that comes with installed software; code or scripture out of distribution", "different"),
    ("Models", "LLaMA of 9.8M to 6.7B parameters, GPT-NeoX, mixtures of experts",
     "the same architectures and an LSTM of 25 k to 5 M parameters; the paper's sizes are in each plans/paper.yaml",
     "different"),
    ("Context and schedule", "not stated in what was at hand",
     "64 to 256 positions; cosine, WSD and constant; 1,024 and cosine at the paper's scale", "reconstructed"),
    ("Prediction", "from 10 to 40 % of the tokens, mean squared error against power, reciprocal and logarithmic laws",
     "the same, and final errors, intervals, schedule-aware laws, ten seeds, three schedules", "known"),
    ("Position weighting", "head, middle or tail weighed down",
     "the same by .1, and boosted, linear and adaptive weights, a learning-rate sweep for each arm", "reconstructed"),
)  # fmt: skip


@dataclass(frozen=True)
class StudyResults:
    """The findings of one study at one scale, as its folder has them."""

    folder: Path
    findings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.findings['study']}-{self.findings['scale']}"


def studies(results: Path) -> list[StudyResults]:
    """Every study that has findings beside the folder of the pages, in ORDER, cpu before gpu before paper."""
    paths = results.parent.glob("*/results/*/findings.json")
    unsorted = [StudyResults(path.parent, json.loads(path.read_text())) for path in paths]
    scales, place = ("cpu", "gpu", "paper"), {name: k for k, name in enumerate(ORDER)}

    def rank(study: StudyResults) -> tuple[int, int]:
        return place.get(study.findings["study"], len(place)), scales.index(study.findings["scale"])

    return sorted(unsorted, key=rank)


def write(results: Path) -> list[Path]:
    """Both pages; their paths.

    Raises:
        ValueError: where no study has findings yet.
    """
    finished = studies(results)
    if not finished:
        raise ValueError(f"results: no {results.parent}/NAME/results/SCALE/findings.json; run tsl reproduce NAME first")
    pages = {"index.html": index(finished, results), "paper_and_ours.html": paper_and_ours(finished)}
    for name, page in pages.items():
        (results / name).write_text(page)
    return [results / name for name in pages]


def index(finished: Sequence[StudyResults], results: Path) -> str:
    """Every claim with its verdict first, then a section a study."""
    rows = [
        (
            Html(f'<a href="#{study.name}">{escape(study.findings["study"].replace("_", " "))}</a>'),
            claim["claim"],
            claim["ours"],
            _verdict(claim),
        )
        for study in finished
        for claim in study.findings["claims"]
    ]
    head = paragraph(
        Html(
            "Reproductions of <i>Temporal Scaling Law for Large Language Models</i> (Xiong et al., arXiv 2404.17785) "
            "at the scale of two CPU cores, negative results included. What is known of the paper and what had to be "
            'reconstructed: <a href="paper_and_ours.html">paper and ours</a>.'
        )
    )
    summary = section("claims", "What came out", table(("study", "claim", "here", "verdict"), rows, kind="prose"))
    return _page("Loss dynamics, reproduced", head, [summary, *(_section(study, results) for study in finished)])


def paper_and_ours(finished: Sequence[StudyResults]) -> str:
    """Known, reconstructed, different; and claim beside claim."""
    head = paragraph(
        "No public code of the paper exists, and its text was not at hand in full: forms marked reconstructed follow "
        "its words, and no identity of numbers with it is claimed."
    )
    claims = [
        (claim["claim"], claim["paper"], claim["ours"], _verdict(claim), claim["why"] or "")
        for study in finished
        for claim in study.findings["claims"]
    ]
    columns = ("claim", "paper", "here", "verdict", "why it may differ")
    body = [
        section("setup", "The set-up", table(("", "paper", "here", ""), SETUP, kind="prose")),
        section("claims", "Claims", table(columns, claims, kind="prose")),
    ]
    return _page("Paper and ours", head, body)


def _section(study: StudyResults, results: Path) -> str:
    """Facts, the main table, notes, figures, and the other tables folded."""
    findings, made = study.findings, study.findings["made"]
    facts = (
        f"{findings['command']} · {made['date']} · {made['machine']}, {made['cores']} cores, Python {made['python']} · "
        f"plan of {findings['decided']} · commit {(made['git_commit'] or 'unknown')[:12]}"
    )
    notes = "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in findings["notes"]) + "</ul>"
    figures = []
    for name, caption in findings["figures"].items():
        source = Path(os.path.relpath(study.folder / f"{name}.png", results)).as_posix()
        words = f"{name.replace('_', ' ')}: {caption}"
        image = f'<img src="{escape(source)}" alt="{escape(words)}" loading="lazy">'
        figures.append(f'<figure class="print">{image}<figcaption>{escape(words)}</figcaption></figure>')
    main, *rest = findings["tables"]
    more = [folded(f"table: {name.replace('_', ' ')}", _table(study, name)) for name in rest]
    return section(study.name, findings["title"], paragraph(facts, "note"), _table(study, main), notes, *figures, *more)


def _table(study: StudyResults, name: str) -> str:
    rows = pd.read_csv(study.folder / f"{name}.csv")
    head, text = cells(rows.head(ROWS))
    left = f" The first {ROWS} of {len(rows)} rows; all in {name}.csv." if len(rows) > ROWS else ""
    return table(head, text, name.replace("_", " ").capitalize() + "." + left)


def _verdict(claim: dict[str, Any]) -> Html:
    return Html(f'<span class="verdict">{escape(claim["verdict"])}</span>')


def _page(title: str, head: str, body: Sequence[str]) -> str:
    style = files("tsl_jax.reporting").joinpath("assets", "page.css").read_text(encoding="utf-8")
    return PAGE.substitute(title=escape(title), style=style, head=head, body="".join(body))


def main() -> None:
    try:
        print("\n".join(map(str, write(RESULTS))))
    except ValueError as error:
        sys.stderr.write(f"results_pages: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
