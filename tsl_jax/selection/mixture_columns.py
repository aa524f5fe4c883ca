"""Which columns of a table are a mixture, and whether they are one: shares of domains that sum to one in every row.

A mixture is recognised by a common prefix of its columns (train_wiki, train_code), or, where no column has one of
PREFIXES, by its sums: all columns of numbers from 0 to 1 that nothing else explains and that sum to one in every row.
Shares in percent are divided by 100. Sums within ROUNDING of one are taken for rounded shares and divided by.

How often a domain is read, its epochs e, is share x tokens / tokens available of it. What is read again is worth less
than new text (the data-constrained law of Muennighoff et al., arXiv 2305.16264, with their R* = 15.4):

    worth(e) = (1 + R* (1 - exp(-(e - 1)/R*))) / e     new tokens a token read, for e > 1; else 1

so that up to four epochs are nearly as good as new text for the large models that it was fitted to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

PREFIXES = (
    "train_",
    "mixture",
    "mix",
    "weights",
    "weight",
    "shares",
    "share",
    "proportion",
    "prop",
    "ratio",
    "w_",
    "p_",
)
PERCENT = re.compile(r"[ _]*[\[(]?(?:%|percent|pct)[\])]?$", re.IGNORECASE)  # at the end of a column's name
DOMAINS = ("domain", "source", "subset", "corpus", "dataset")  # of a table with a row a domain
SHARES = ("share", "weight", "proportion", "fraction", "ratio", "percent", "percentage", "mixture_weight")
ROUNDING = 0.01  # by which a sum may miss one: rounded shares
MOST_EPOCHS = 4  # Muennighoff et al. 2305.16264, section 5: until there repeated text is nearly worth new one
REPEATS = 15.4  # their R*: repetitions after which text has given 1 - 1/e of what it gives


def find_mixture(table: pd.DataFrame, named: Sequence[str], explained: Sequence[str]) -> dict[str, str]:
    """Column -> domain of the mixture; empty where there is none.

    Args:
        named: columns, or one prefix of them, that the user says are the mixture; empty: recognised.
        explained: columns that are something else: losses, sizes, names.

    Raises:
        ValueError: for a name that is no column and no prefix of any.
    """
    columns = [str(name) for name in table]
    if len(named) == 1 and named[0] not in columns:
        matching = [name for name in columns if name.startswith(named[0]) and name not in explained]
        if len(matching) > 1:
            return {name: name[len(named[0]) :].lstrip("_./: ") or name for name in matching}
    unknown = [name for name in named if name not in columns]
    if unknown:
        raise ValueError(
            f"select: --mixture {unknown[0]} is no column and no prefix of any; there are {_some(columns)}"
        )
    if named:
        return _without_common_prefix(list(named))
    numbers: Any = table.select_dtypes("number")
    numbers = numbers[[name for name in numbers if str(name) not in explained]]
    numeric, least, largest = list(map(str, numbers)), numbers.min().to_numpy(), numbers.max().to_numpy()
    small = {name for name, high in zip(numeric, largest, strict=True) if high <= 1}
    dotted = {name[: name.index(".") + 1].lower(): None for name in numeric if "." in name[:-1]}  # of a mapping
    for prefix in (*PREFIXES, *dotted):
        matching = {name: name[len(prefix) :].lstrip("_./: ") for name in numeric if name.lower().startswith(prefix)}
        matching = {name: domain for name, domain in matching.items() if domain}
        for part in (matching, {name: matching[name] for name in matching if name in small}):  # not train_steps
            if len(part) > 1 and _like_shares(numbers[list(part)].to_numpy(float)):
                return part
    within = [name for name in numeric if PERCENT.search(name)]
    if len(within) > 1 and _sums_to(numbers[within].to_numpy(float), 100):
        return _without_common_prefix(within)
    within = [name for name, low in zip(numeric, least, strict=True) if name in small and low >= 0]
    if len(within) > 1 and _sums_to(numbers[within].to_numpy(float), 1):
        return _without_common_prefix(within)
    within = [name for name, low, high in zip(numeric, least, largest, strict=True) if low >= 0 and high <= 100]
    if len(within) > 1 and _sums_to(numbers[within].to_numpy(float), 100):
        return _without_common_prefix(within)
    return {}


def _sums_to(values: np.ndarray, whole: float) -> bool:
    """Whether all rows sum to a whole, but for rounding."""
    return bool((np.abs(np.nansum(values, axis=1) - whole) < ROUNDING * whole).all())


def percentages(table: pd.DataFrame) -> pd.DataFrame:
    """The table with numbers for cells such as `39.5%`, in columns where all are such."""
    changed = {}
    for name in table:
        given: Any = table[name]
        if is_numeric_dtype(given) or not given.notna().any():
            continue
        cells = given.dropna().astype(str).str.strip()
        if cells.str.fullmatch(r"[-+]?[\d.]+ *%").all():
            changed[name] = pd.to_numeric(given.astype("string").str.strip().str.rstrip("% "), errors="coerce")
    return table.assign(**{str(name): values.astype(float) for name, values in changed.items()})


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row a run from rows (run, domain, share), with a column `share_DOMAIN` each; other tables as they are.

    Raises:
        ValueError: for two shares of one domain in a run.
    """
    by_name = {str(name).strip().lower().replace(" ", "_"): str(name) for name in table}
    domain = next((by_name[name] for name in DOMAINS if name in by_name), "")
    share = next((by_name[name] for name in SHARES if name in by_name), "")
    others = [str(name) for name in table if name not in (domain, share)]
    if not (domain and share and others) or is_numeric_dtype(table[domain]) or not is_numeric_dtype(table[share]):
        return table
    rows: Any = table  # pandas' types say little of columns that are named at run time
    runs = rows[others].drop_duplicates()
    sums = rows.groupby(others, dropna=False)[share].sum().to_numpy(float)
    if len(runs) == len(table) or not _like_shares(sums[:, None]):
        return table
    if bool(rows.duplicated([*others, domain]).any()):
        row = rows[rows.duplicated([*others, domain])].iloc[0]
        raise ValueError(f"select: two rows have the share of {row[domain]} in {row[others[0]]}; leave one out")
    shares = rows.set_index([*others, domain])[share].unstack(domain).add_prefix("share_").reset_index()
    return runs.merge(shares, on=others).reset_index(drop=True)


def _like_shares(values: np.ndarray) -> bool:
    """Whether half of the rows or more sum to about one or a hundred: train_loss, train_steps do not."""
    sums = np.nansum(values, axis=1)
    near = (np.abs(sums - 1) < 0.2) | (np.abs(sums - 100) < 20)
    return bool(np.mean(near) >= 0.5)


def _without_common_prefix(columns: list[str]) -> dict[str, str]:
    """The domains that the columns name, without a prefix that all of them share."""
    for prefix in PREFIXES:
        if all(name.lower().startswith(prefix) and len(name) > len(prefix) for name in columns):
            return {name: PERCENT.sub("", name[len(prefix) :].lstrip("_./: ")) or name for name in columns}
    return {name: PERCENT.sub("", name) or name for name in columns}


def checked_shares(
    table: pd.DataFrame, columns: Mapping[str, str], row_names: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """The shares (row, domain), which sum to one exactly, and sentences on what was changed to make them so.

    Args:
        columns: column -> domain. row_names: what rows are called in messages.

    Raises:
        ValueError: for shares that are no numbers, negative, missing, or do not sum to one, naming column and row.
    """
    notes: list[str] = []
    domains = list(columns.values())
    twice = [domain for domain in dict.fromkeys(domains) if domains.count(domain) > 1]
    if twice:
        raise ValueError(
            f"select: two columns are the share of {twice[0]}; name those that count: --mixture COLUMN ..."
        )
    values = np.empty((len(table), len(domains)))
    for k, (column, domain) in enumerate(columns.items()):
        given: Any = table[column]
        values[:, k] = np.asarray(pd.to_numeric(given, errors="coerce"), float)
        words = np.isnan(values[:, k]) & given.notna().to_numpy()
        for wrong, expected in ((words, "numbers"), (values[:, k] < 0, "0 or more")):
            if wrong.any():
                row = int(np.argmax(wrong))
                found = f"{domain} {given.tolist()[row]} in {row_names[row]}"
                raise ValueError(f"select: shares are {expected}, found {found}")
    sums = np.nansum(values, axis=1)
    if np.median(np.abs(sums - 100)) < 100 * ROUNDING:
        values, sums = values / 100, sums / 100
        notes.append("shares are percentages: divided by 100")
    off = np.abs(sums - 1)
    if (off > ROUNDING).any():
        raise ValueError(_wrong_sum(values, sums, domains, row_names))
    blank = np.isnan(values)
    if blank.any():
        lacking = [domain for k, domain in enumerate(domains) if blank[:, k].any()]
        rows = int(blank.any(axis=1).sum())
        notes.append(f"{_some(lacking)}: no share in {rows} rows, whose other shares sum to one: counted as 0")
    rounded = int((off > 1e-6).sum())
    if rounded:
        notes.append(f"shares of {rounded} rows miss one by up to {off.max():.2g}: rounding, divided by their sums")
    return pd.DataFrame(np.nan_to_num(values) / sums[:, None], index=table.index, columns=domains), notes


def _wrong_sum(values: np.ndarray, sums: np.ndarray, domains: Sequence[str], row_names: Sequence[str]) -> str:
    """What is wrong with the first mixture that does not sum to one."""
    wrong = np.abs(sums - 1) > ROUNDING
    row = int(np.argmax(wrong))
    lacking = [domain for domain, share in zip(domains, values[row], strict=True) if np.isnan(share)]
    others = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
    found = f"select: the shares of {row_names[row]} sum to {sums[row]:.4g}, expected one{others}"
    if lacking:
        return f"{found}: it has no share of {_some(lacking)}; fill that in, 0 where the domain was not used"
    return (
        f"{found}; taken for domains: {_some(domains)}; correct them, or name the right columns: --mixture COLUMN ..."
    )


def epochs(shares: pd.DataFrame, tokens: float, available: Mapping[str, float]) -> pd.DataFrame:
    """How often each domain is read in a run of `tokens`: share x tokens/available, over those that are known.

    Raises:
        ValueError: for a domain that the mixtures lack, or available tokens that are not positive.
    """
    for domain, count in available.items():
        if domain not in shares:
            raise ValueError(f"select: --available {domain} is no domain of the mixtures: {_some(list(shares))}")
        if not 0 < count < float("inf"):
            raise ValueError(f"select: --available takes a positive number of tokens, found {domain}={count:g}")
    return pd.DataFrame({name: shares[name] * tokens / count for name, count in available.items()}, index=shares.index)


def worth(epochs: np.ndarray) -> np.ndarray:
    """New tokens that a token read is worth, (0, 1], of text read so often; see the top of this file."""
    repeated = np.maximum(epochs - 1, 0.0)
    return (1 + REPEATS * -np.expm1(-repeated / REPEATS)) / (1 + repeated)


def _some(names: Sequence[str], most: int = 12) -> str:
    """Names in a row, not all of many."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
