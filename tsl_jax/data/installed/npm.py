"""Text in npm packages, where `npm install --prefix FOLDER` or `npm pack` and `tar` have put them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tsl_jax.data.documents import Document, first_occurrences

PASSAGE = 60  # characters; what is shorter in the factbook are names and numbers
_PLACES = ("package.json", "*/package.json", "*/package/package.json")
_TAGGED = re.compile(r"(\S+)/\S+")
_SPACE = re.compile(r" +([,.;:?!)]|''|n't|'\w)|([(]|``) +")


def files(packages: Path | None, name: str, pattern: str) -> list[Path]:
    """The files of a package in the folder that the user names."""
    root = _package_folder(packages, name) if packages else None
    return sorted(file for file in root.glob(pattern) if file.is_file()) if root else []


def _package_folder(packages: Path, name: str) -> Path | None:
    installed = packages / "node_modules" / name
    if (installed / "package.json").is_file():
        return installed
    for pattern in _PLACES:
        for file in sorted(packages.glob(pattern)):
            with suppress(ValueError, AttributeError):  # not JSON, or no mapping
                if str(json.loads(file.read_bytes()).get("name")) == name:
                    return file.parent
    return None


def whole(files: list[Path]) -> Iterator[Document]:
    """A document a file: a speech, a chapter."""
    yield from (Document(file.name, file.read_text("utf-8", "replace")) for file in files)


def brown(files: list[Path]) -> Iterator[Document]:
    """A document a sample of about 2,000 words, without the tags of its words."""
    for file in files:
        words = _TAGGED.sub(r"\1", file.read_text("utf-8", "replace"))
        lines = (" ".join(line.split()) for line in words.splitlines())
        text = _SPACE.sub(r"\1\2", "\n".join(filter(None, lines)))
        yield Document(file.name, text.replace("``", '"').replace("''", '"') + "\n")


def factbook(files: list[Path]) -> Iterator[Document]:
    """A document a country: its passages, each of them once in all; the rest is one form filled in 262 times."""
    is_new = first_occurrences()
    for file in files:
        passages = (text for text in _strings(json.loads(file.read_bytes())) if len(text) >= PASSAGE)
        text = "\n\n".join(filter(is_new, passages))
        if text:
            yield Document(file.name, text + "\n")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    else:
        yield str(value).strip()
