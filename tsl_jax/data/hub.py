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


class Dataset(NamedTuple):
    """What an entry names."""

    name: str
    config: str | None
    split: str
    column: str | None


def parse(where: str) -> Dataset:
    """The dataset of an entry.

    Raises:
        ValueError: for an entry of another form.
    """
    match = _FORM.fullmatch(where)
    if not match:
        raise ValueError(f"data: {where!r} is not of the form hf:NAME[:CONFIG][@SPLIT][#COLUMN]")
    return Dataset(match["name"], match["config"], match["split"] or "train", match["column"])


def validate_entry(where: str) -> None:
    """The entry is one, and the package that reads it is there.

    Raises:
        ValueError: saying what is missing.
    """
    parse(where)
    if find_spec("datasets") is None:
        raise ValueError(f"data: {where} needs the package datasets; pip install 'tsl_jax[corpora]'")


def fingerprint(where: str) -> str:
    """What changes when the dataset does: the hash that `datasets` gives its files and their revision."""
    import datasets  # pyright: ignore[reportMissingImports]

    wanted = parse(where)
    with _in_words(where):
        return f"{where} {datasets.load_dataset_builder(wanted.name, wanted.config).hash}"


def texts(where: str, field: str) -> Iterator[str]:
    """The texts of a dataset, a row each; empty cells are left out.

    Raises:
        ValueError: for a dataset, configuration, split or column that is not there.
    """
    import datasets  # pyright: ignore[reportMissingImports]

    wanted = parse(where)
    column = wanted.column or field
    with _in_words(where):
        rows: Any = datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)
        for row in rows:
            yield from _text(row, column, where)


def _text(row: dict[str, Any], column: str, where: str) -> list[str]:
    value = row.get(column, 0)
    if value is not None and not isinstance(value, str):
        has = ", ".join(map(repr, row))
        found = f"{where} has no text in the column {column!r}; it has {has}"
        raise ValueError(f"data: {found}; name one as {where.partition('#')[0]}#COLUMN")
    return [] if value is None else [value]


@contextmanager
def _in_words(where: str) -> Iterator[None]:
    """What the package raises for a dataset that is not there is a sentence of ours."""
    try:
        yield
    except (ValueError, OSError) as error:
        if str(error).startswith("data: "):
            raise
        told = str(error).strip().partition("\n")[0]
        raise ValueError(f"data: {where} cannot be read ({told}); check its name, configuration and split") from None
