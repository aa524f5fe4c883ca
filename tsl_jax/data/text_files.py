"""A user's text: found by globs or named as a dataset, read into documents.

A text file is a document, or several with the end-of-text token written between them; a line of a `.jsonl` file, a
row of a `.parquet` file or of a dataset is one. A domain of fewer than 64 documents (a book, say) is cut at ends of
paragraphs or lines into blocks of about 16 kB, smaller ones where there would be fewer than 64, and these stand for
documents. Documents are read as they are needed: no more than 64 are held in memory.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tsl_jax.data import hub, text_formats
from tsl_jax.data.config import mistyped_weight
from tsl_jax.data.documents import Document

TOKEN_FILES = (".npy", ".bin")
FEW = 64  # documents
BLOCK = 16_384  # characters
_PARAGRAPH = re.compile(r"\n\s*\n\s*|\n")


def find(patterns: tuple[str, ...]) -> list[Path]:
    """The files of a domain, sorted; a folder stands for everything in it, hidden files left out.

    Raises:
        FileNotFoundError: if a pattern matches no file. ValueError: for a file whose kind is not read.
    """
    files: set[Path] = set()
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        everything = os.path.join(glob.escape(expanded), "**", "*") if os.path.isdir(expanded) else expanded
        matches = [expanded] if os.path.isfile(expanded) else glob.glob(everything, recursive=True)
        matched = {Path(match) for match in matches if os.path.isfile(match)}
        if not matched:
            here = "" if os.path.isabs(expanded) else f" in {os.getcwd()}"
            remedy = f"{here}{mistyped_weight(pattern)}; check the path, and quote globs in the shell"
            raise FileNotFoundError(f"data: {pattern!r} matches no file{remedy}")
        files |= matched
    for file in sorted(files):
        text_formats.validate_format(file)
    return sorted(files)


def documents(
    name: str, places: Sequence[Path | str], field: str, end_of_text: str, max_bytes: int
) -> Iterator[Document]:
    """The documents of a domain in the order of its files and datasets (`hf:...`), empty ones left out.

    Raises:
        ValueError: for files that are not UTF-8 text, or lines that are not JSON with the field, or if nothing is left.
        OSError: for a file that cannot be read.
    """
    texts = _capped(name, places, field, end_of_text, max_bytes)
    first = list(islice(texts, FEW))
    if not first:
        problem = f"the text of domain {name!r} is empty ({len(places)} files, first {places[0]})"
        raise ValueError(f"data: {problem}; name other files")
    if len(first) < FEW:  # these are all: a domain of few documents is cut into blocks
        size = max(1024, min(BLOCK, sum(map(len, first)) // (2 * FEW)))
        first = [block for text in first for block in blocks(text, size) if block.strip()]
    yield from (Document(text, text) for text in chain(first, texts))


def _capped(name: str, places: Sequence[Path | str], field: str, end_of_text: str, max_bytes: int) -> Iterator[str]:
    """The texts that are not blank, until there are more than `max_bytes`."""
    size = 0
    for place in places:
        own = not isinstance(place, str)
        texts = text_formats.texts(place, field, end_of_text, max_bytes) if own else hub.texts(place, field)
        for text in texts:
            if not text.strip():
                continue
            before, size = size, size + len(text.encode("utf-8", "surrogatepass"))
            if size > max_bytes and before:
                cut = f"domain {name!r} has more than {max_bytes} bytes of text; the rest of {place} and what follows"
                remedy = "raise data.max_bytes, or pretokenise it into a .bin or .npy file"
                warnings.warn(f"data: {cut} is left out; {remedy}", stacklevel=2)
                return
            yield text


def blocks(text: str, size: int) -> Iterator[str]:
    """Cut at the first end of a paragraph or line after `size` characters, or at twice the size where there is none."""
    start = 0
    while start < len(text):
        end = _PARAGRAPH.search(text, start + size, start + 2 * size)
        cut = end.end() if end else min(start + 2 * size, len(text))
        yield text[start:cut]
        start = cut
