"""Run the tutorials and store their outputs: make notebooks, after a change of a notebook or of what it shows.

What differs between two runs or machines is left out: times, versions, paths. A notebook in WITHOUT is stored without
outputs: it needs what is not part of this repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parents[1] / "notebooks"
WITHOUT = ("pythia.ipynb",)


def main(names: list[str]) -> None:
    """Execute the notebooks named, or all."""
    for file in sorted(HERE.glob("*.ipynb")):
        if file.name in WITHOUT or (names and file.name not in names):
            continue
        print(file.name, flush=True)
        notebook = nbformat.read(file, as_version=4)
        NotebookClient(
            notebook, timeout=900, record_timing=False, resources={"metadata": {"path": str(HERE)}}
        ).execute()
        notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        for cell in notebook.cells:
            cell.metadata = {}
        nbformat.write(notebook, file)


if __name__ == "__main__":
    main(sys.argv[1:])
