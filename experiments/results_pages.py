"""The pages of all results, made of the findings of every study: no number or verdict on them is typed in by hand.

    python -m experiments.results_pages       writes results/index.html and results/paper_and_ours.html

`tsl reproduce NAME` does so too. Figures are the PNG files beside the findings of each study, named relative to
results/; those of MAIN come first.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from experiments.shared.findings import count_verdicts, table_path
from experiments.shared.tables import cells, is_number
from tsl_jax.atomic_write import write_atomically
from tsl_jax.reporting.markup import Html, folded, paragraph, section, table

RESULTS = Path(__file__).parent / "results"
ORDER = (
    "position_law",
    "temporal_fit",
    "temporal_prediction",
    "by_position",
    "learning_dynamics",
    "position_weighting",
    "mid_run_changes",
    "selection_cost",
    "mixture_selection",
    "kaplan",
)
# What comes first: (study, figure). The first two are in the paper's form; its numbers of figures were not at hand.
MAIN = (
    ("temporal_prediction", "predictions"),
    ("position_law", "sizes-id"),
    ("temporal_fit", "parameters"),
    ("learning_dynamics", "rates_id"),
    ("position_weighting", "overall"),
    ("mixture_selection", "regret"),
    ("kaplan", "one_at_a_time"),
)
ROWS = 40  # of a table that is shown whole
PIXELS = 0.6  # of the page for one of a figure, which has 200 in an inch
FIGURES = 2  # of a study that are shown unfolded
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
figure.print a { display: block; }
.verdict { font-weight: 600; white-space: nowrap; }
.verdict.differs { color: var(--red); }
.verdict.agrees { color: var(--green); }
table.prose td, table.prose th { white-space: normal; text-align: left; vertical-align: top; padding-right: 0.9rem; }
table.prose { font-size: 0.9rem; width: 100%; }
table.claims { table-layout: fixed; }
.claims th:first-child { width: 6.2rem; }
table.prose :is(th, td):first-child { padding-right: 0.9rem; }
table.numbers td:has(.text), table.numbers th:has(.text) { text-align: left; }
table.numbers thead th { white-space: normal; max-width: 9rem; min-width: 3.5rem; }
.claim { margin: 1.4rem 0; }
.claim p { margin: 0 0 0.35rem; }
nav ol { margin: 0; padding-left: 1.4rem; }
nav li { margin: 0 0 0.35rem; }
nav .note { display: block; }
a { color: var(--blue); }
.label { display: none; color: var(--muted); }
@media (max-width: 34rem) {
  table.prose { font-size: 0.8rem; min-width: 0; }
  table.prose :is(th, td) { padding-left: 0; overflow-wrap: anywhere; hyphens: auto; }
  table.beside { display: block; }
  table.beside :is(tbody, tr, td, th) { display: block; border: 0; padding: 0; }
  table.beside thead { display: none; }
  table.beside tr { border-bottom: 1px solid var(--grid); padding: 0.6rem 0; }
  table.beside tbody th { font-weight: 600; }
  .label { display: inline; }
  .claims th:first-child { width: 5.4rem; }
}
}
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
    ("Kaplan et al.: models and text", "768 to 1.5e9 parameters, context 1,024, vocabulary 50,257, WebText2",
     "768 to 786 k of the same shapes, context 128, vocabulary 512, documentation and code", "different"),
    ("Kaplan et al.: training", "Adam, 2^19 tokens a step, 3,000 steps of warm-up, a cosine to zero; dropout",
     "Adam, 2,048 tokens, 40 steps, a constant rate by width, early stopping without dropout", "different"),
)  # fmt: skip

SCALES = {"gpu": "on a GPU", "paper": "the paper's sizes", "paper-small": "the paper's smallest size"}


@dataclass(frozen=True)
class StudyResults:
    """The findings of one study at one scale, as its folder has them."""

    folder: Path
    findings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.findings['study']}-{self.findings['scale']}"

    @property
    def title(self) -> str:
        """The question of the study, and the scale where it is not that of two cores."""
        scale = self.findings["scale"]
        return self.findings["title"] + ("" if scale == "cpu" else f" ({SCALES[scale]})")


def studies(results: Path) -> list[StudyResults]:
    """Every study that has findings beside the folder of the pages, in ORDER, cpu before gpu before paper."""
    paths = results.parent.glob("*/results/*/findings.json")
    unsorted = [StudyResults(path.parent, json.loads(path.read_text())) for path in paths]
    scales, place = ("cpu", "gpu", "paper", "paper-small"), {name: k for k, name in enumerate(ORDER)}

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
    results.mkdir(parents=True, exist_ok=True)
    pages = {"index.html": index(finished, results), "paper_and_ours.html": paper_and_ours(finished)}
    for name, page in pages.items():
        write_atomically(results / name, page)
    return [results / name for name in pages]


def index(finished: Sequence[StudyResults], results: Path) -> str:
    """Contents, the main figures, every claim with its verdict first, then a section a study."""
    rows = [
        (
            _verdict(claim),
            Html(f'{escape(claim["claim"])} <a href="#{study.name}">numbers</a>'),
            claim["ours"],
        )
        for study in finished
        for claim in study.findings["claims"]
    ]
    head = paragraph(
        Html(
            "Reproductions of <i>Temporal Scaling Law for Large Language Models</i> (Xiong et al., arXiv 2404.17785) "
            "and of <i>Scaling Laws for Neural Language Models</i> (Kaplan et al., arXiv 2001.08361) "
            "at the scale of two CPU cores, negative results included. What is known of the papers and what had to be "
            'reconstructed: <a href="paper_and_ours.html">paper and ours</a>.'
        )
    )
    by_name = {study.findings["study"]: study for study in reversed(finished)}  # the smallest scale of each
    main = [
        _figure(by_name[name], figure, results)
        for name, figure in MAIN
        if name in by_name and figure in by_name[name].findings["figures"]
    ]
    sections = [section("figures", "Main figures", *main)] if main else []
    sections += [section("claims", "What came out", table(("verdict", "claim", "here"), rows, kind="prose claims"))]
    sections += [_section(study, results) for study in finished]
    return _page("Loss dynamics, reproduced", head + _contents(finished, bool(main)), sections)


def _contents(finished: Sequence[StudyResults], figures: bool) -> str:
    """Links to everything on the page; behind each study how many of its claims have which verdict."""
    links = ['<li><a href="#figures">Main figures</a></li>'] if figures else []
    total = [claim["verdict"] for study in finished for claim in study.findings["claims"]]
    links += [
        f'<li><a href="#claims">What came out</a> <span class="note">all claims: {count_verdicts(total)}</span></li>'
    ]
    for study in finished:
        counted = count_verdicts([claim["verdict"] for claim in study.findings["claims"]])
        title = escape(study.title)
        links.append(f'<li><a href="#{study.name}">{title}</a> <span class="note">{counted}</span></li>')
    return f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>'


def paper_and_ours(finished: Sequence[StudyResults]) -> str:
    """Known, reconstructed, different; and claim beside claim."""
    head = paragraph(
        "No public code of the paper exists, and its text was not at hand in full: forms marked reconstructed follow "
        "its words, and no identity of numbers with it is claimed."
    )
    claims = [
        (_verdict(claim), claim["claim"], claim["paper"], claim["ours"], claim["why"] or "–")
        for study in finished
        for claim in study.findings["claims"]
    ]
    columns = ("verdict", "claim", "paper", "here", "why it may differ")
    body = [
        section("setup", "The set-up", _beside(("item", "paper", "here", "what it is"), SETUP)),
        section("claims", "Claims", _beside(columns, claims)),
    ]
    return _page("Paper and ours", head, body)


def _beside(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of sentences, which on a phone is a block a row with the names of its columns."""
    named = [
        [first, *(_labelled(name, cell) for name, cell in zip(columns[1:], rest, strict=True))] for first, *rest in rows
    ]
    return table(columns, named, kind="prose beside")


def _labelled(name: str, cell: Any) -> Html:
    return Html(f'<span class="label">{escape(name)}: </span>{escape(str(cell))}')


def _section(study: StudyResults, results: Path) -> str:
    """Question, facts, figures, claims with their numbers, the main table, notes, and the other tables folded."""
    findings, made = study.findings, study.findings["made"]
    facts = (
        f"{findings['command']} · {made['date']} · {made['machine']}, {made['cores']} cores, Python {made['python']} · "
        f"plan of {findings['decided']} · commit {(made['git_commit'] or 'unknown')[:12]}"
    )
    figures = [_figure(study, name, results) for name in findings["figures"]]
    more = f"{len(figures) - FIGURES} more figures"
    parts = [paragraph(facts, "note"), *figures[:FIGURES]]
    parts += [folded(more, "".join(figures[FIGURES:]))] if len(figures) > FIGURES else []
    parts += ["<h3>Claims</h3>", *(_claim(claim) for claim in findings["claims"])]
    main, *rest = findings["tables"]
    parts += ["<h3>Results</h3>", _table(study, main), *(paragraph(note) for note in findings["notes"])]
    parts += [folded(f"table: {name.replace('_', ' ')}", _table(study, name)) for name in rest]
    return section(study.name, study.title, *parts)


def _claim(claim: dict[str, Any]) -> str:
    """A claim with its verdict, the paper's finding and ours, and the numbers that the verdict is of."""
    words = f"Paper: {claim['paper']}. Here: {claim['ours']}. {claim['why']}"
    numbers = _numbers(pd.DataFrame(claim["numbers"])) if claim.get("numbers") else ""
    title = paragraph(Html(f"{_verdict(claim).text} · {escape(claim['claim'])}"))
    return f'<div class="claim">{title}{paragraph(words.strip(), "note")}{numbers}</div>'


def _figure(study: StudyResults, name: str, results: Path) -> str:
    source = escape(Path(os.path.relpath(study.folder / f"{name}.png", results)).as_posix())
    caption = escape(study.findings["figures"][name])
    width, height = struct.unpack(">II", (study.folder / f"{name}.png").read_bytes()[16:24])  # of the PNG's header
    size = f'width="{width * PIXELS:.0f}" height="{height * PIXELS:.0f}"'
    image = f'<a href="{source}"><img src="{source}" alt="{caption}" {size} loading="lazy"></a>'
    return f'<figure class="print">{image}<figcaption>{caption}</figcaption></figure>'


def _table(study: StudyResults, name: str) -> str:
    path = table_path(study.folder, name)
    rows = pd.read_csv(path)
    left = f" The first {ROWS} of {len(rows)} rows; all in {path.name}." if len(rows) > ROWS else ""
    return _numbers(rows.head(ROWS), name.replace("_", " ").capitalize() + "." + left)


def _numbers(rows: pd.DataFrame, caption: str = "") -> str:
    """A table of numbers, aligned on the right; words on the left."""
    head, body = cells(rows)
    words = [not all(is_number(row[k]) for row in body) for k in range(len(head))]

    def aligned(row: Sequence[str]) -> list[Any]:
        return [Html(f'<span class="text">{escape(cell)}</span>') if left else cell
                for cell, left in zip(row, words, strict=True)]  # fmt: skip

    return table(aligned(head), [aligned(row) for row in body], caption, kind="numbers")


def _verdict(claim: dict[str, Any]) -> Html:
    verdict = claim["verdict"]
    return Html(f'<span class="verdict {verdict.split()[0]}">{escape(verdict)}</span>')


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
