"""`tsl corpora`: domains of text that is installed, corpora that are built from them, and what is in either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

EXPLANATION = """repeats: documents of which more than half stands in others of their part
near-copies: held-out documents of which training text of any domain has more than a tenth
shared: what held-out text still has in common with training text, in blocks of 64 characters"""
SHOWN = 240  # characters of a sample
MEGABYTES_A_MINUTE = 60  # prepared on one core, roughly


@dataclass(frozen=True)
class CorporaCommand:
    """List the domains of installed text; build a corpus of some, or of your own text; describe a domain or corpus.

    tsl corpora | tsl corpora build code docs books='~/books/*.txt' --out FOLDER | tsl corpora describe FOLDER
    """

    action: tyro.conf.Positional[Literal["list", "build", "describe"]] = "list"
    """What to do."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """build: domains, or DOMAIN=GLOB as for tsl train --text. describe: a domain, or the folder of a corpus."""
    out: Path | None = None
    """build: the new folder."""
    packages: str = ""
    """Folder with Debian and npm packages that you unpacked; what the system has installed is found without."""
    vocabulary: int = 4096
    """build: tokens of the byte-level BPE, which sees as much text of each domain."""
    tokenizer: str = ""
    """build: a tokenizer.json to use instead."""
    heldout: float = 0.0
    """build: share of the documents never trained on; 0: a fifth of installed text, a tenth of yours."""
    field: str = "text"
    """build: field of .jsonl or column of .parquet files that holds the text."""
    max_bytes: Annotated[int, tyro.conf.arg(metavar="BYTES")] = 1 << 30
    """build: what a domain of your files has beyond this is left out, with a warning."""


def run_corpora(command: CorporaCommand) -> None:
    """List, build or describe, and print what there is to see."""
    if command.action == "list" and command.names:
        raise ValueError("corpora: list takes no names (did you mean describe?); see tsl corpora --help")
    if command.action == "build" and (not command.names or command.out is None):
        raise ValueError("corpora: build needs domains and --out FOLDER; see tsl corpora --help")
    if command.action == "describe" and len(command.names) != 1:
        raise ValueError("corpora: describe needs one domain or folder; see tsl corpora --help")
    {"list": _list, "build": _build, "describe": _describe}[command.action](command)


def _list(command: CorporaCommand) -> None:
    """Every domain: what it is, and whether it is installed or how to install it."""
    from tsl_jax.data.installed import catalogue

    installed = []
    print(f"{'domain':<12}{'about MB':>8}{'documents':>11}  what it is")
    for name, row in catalogue.TABLE.items():
        print(f"{name:<12}{row.megabytes:>8.1f}{row.count:>11,}  {row.what}; a document is {row.document}")
        if catalogue.installed_files(name, command.packages):
            installed.append(name)
        else:
            print(f"{'':<33}missing: {catalogue.how_to_install(name, command.packages)}")
    print(f"here: {len(installed)}; tsl corpora describe DOMAIN counts and shows one")
    print(f"build: tsl corpora build {' '.join(installed)} --out FOLDER --vocabulary {command.vocabulary}")


def _build(command: CorporaCommand) -> None:
    """Print what the build will take, build, and describe the corpus."""
    from tsl_jax.commands.progress import bars
    from tsl_jax.data import corpora
    from tsl_jax.data.config import DataConfig
    from tsl_jax.data.installed import catalogue

    assert command.out is not None  # by run_corpora
    # a bare name of a domain is never a path here
    text = tuple(catalogue.PREFIX + name if name in catalogue.TABLE else name for name in command.names)
    shared = ("packages", "vocabulary", "tokenizer", "heldout", "field", "max_bytes")
    config = DataConfig(text=text, **{name: getattr(command, name) for name in shared})
    domains = corpora.find(config)
    size = sum(file.stat().st_size for _, files in domains for file in files) / 1e6
    size += sum(catalogue.TABLE[name].megabytes for source, _ in domains for name in source.installed)
    plural = "domain" if len(domains) == 1 else "domains"
    more = ", and datasets whose size is not known" if any(source.hub for source, _ in domains) else ""
    minutes = max(1, round(size / MEGABYTES_A_MINUTE))
    print(
        f"{len(domains)} {plural}, about {size:,.0f} MB of text{more}: in the order of {minutes} min on one core, "
        f"{2 * size:,.0f} MB of disk while it is built and {size / 2:,.0f} MB afterwards",
        flush=True,
    )
    try:
        with bars() as progress:
            manifest = corpora.build(config, command.out, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{command.out} was not made; the same command begins anew") from None
    _describe_corpus(command.out, manifest)


def _describe(command: CorporaCommand) -> None:
    """A domain, counted now, or a corpus."""
    import numpy as np

    from tsl_jax.data import corpora
    from tsl_jax.data.installed import catalogue

    name = command.names[0]
    folder = Path(name).expanduser()
    if name not in catalogue.TABLE:
        if not folder.is_dir():
            raise ValueError(f"corpora: {name!r} is neither a domain ({', '.join(catalogue.TABLE)}) nor a folder")
        return _describe_corpus(folder, corpora.read_manifest(folder))
    row = catalogue.TABLE[name]
    files = catalogue.find(name, command.packages)
    facts = {
        "what it is": row.what,
        "a document is": row.document,
        "comes from": row.comes_from,
        "install": row.install.format(packages=command.packages or "FOLDER"),
        "licence": row.licence,
        "files": f"{len(files):,}, the first {files[0]}",
    }
    for label, fact in facts.items():
        print(f"{label:<14} {fact}")
    sizes = []
    sample = ""
    for document in row.documents(files):
        sizes.append(len(document.text.encode("utf-8", "surrogatepass")))
        sample = document.text if len(sizes) in (1, 10) else sample
    quantiles = ", ".join(f"{size:,.0f}" for size in np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1)))
    print(f"{'documents':<14} {len(sizes):,}, {sum(sizes) / 1e6:.1f} MB; bytes of one, quartiles: {quantiles}")
    print(f"{'sample':<14} {_shorten(sample)}")


def _describe_corpus(folder: Path, manifest: dict[str, Any]) -> None:
    """What a corpus holds, a line a domain, and how to train on it."""
    record = manifest["record"]
    total = sum(parts["train"] for parts in record["tokens"].values())
    print(f"{'':<12}{'training':^27}{'held out':^20}{'taken out':^26}")
    print(f"{'domain':<12}{'docs':>7}{'tokens':>13}{'share':>7}{'docs':>8}{'tokens':>12}", end="")
    print(f"{'repeats':>13}{'near-copies':>14}{'shared':>8}{'MB':>7}")
    for name, tokens in record["tokens"].items():
        documents, size = record["documents"][name], record["bytes"][name]
        repeats, copies = record.get("repeats_removed", {}).get(name, {}), record["near_copies_removed"][name]
        share = tokens["train"] / max(1, total)
        print(f"{name:<12}{documents['train']:>7,}{tokens['train']:>13,}{share:>7.1%}", end="")
        print(f"{documents['heldout']:>8,}{tokens['heldout']:>12,}", end="")
        print(f"{_removed(sum(repeats.values()), sum(documents.values())):>13}", end="")
        print(f"{_removed(copies, documents['heldout']):>14}", end="")
        print(f"{record['shared_block_rate'][name]:>8.2%}{sum(size.values()) / 1e6:>7.1f}")
    heldout = sum(parts["heldout"] for parts in record["tokens"].values())
    print(f"{'together':<12}{'':>7}{total:>13,}{'':>15}{heldout:>12,}")
    print(EXPLANATION)
    seen = record.get("tokenizer_characters") or {}
    trained = ", ".join(f"{name} {number / 1e6:.2f}" for name, number in seen.items())
    print(f"vocabulary: {manifest['vocabulary']:,}" + (f", learned from million characters: {trained}" if seen else ""))
    for name, text in _samples(folder, record):
        print(f"{name}: {_shorten(text)}")
    names = " ".join(record["tokens"])
    print(f"corpus: {folder}\ntrain: tsl train --out runs/NAME --data.corpus {folder} --text {names}")
    print("  (equal shares; NAME@SHARE gives others, NAME@0 a domain that is measured and never trained on)")


def _removed(number: int, left: int) -> str:
    """A count and its share of all documents there were."""
    return f"{number:,} ({number / max(1, number + left):.1%})"


def _samples(folder: Path, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The beginning of a training document of each domain; none of pretokenised text."""
    import numpy as np
    from tokenizers import Tokenizer

    from tsl_jax.data import preparation

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


def _shorten(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[:SHOWN] + " ..."
