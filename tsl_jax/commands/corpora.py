"""`tsl corpora`: domains of text that is installed, corpora that are built from them, and what is in either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from tsl_jax.data.config import DataConfig


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
    """Do it, and print what there is to see."""
    if command.action == "list":
        _need(not command.names, "list takes no names; did you mean describe?")
        _list(command)
    elif command.action == "build":
        _need(bool(command.names) and command.out is not None, "build needs domains and --out FOLDER")
        _build(command)
    else:
        _need(len(command.names) == 1, "describe needs one domain or folder")
        _describe(command)


def _need(given: bool, sentence: str) -> None:
    if not given:
        raise ValueError(f"corpora: {sentence}; see tsl corpora --help")


def _list(command: CorporaCommand) -> None:
    from tsl_jax.commands import corpora_text

    here = corpora_text.show_domains(command.packages)
    print(f"here: {len(here)}; tsl corpora describe DOMAIN counts and shows one")
    print(f"build: tsl corpora build {' '.join(here)} --out FOLDER --vocabulary {command.vocabulary}")


def _build(command: CorporaCommand) -> None:
    from tsl_jax.commands import corpora_text
    from tsl_jax.commands.progress import bars
    from tsl_jax.data import corpora

    assert command.out is not None
    config = _config(command)
    print(corpora_text.cost(corpora.find(config)), flush=True)
    try:
        with bars() as progress:
            manifest = corpora.build(config, command.out, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{command.out} was not made; the same command begins anew") from None
    corpora_text.show_corpus(command.out, manifest)


def _config(command: CorporaCommand) -> DataConfig:
    """The text of the corpus; a bare name of a domain is never a path here."""
    from tsl_jax.data.config import DataConfig
    from tsl_jax.data.installed import catalogue

    text = tuple(catalogue.PREFIX + name if name in catalogue.TABLE else name for name in command.names)
    shared = ("packages", "vocabulary", "tokenizer", "heldout", "field", "max_bytes")
    return DataConfig(text=text, **{name: getattr(command, name) for name in shared})


def _describe(command: CorporaCommand) -> None:
    from tsl_jax.commands import corpora_text
    from tsl_jax.data import corpora
    from tsl_jax.data.installed import catalogue

    name = command.names[0]
    if name in catalogue.TABLE:
        corpora_text.show_domain(name, command.packages)
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        corpora_text.show_corpus(folder, corpora.read_manifest(folder))
    else:
        raise ValueError(f"corpora: {name!r} is neither a domain ({', '.join(catalogue.TABLE)}) nor a folder")
