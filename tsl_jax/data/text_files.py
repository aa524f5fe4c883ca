"""A user's files: found by globs, read into documents.

A text file is a document, or several with the end-of-text token written between them; a line of a `.jsonl` file is
one. A domain of fewer than 64 documents (a book, say) is cut at ends of paragraphs or lines into blocks of about 16
kB, smaller ones where there would be fewer than 64, and these stand for documents.
"""

from __future__ import annotations

import glob
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from tsl_jax.data.config import mistyped_weight
from tsl_jax.data.documents import Document

TOKEN_FILES = (".npy", ".bin")
FEW = 64  # documents
BLOCK = 16_384  # characters
_PARAGRAPH = re.compile(r"\n\s*\n\s*|\n")


def find(patterns: tuple[str, ...]) -> list[Path]:
    """The files of a domain, sorted; a folder stands for everything in it, hidden files left out.

    Raises:
        FileNotFoundError: if a pattern matches no file.
    """
    found: set[Path] = set()
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        everything = os.path.join(glob.escape(expanded), "**", "*") if os.path.isdir(expanded) else expanded
        matches = [expanded] if os.path.isfile(expanded) else glob.glob(everything, recursive=True)
        files = {Path(match) for match in matches if os.path.isfile(match)}
        if not files:
            mend = f"{mistyped_weight(pattern)}; check the path, and quote globs in the shell"
            raise FileNotFoundError(f"data: {pattern!r} matches no file{mend}")
        found |= files
    return sorted(found)


def documents(name: str, files: list[Path], field: str, end_of_text: str, max_bytes: int) -> list[Document]:
    """The documents of a domain in the order of its files, empty ones left out.

    Raises:
        ValueError: for files that are not UTF-8 text, or lines that are not JSON with the field, or if nothing is left.
        OSError: for a file that cannot be read.
    """
    texts: list[str] = []
    size = 0
    for file in files:
        for text in _texts(file, field, end_of_text):
            size += len(text.encode("utf-8", "surrogatepass"))
            if size > max_bytes and texts:
                warnings.warn(_too_large(name, file, max_bytes), stacklevel=2)
                return [Document(text, text) for text in _cut_if_few(texts)]
            texts.append(text)
    if not texts:
        raise ValueError(
            f"data: the text of domain {name!r} is empty ({len(files)} files, first {files[0]}); name other files"
        )
    return [Document(text, text) for text in _cut_if_few(texts)]


def _too_large(name: str, file: Path, max_bytes: int) -> str:
    mend = "raise data.max_bytes, or pretokenise it into a .bin or .npy file"
    found = f"domain {name!r} has more than {max_bytes} bytes of text; the rest of {file} and what follows is left out"
    return f"data: {found}; {mend}"


def _texts(file: Path, field: str, end_of_text: str) -> Iterator[str]:
    """The texts of one file that are not blank."""
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"{file} is not UTF-8 text (byte {raw[error.start]:#04x} at {error.start})"
        raise ValueError(f"data: {found}; convert it, unpack it, or leave it out") from None
    whole = _jsonl(file, text, field) if file.suffix in (".jsonl", ".ndjson") else text.split(end_of_text)
    yield from (one for one in whole if one.strip())


def _jsonl(file: Path, text: str, field: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"data: line {number} of {file} is not JSON ({error}); mend or remove it") from None
        if not isinstance(value, dict) or not isinstance(value.get(field), str):
            has = (
                f"it has {', '.join(map(repr, value))}"
                if isinstance(value, dict)
                else f"it is a {type(value).__name__}"
            )
            raise ValueError(f"data: line {number} of {file} has no text in the field {field!r}; {has}; set data.field")
        yield value[field]


def _cut_if_few(texts: list[str]) -> list[str]:
    """The same texts, or their blocks if they are fewer than 64."""
    if len(texts) >= FEW:
        return texts
    size = max(1024, min(BLOCK, sum(map(len, texts)) // (2 * FEW)))
    return [block for text in texts for block in _blocks(text, size) if block.strip()]


def _blocks(text: str, size: int) -> Iterator[str]:
    """Cut at the first end of a paragraph or line after `size` characters, or at twice the size where there is none."""
    start = 0
    while start < len(text):
        end = _PARAGRAPH.search(text, start + size, start + 2 * size)
        cut = end.end() if end else min(start + 2 * size, len(text))
        yield text[start:cut]
        start = cut
