"""mkdocs hooks: pages of the site that lie outside docs/, under the paths that they have in the repository.

Notebooks become pages of their text and code, without running anything. Links are written as they hold in the
repository (docs/x.md to ../experiments/LOG.md) and are rewritten to where these files lie in the site.
"""

from __future__ import annotations

import json
import os
import re
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "experiments/LOG.md", "experiments/README.md")
ASSETS = ("LICENSE", "notebooks/*.ipynb", "experiments/results/*.html", "experiments/*/results/cpu/*.png")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and what their links lead to."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    for file in sorted(ROOT.glob("notebooks/*.ipynb")):
        name = file.relative_to(ROOT).with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=notebook_page(file)))
    for pattern in ASSETS:
        for file in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the repository as links of the site."""
    here = PurePosixPath(page.file.src_uri)
    in_docs = page.file.generated_by is None
    base = PurePosixPath("docs") / here.parent if in_docs else here.parent

    def rewritten(match: re.Match[str]) -> str:
        target = os.path.normpath(base / match[1])
        if target.startswith("notebooks/") and target.endswith(".ipynb"):
            target = target.removesuffix(".ipynb") + ".md"
        target = target.removeprefix("docs/")
        return os.path.relpath(target, here.parent)

    return LINK.sub(rewritten, markdown)


def notebook_page(file: Path) -> str:
    """Text and code of a notebook as Markdown, with the outputs that are stored: pictures, else text in blocks."""
    parts = []
    for cell in json.loads(file.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            picture = "".join(data.get("image/png", "")).replace("\n", "")
            text = "".join(output.get("text") or data.get("text/plain") or [])
            shown = f'<img src="data:image/png;base64,{picture}" alt="{escape(text)}">'
            parts.append(shown if picture else f"```text\n{text.rstrip()}\n```")
    parts.append(f'<a href="../{file.name}" download>This page as a notebook</a>')
    return "\n\n".join(parts) + "\n"
