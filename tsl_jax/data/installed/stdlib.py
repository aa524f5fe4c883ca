"""Text that every Python has: the source of its own standard library.

Three domains are made of it. `code` is each file without docstrings and comments; `docs` is the docstrings of each
file, and the topics of `pydoc`, a topic a document; `tests` is the library's own tests, where they are installed,
treated as code. `code` and `docs` leave out tests, what is installed beside the library, and generated tables
(encodings, build configuration); the few files that do not parse are left out everywhere.

Docstrings are found with `ast`. Comments are found with a regular expression over string literals and `#` to the end
of a line: what is not inside a literal is a comment; that finds what `tokenize` finds, eight times faster.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tsl_jax.data.documents import Document

LEFT_OUT = frozenset(
    ("__pycache__", "dist-packages", "encodings", "ensurepip", "idle_test", "lib-dynload", "pydoc_data")
) | frozenset(("site-packages", "test", "tests"))
CODE, DOCS = "code", "docs"
TOPICS = "pydoc_data/topics.py"

_LITERAL_OR_COMMENT = re.compile(
    rb'"""(?:[^\\]|\\.)*?"""'
    rb"|'''(?:[^\\]|\\.)*?'''"
    rb'|"(?:[^"\\\n]|\\.)*"'
    rb"|'(?:[^'\\\n]|\\.)*'"
    rb"|(?P<comment>\#[^\n]*)",
    re.DOTALL,
)
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")


class _Docstring(NamedTuple):
    start: int  # byte offsets in the file
    end: int
    alone: bool  # the only statement of its block
    text: str


def folder() -> Path:
    """Where the standard library of the running interpreter lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def files(root: Path) -> list[str]:
    """Paths of the source files that are used, relative to `root` with forward slashes, sorted."""
    paths = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        here = Path(place).relative_to(root)
        paths += [(here / n).as_posix() for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata")]
    if (root / TOPICS).is_file():
        paths.append(TOPICS)
    return sorted(paths)


def test_files(root: Path) -> list[str]:
    """Paths of the library's tests, relative to `root` with forward slashes, sorted; empty where there are none."""
    return sorted(file.relative_to(root).as_posix() for file in (root / "test").rglob("*.py"))


def tests(root: Path) -> Iterator[Document]:
    """A document a file of tests, without docstrings and comments."""
    with warnings.catch_warnings(action="ignore"):
        for name in test_files(root):
            result: dict[str, list[Document]] = {CODE: [], DOCS: []}
            _add(result, name, (root / name).read_bytes())
            yield from result[CODE]


def documents(root: Path) -> dict[str, list[Document]]:
    """The documents of `code` and `docs`, in the order of their files.

    Raises:
        FileNotFoundError: if there is no source, as in some embedded Pythons.
    """
    result: dict[str, list[Document]] = {CODE: [], DOCS: []}
    with warnings.catch_warnings(action="ignore"):  # some Pythons warn of their own files
        for name in files(root):
            if name != TOPICS:
                _add(result, name, (root / name).read_bytes())
    if not result[CODE]:
        raise FileNotFoundError(f"data: {root} holds no source of the standard library; name your own text with --text")
    if (root / TOPICS).is_file():
        topics = _topics((root / TOPICS).read_text("utf-8"))
        result[DOCS] += [Document(f"topic {name}", text) for name, text in sorted(topics.items())]
    return result


def _add(result: dict[str, list[Document]], name: str, source: bytes) -> None:
    """Append what a file brings to each domain."""
    try:
        tree = ast.parse(source)
        source.decode("utf-8")
    except (SyntaxError, ValueError):
        return
    docstrings = _docstrings(tree, source)
    code = _strip(source, docstrings).decode("utf-8")
    docs = "\n\n".join(filter(None, (inspect.cleandoc(docstring.text) for docstring in docstrings)))
    result[CODE] += [Document(name, code)] if code.strip() else []
    result[DOCS] += [Document(name, docs + "\n")] if docs else []


def _docstrings(tree: ast.Module, source: bytes) -> list[_Docstring]:
    """The docstrings of a file in the order they stand in it."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    docstrings = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for block in _BLOCKS:
            waiting.extend(getattr(node, block, None) or ())
        value = _docstring_of(node)
        if value is not None and value.end_lineno and value.end_col_offset is not None:
            start = lines[value.lineno - 1] + value.col_offset
            end = lines[value.end_lineno - 1] + value.end_col_offset
            docstrings.append(_Docstring(start, end, len(node.body) == 1, str(value.value)))  # pyright: ignore
    return sorted(docstrings)


def _docstring_of(node: ast.AST) -> ast.Constant | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return None
    first = node.body[0]
    value = first.value if isinstance(first, ast.Expr) else None
    return value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _strip(source: bytes, docstrings: list[_Docstring]) -> bytes:
    """A file without docstrings, comments and the empty lines they leave."""
    pieces = []
    end = 0
    for docstring in docstrings:
        pieces += [source[end : docstring.start], b"pass" if docstring.alone else b""]
        end = docstring.end
    text = b"".join([*pieces, source[end:]])
    text = _LITERAL_OR_COMMENT.sub(lambda match: b"" if match["comment"] else match[0], text)
    text = re.sub(rb"[ \t\r\f]+\n", b"\n", text)
    return re.sub(rb"\n{3,}", b"\n\n", text).strip(b"\n") + b"\n"


def _topics(source: str) -> dict[str, str]:
    """The dictionary that `pydoc_data/topics.py` assigns, read without running it."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}
