"""CONTRIBUTING.md's steps to add a law, done to a copy of the repository: what it says to run passes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a law")[2]
STEP = re.compile(
    r"^\d+\. (?:`(?P<file>[^`]+)`)?.*?^ +```(?P<kind>\w*)\n(?P<block>.*?)^ +```$", re.MULTILINE | re.DOTALL
)
STEPS = [match.groupdict() for match in STEP.finditer(SECTION)]
COPIED = ("tsl_jax", "tests", "docs", "pyproject.toml", "mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")


def follow(root: Path, step: dict[str, str]) -> None:
    """Add what a step says to its file: a Python block at the end, the lines of a diff behind the line before them."""
    file, block = root / step["file"], textwrap.dedent(step["block"])
    if step["kind"] == "python":
        file.write_text(f"{file.read_text().rstrip()}\n\n\n{block}")
        return
    lines, at = file.read_text().splitlines(), -1
    for line in block.splitlines():
        if line.startswith("+"):
            at += 1
            lines.insert(at, line[1:])
        else:
            places = [k for k, there in enumerate(lines) if there.startswith(line.strip())]
            assert len(places) == 1, f"CONTRIBUTING.md: {step['file']} has {len(places)} lines that begin {line!r}"
            at = places[0]
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "data", "nist", "*.npz", "*.png")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copy(source, root / name)
    for step in STEPS[:-1]:
        follow(root, step)
    return root


def in_tree(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_steps_name_files_that_are_there_and_end_with_what_to_run():
    assert [step["file"] for step in STEPS[:-1]] == [
        "tsl_jax/laws/families.py",
        "tsl_jax/laws/position.py",
        "tsl_jax/laws/__init__.py",
        "tests/test_fitting_fit_law.py",
        "docs/laws.md",
    ]
    assert STEPS[-1]["file"] is None
    assert "pytest" in STEPS[-1]["block"]


def test_what_contributing_says_to_run_passes_with_the_new_law(tree):
    for line in textwrap.dedent(STEPS[-1]["block"]).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "python"
        done = in_tree(tree, *arguments, "-p", "no:cacheprovider")
        assert done.returncode == 0, done.stdout[-3000:]
        assert "1 passed" in done.stdout


def test_a_forgotten_step_fails_what_is_run(tree):
    """Without its row in the documentation."""
    page = tree / "docs" / "laws.md"
    text = page.read_text()
    page.write_text("\n".join(line for line in text.splitlines() if "`STRETCHED`" not in line))
    try:
        done = in_tree(tree, *shlex.split("-m pytest tests/test_docs_site.py -k page_of_laws -p no:cacheprovider"))
    finally:
        page.write_text(text)
    assert done.returncode == 1
    assert "stretched" in done.stdout
