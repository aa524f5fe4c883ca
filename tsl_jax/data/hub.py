"""Texts of Hugging Face datasets, streamed through the package `datasets` and never kept whole.

    hf:NAME[:CONFIG][@SPLIT][#COLUMN]        hf:roneneldan/TinyStories     hf:my/folder@validation#body

NAME is a dataset's name, or a folder or file that `datasets.load_dataset` reads; SPLIT is `train` and COLUMN is
`data.field` where they are left out. A row is a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

PREFIX = "hf:"
_FORM = re.compile(r"hf:(?P<name>[^:@#]+)(?::(?P<config>[^:@#]+))?(?:@(?P<split>[^:@#]+))?(?:#(?P<column>[^#]+))?")


class DatasetEntry(NamedTuple):
    """What an entry names."""

    name: str
    config: str | None
    split: str
    column: str | None


def parse(where: str) -> DatasetEntry:
    """The dataset of an entry.

    Raises:
        ValueError: for an entry of another form.
    """
    match = _FORM.fullmatch(where)
    if not match:
        raise ValueError(f"data: {where!r} is not of the form hf:NAME[:CONFIG][@SPLIT][#COLUMN]")
    return DatasetEntry(match["name"], match["config"], match["split"] or "train", match["column"])


def validate_entry(where: str) -> None:
    """Refuse an entry of another form, or where the package that reads it is missing.

    Raises:
        ValueError: saying what is missing.
    """
    parse(where)
    if find_spec("datasets") is None:
        raise ValueError(f"data: {where} needs the package datasets; pip install 'tsl_jax[corpora]'")


def fingerprint(where: str) -> str:
    """What changes when the dataset does: the hash that `datasets` gives its files and their revision."""
    import datasets  # pyright: ignore[reportMissingImports]

    entry = parse(where)
    with _errors_as_sentences(where):
        return f"{where} {datasets.load_dataset_builder(entry.name, entry.config).hash}"


def texts(where: str, field: str) -> Iterator[str]:
    """The texts of a dataset, a row each; empty cells are left out.

    Raises:
        ValueError: for a dataset, configuration, split or column that is not there.
    """
    import datasets  # pyright: ignore[reportMissingImports]

    entry = parse(where)
    column = entry.column or field
    with _errors_as_sentences(where):
        rows: Any = datasets.load_dataset(entry.name, entry.config, split=entry.split, streaming=True)
        for row in rows:
            text = row.get(column, 0)  # None is an empty cell
            if text is not None and not isinstance(text, str):
                problem = f"{where} has no text in the column {column!r}; it has {', '.join(map(repr, row))}"
                raise ValueError(f"data: {problem}; name one as {where.partition('#')[0]}#COLUMN")
            if text is not None:
                yield text


@contextmanager
def _errors_as_sentences(where: str) -> Iterator[None]:
    """What the package raises for a dataset that is not there becomes one sentence that names the entry."""
    try:
        yield
    except (ValueError, OSError) as error:
        if str(error).startswith("data: "):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"data: {where} cannot be read ({reason}); check its name, configuration and split") from None
