"""Text in Debian packages, where they are installed (/usr/share) or unpacked (`dpkg-deb -x PACKAGE.deb FOLDER`)."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from tsl_jax.data.documents import Document

SYSTEM = Path("/")
PAGE = 8192  # characters of a dictionary that stand for a document
_ENTRY = re.compile(r"\n\n(?=\S)")


def files(packages: Path | None, *patterns: str) -> list[Path]:
    """What matches the patterns in a folder of unpacked packages (or one below it), or else in the system."""
    roots = [packages, *sorted(folder for folder in packages.iterdir() if folder.is_dir())] if packages else []
    for root in [*roots, SYSTEM]:
        matches = {file.resolve() for pattern in patterns for file in root.glob(pattern) if file.is_file()}
        if matches:
            return sorted(matches)
    return []


def dictionary(files: list[Path]) -> Iterator[Document]:
    """The GCIDE of `dict-gcide`, entries in alphabetical order; a document a page of them."""
    text = _read(files[0])
    start = text.find("\n\nA ") + 2  # in front of it stand the licence and the names of the sources
    yield from _pages(_ENTRY.split(text[max(0, start) :]))


def wordnet(files: list[Path]) -> Iterator[Document]:
    """The synsets of `wordnet-base`, grouped by topic as its files are; a document a page of `words: gloss`."""
    for file in files:
        entries = []
        for line in _read(file).splitlines():
            if line[:1].isdigit():  # offset, file, kind, number of words (hexadecimal), word and sense in turn, | gloss
                data, _, gloss = line.partition("|")
                fields = data.split()
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                entries.append(f"{', '.join(word.replace('_', ' ') for word in words)}: {gloss.strip()}")
        yield from _pages(entries)


def whole(files: list[Path]) -> Iterator[Document]:
    """A document a file, compressed with gzip or not; it is named by its place in the documentation."""
    for file in files:
        text = _read(file)
        if text.strip():
            yield Document("/".join(file.parts[-3:]), text)


def _pages(entries: list[str]) -> Iterator[Document]:
    page: list[str] = []
    size = 0
    for entry in entries:
        page.append(entry)
        size += len(entry)
        if size >= PAGE:
            yield _page(page)
            page, size = [], 0
    if page:
        yield _page(page)


def _page(entries: list[str]) -> Document:
    text = "\n\n".join(entry.strip("\n") for entry in entries) + "\n"
    return Document(text, text)


def _read(file: Path) -> str:
    raw = gzip.decompress(file.read_bytes()) if file.suffix in (".gz", ".dz") else file.read_bytes()
    return raw.decode("utf-8", "replace")
