"""What `tsl corpora` prints: the table of domains, one domain, one corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.data import preparation
from tsl_jax.data.config import DomainSource
from tsl_jax.data.installed import catalogue

EXPLAINED = """repeats: documents of which more than half stands in others of their part
near-copies: held-out documents of which training text of any domain has more than a tenth
shared: what held-out text still has in common with training text, in blocks of 64 characters"""
SHOWN = 240  # characters of a sample
MEGABYTES_A_MINUTE = 60  # prepared on one core, roughly


def show_domains(packages: str) -> list[str]:
    """Print every domain: what it is, and whether it is here or how to get it; the names of those that are here."""
    here = []
    print(f"{'domain':<12}{'about MB':>8}{'documents':>11}  what it is")
    for name, row in catalogue.TABLE.items():
        said = f"{row.what}; a document is {row.document}"
        print(f"{name:<12}{row.megabytes:>8.1f}{row.count:>11,}  {said}")
        if catalogue.installed_files(name, packages):
            here.append(name)
        else:
            print(f"{'':<33}missing: {catalogue.how_to_install(name, packages)}")
    return here


def cost(found: list[tuple[DomainSource, list[Path]]]) -> str:
    """What a build will take, before it begins."""
    size = sum(_megabytes(source, files) for source, files in found)
    plural = "domain" if len(found) == 1 else "domains"
    more = ", and datasets whose size is not known" if any(source.hub for source, _ in found) else ""
    minutes = max(1, round(size / MEGABYTES_A_MINUTE))
    return (
        f"{len(found)} {plural}, about {size:,.0f} MB of text{more}: in the order of {minutes} min on one core, "
        f"{2 * size:,.0f} MB of disk while it is built and {size / 2:,.0f} MB afterwards"
    )


def _megabytes(source: DomainSource, files: list[Path]) -> float:
    own = sum(file.stat().st_size for file in files) / 1e6
    return own + sum(catalogue.TABLE[name].megabytes for name in source.installed)


def show_domain(name: str, packages: str) -> None:
    """What a domain is and holds, counted now."""
    row = catalogue.TABLE[name]
    found = catalogue.find(name, packages)
    lines = {
        "what it is": row.what,
        "a document is": row.document,
        "comes from": row.comes_from,
        "install": row.install.format(packages=packages or "FOLDER"),
        "licence": row.licence,
        "files": f"{len(found):,}, the first {found[0]}",
    }
    for what, said in lines.items():
        print(f"{what:<14} {said}")
    sizes = []
    middle = ""
    for document in row.documents(found):
        sizes.append(len(document.text.encode("utf-8", "surrogatepass")))
        middle = document.text if len(sizes) in (1, 10) else middle
    quantiles = ", ".join(f"{size:,.0f}" for size in np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1)))
    print(f"{'documents':<14} {len(sizes):,}, {sum(sizes) / 1e6:.1f} MB; bytes of one, quartiles: {quantiles}")
    print(f"{'sample':<14} {_short(middle)}")


def show_corpus(folder: Path, manifest: dict[str, Any]) -> None:
    """What a corpus holds, a line a domain, and how to train on it."""
    record = manifest["record"]
    _show_counts(record)
    seen = record.get("tokenizer_characters") or {}
    trained = ", ".join(f"{name} {number / 1e6:.2f}" for name, number in seen.items())
    print(f"vocabulary: {manifest['vocabulary']:,}" + (f", learned from million characters: {trained}" if seen else ""))
    for name, text in _samples(folder, record):
        print(f"{name}: {_short(text)}")
    names = " ".join(record["tokens"])
    print(f"corpus: {folder}\ntrain: tsl train --out runs/NAME --data.corpus {folder} --text {names}")
    print("  (equal shares; NAME@SHARE gives others, NAME@0 a domain that is measured and never trained on)")


def _show_counts(record: dict[str, Any]) -> None:
    """Documents, tokens and shares, and what was taken out, a line a domain."""
    total = sum(parts["train"] for parts in record["tokens"].values())
    print(f"{'':<12}{'training':^27}{'held out':^20}{'taken out':^26}")
    print(f"{'domain':<12}{'docs':>7}{'tokens':>13}{'share':>7}{'docs':>8}{'tokens':>12}", end="")
    print(f"{'repeats':>13}{'near-copies':>14}{'shared':>8}{'MB':>7}")
    for name, tokens in record["tokens"].items():
        documents, size = record["documents"][name], record["bytes"][name]
        repeats = sum(record.get("repeats_removed", {}).get(name, {}).values())
        print(
            f"{name:<12}{documents['train']:>7,}{tokens['train']:>13,}{tokens['train'] / max(1, total):>7.1%}", end=""
        )
        print(f"{documents['heldout']:>8,}{tokens['heldout']:>12,}", end="")
        print(f"{_removed(repeats, sum(documents.values())):>13}", end="")
        print(f"{_removed(record['near_copies_removed'][name], documents['heldout']):>14}", end="")
        print(f"{record['shared_block_rate'][name]:>8.2%}{sum(size.values()) / 1e6:>7.1f}")
    held = sum(parts["heldout"] for parts in record["tokens"].values())
    print(f"{'together':<12}{'':>7}{total:>13,}{'':>15}{held:>12,}")
    print(EXPLAINED)


def _removed(number: int, left: int) -> str:
    return f"{number:,} ({number / max(1, number + left):.1%})"


def _samples(folder: Path, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The beginning of a training document of each domain."""
    from tokenizers import Tokenizer

    file = folder / preparation.TOKENIZER
    if not file.exists():
        return
    tokenizer: Any = Tokenizer.from_file(str(file))
    for number, name in enumerate(record["tokens"]):
        tokens = np.load(folder / preparation.file_name(number, "train", "tokens"), mmap_mode="r")
        starts = np.load(folder / preparation.file_name(number, "train", "documents"))
        if len(starts):
            begin = int(starts[len(starts) // 2])
            yield name, tokenizer.decode(tokens[begin : begin + SHOWN].tolist())


def _short(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[:SHOWN] + " ..."
