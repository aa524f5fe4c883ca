"""The front door: README of one page, links that lead somewhere, every page in the site's menu, one version."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import tsl_jax as tsl
from tsl_jax.cli import VERBS
from tsl_jax.commands import options

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
LINKED = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *PAGES]
LINK = re.compile(r"\]\((?!\w+:)([^)\s]*)\)")


# The commands that pages show in blocks; those of docs/cluster.md, with variables of a shell, have a test of their own.
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for file in LINKED
        if file.name != "cluster.md"
        for block in re.findall(r"```(?:bash)?\n(.*?)```", file.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.startswith("tsl ") and not line.startswith("tsl --")  # of a verb
    }
)


class SiteLoader(yaml.SafeLoader):
    """YAML in which mkdocs may name Python objects: they are passed over."""


SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(), SiteLoader)


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of(entry)]


def anchor(heading: str) -> str:
    """As GitHub makes it, and the site: lower case, no punctuation, a dash for each space."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower()).replace(" ", "-")


def headings(file: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    return {anchor(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120


def test_every_page_is_in_the_menu_once():
    menu = pages_of(SITE["nav"])
    assert len(menu) == len(set(menu))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES} <= set(menu)


def test_the_menu_names_files_that_exist():
    for page in pages_of(SITE["nav"]):
        sources = (ROOT / "docs" / page, ROOT / page, (ROOT / page).with_suffix(".ipynb"))
        assert any(source.is_file() for source in sources), page


@pytest.mark.parametrize("file", LINKED, ids=lambda file: file.name)
def test_relative_links_lead_to_files_and_headings(file: Path):
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        path, _, fragment = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if fragment:
            assert fragment in headings(target), link


def test_the_changelog_names_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == tsl.__version__
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_page_of_laws_has_each_law_with_a_name():
    text = (ROOT / "docs" / "laws.md").read_text()
    for name, law in tsl.laws.BY_NAME.items():
        assert f"`{name}` | `{law.formula}`" in text, name


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    assert {name for name in tsl.__all__ if f"tsl_jax.{name}" not in text} == set()


def test_the_site_takes_nothing_from_other_hosts():
    assert SITE["theme"]["font"] is False
    assert SITE["strict"] is True


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_that_pages_show_are_commands(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = (ROOT / "docs" / "weights.md").read_text()
    (tmp_path / "my_rules.py").write_text(weights.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    _, verb, *arguments = shlex.split(line)
    module = import_module(f"tsl_jax.commands.{VERBS[verb][0]}")
    assert options.parse(getattr(module, f"{verb.title()}Command"), verb, arguments) is not None


def test_tutorials_are_numbered_without_a_gap_and_stored_with_the_outputs_of_one_run() -> None:
    numbered = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if path.name[0].isdigit())
    assert [path.name[:3] for path in numbered] == [f"{k:02}_" for k in range(1, len(numbered) + 1)]
    for path in numbered:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path.name
        kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
        assert kinds <= {"stream", "execute_result", "display_data"}, f"{path.name}: an error is stored"
        for cell in cells:
            last = cell["source"][-1]
            assert cell["outputs"] or "print(" not in last, f"{path.name}: {last} has no output"
        assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) or (
            path.name in ("04_position_weighting.ipynb", "05_scaling.ipynb")
        ), path.name
