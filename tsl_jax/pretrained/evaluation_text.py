"""Evaluation windows of text under the tokenizer of a checkpoint.

The windows are those of training (`data.windows`), each domain a split of its own: nine tenths of its documents are
scored, as when a run is measured on other text. Where a tokenizer begins a text with a special token, as LLaMA's does,
it takes the place of the first token of each window. Targets and positions stay: the context of the token at position i
is this one and the i - 1 tokens of text before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tsl_jax.data import corpora, windows
from tsl_jax.data.config import DataConfig, EvalConfig, validate_eval_config
from tsl_jax.data.windows import Windows
from tsl_jax.pretrained import checkpoint_files
from tsl_jax.training.reevaluation import SCORED

Progress = Any  # called with (stage, done, total)


class TokenizerFacts(NamedTuple):
    """What a checkpoint says of its tokenizer."""

    file: Path
    end_of_text: str  # between documents
    begin: int | None  # id of the token that begins a text, if there is one
    before: int  # id of the token before a text without context: that which begins texts, or ends them; -1: no such


def tokenizer_facts(folder: Path, end_of_text: str = "", begin: str = "auto") -> TokenizerFacts:
    """The tokenizer in the folder of a checkpoint, and its special tokens.

    Args:
        end_of_text: "" is what tokenizer_config.json, or else config.json, names as the end of a sequence.
        begin: "auto", or whether texts begin with its token: "yes" or "no".

    Raises:
        ValueError: no tokenizer.json, or no such tokens.
    """
    if begin not in ("auto", "yes", "no"):
        raise ValueError(f"pretrained: begin must be auto, yes or no, found {begin!r}")
    file = folder / checkpoint_files.TOKENIZER
    if not file.is_file():
        made = "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) makes one"
        raise ValueError(f"pretrained: {folder} has no {file.name}, by which text becomes tokens; {made}")
    named = folder / checkpoint_files.TOKENIZER_CONFIG
    settings = checkpoint_files.read_json(named) if named.is_file() else {}
    raw = read_tokenizer(file)
    if not end_of_text:
        end_of_text = _content(settings.get("eos_token"))
    config = folder / checkpoint_files.CONFIG
    if not end_of_text and config.is_file():
        ids = checkpoint_files.read_json(config).get("eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        end_of_text = (raw.id_to_token(first) if isinstance(first, int) else None) or ""
    if not end_of_text:
        raise ValueError(f"pretrained: {folder} names no token between documents; give --end-of-text")
    named = raw.token_to_id(_content(settings.get("bos_token")))
    before = named if named is not None else raw.token_to_id(end_of_text)
    begins = None if begin == "no" else _begin(raw, settings, begin == "yes")
    return TokenizerFacts(file, end_of_text, begins, -1 if before is None else before)


def load_text(text: tuple[str, ...], facts: TokenizerFacts, field: str, progress: Progress) -> corpora.Corpus:
    """The text as tokens, each domain a split.

    Raises:
        ValueError, OSError: as `corpora.load`.
    """
    data = DataConfig(text=text, tokenizer=str(facts.file), end_of_text=facts.end_of_text, heldout=SCORED, field=field)
    corpus = corpora.load(data, progress)
    return replace(corpus, splits={name: (name,) for name in corpus.domains})


def windows_of(
    corpus: corpora.Corpus, context: int, config: EvalConfig | None, begin: int | None
) -> dict[str, Windows]:
    """The windows of every split, begun with a token where one is given.

    Raises:
        ValueError: as `windows.for_splits`.
    """
    config = config or EvalConfig()
    validate_eval_config(config)
    sets = windows.for_splits(corpus, context, config)
    if begin is None:
        return sets
    for split, part in sets.items():
        tokens = part.tokens.copy()
        tokens[:, 0] = begin
        sets[split] = replace(part, tokens=tokens, design={**part.design, "begins_with": begin})
    return sets


def text_windows(
    text: str | tuple[str, ...],
    tokenizer: str | Path,
    *,
    context: int,
    windows: EvalConfig | None = None,
    end_of_text: str = "",
    begin: str = "auto",
    field: str = "text",
    progress: Progress = lambda stage, done, total: None,
) -> Mapping[str, Windows]:
    """Windows of text for `tsl.evaluate`: split -> windows, a split a domain.

    Args:
        text: as `--text` of `tsl train`: "GLOB", "NAME=GLOB", or several.
        tokenizer: folder with a tokenizer.json, as a checkpoint has it.
        context: positions of a window. windows: how many there are; None: as in training.
        end_of_text: the token between documents; "": the tokenizer's own. begin: whether windows begin with the token
            that begins a text: "auto" (where the tokenizer puts one), "yes" or "no".
        field: of a row, that holds its text.

    Raises:
        ValueError, OSError: for text, a tokenizer or windows that cannot be used.
    """
    facts = tokenizer_facts(Path(tokenizer).expanduser(), end_of_text, begin)
    corpus = load_text((text,) if isinstance(text, str) else tuple(text), facts, field, progress)
    return windows_of(corpus, context, windows, facts.begin)


def read_tokenizer(file: Path) -> Any:
    """The tokenizer as it is, special tokens read and written.

    Raises:
        ValueError: for a file that is none.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"pretrained: {file} is not a tokenizer.json ({error}); download it again") from None


def _content(token: Any) -> str:
    """The text of a special token, which is written as itself or as a mapping."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")


def _begin(raw: Any, settings: Mapping[str, Any], asked: bool) -> int | None:
    """Id of the token that begins a text: that which the tokenizer puts there, unless its settings say otherwise."""
    wanted = asked or settings.get("add_bos_token")
    plain, full = (raw.encode("a", add_special_tokens=add).ids for add in (False, True))
    added = full[0] if len(full) > len(plain) and full[: len(plain)] != plain else None
    named = raw.token_to_id(_content(settings.get("bos_token")))
    if asked and added is None and named is None:
        raise ValueError("pretrained: the tokenizer names no token that begins a text; leave --begin out")
    if wanted is None:  # the settings do not say
        return added
    return (added if added is not None else named) if wanted else None
