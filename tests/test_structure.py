"""The shape of the library, read from its syntax trees: sizes, maps of packages, and names with one meaning each."""

import ast
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

import tsl_jax as tsl

LIBRARY = Path(tsl.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))
PACKAGES = [file for file in FILES if file.name == "__init__.py" and file.parent != LIBRARY]
TREES = {file: ast.parse(file.read_text()) for file in FILES}


def test_files_are_few_and_none_is_long():
    assert len(FILES) <= 245  # 200, the readers of logs in importers/, a file for each kind of format, and selection/
    lengths = {str(file.relative_to(LIBRARY)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    assert {name for name, length in lengths.items() if length < 50 and not name.endswith("__init__.py")} == set()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda file: str(file.parent.relative_to(LIBRARY)))
def test_a_package_names_each_of_its_modules(package: Path):
    modules = {file.stem for file in package.parent.glob("*.py") if file != package}
    modules |= {folder.parent.name for folder in package.parent.glob("*/__init__.py")}
    text = ast.get_docstring(TREES[package]) or ""
    assert {name for name in modules if name not in text} == set()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda file: str(file.parent.relative_to(LIBRARY)))
def test_no_function_shadows_a_module(package: Path):
    modules = {file.stem for file in package.parent.glob("*.py")}
    imported = [node for node in TREES[package].body if isinstance(node, ast.ImportFrom)]
    module = ".".join(("tsl_jax", *package.parent.relative_to(LIBRARY).parts))
    exported = {a.asname or a.name for node in imported if node.module != module for a in node.names}
    assert modules & exported == set()


def test_a_name_of_a_public_class_has_one_meaning():
    of_architectures = {"Attention", "Block"}  # parts of the decoder skeleton: every architecture brings its own
    places = defaultdict(list)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in of_architectures:
                places[node.name].append(str(file.relative_to(LIBRARY)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_the_public_names_are_those_that_type_checkers_see():
    guard = next(node for node in TREES[LIBRARY / "__init__.py"].body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in guard.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == tsl._MODULE_OF
    for name in tsl.__all__:
        assert getattr(tsl, name) is not None
        import_module(tsl._MODULE_OF[name])
