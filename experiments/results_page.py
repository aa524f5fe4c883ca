"""The results of all studies on one page, and the paper beside ours: results/index.html, results/paper_and_ours.html.

python experiments/results_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from reproduction import pages

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


def main() -> None:
    try:
        print("\n".join(map(str, pages.write(RESULTS, ORDER))))
    except ValueError as error:
        sys.stderr.write(f"results_page: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
