"""Options of evaluations and benchmarks, and the tokens that revisions have seen. Standard library only.

    revision "step1000" -> step 1000 -> tokens = step x tokens of a step

How many tokens a step is, is published for some models (TOKENS_PER_STEP) and never assumed for others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Names on the hub begin so -> tokens of a step, as published. Pythia: 1024 sequences of 2048 tokens, all sizes
# (Biderman et al. 2023, arXiv 2304.01373).
TOKENS_PER_STEP = {"EleutherAI/pythia-": 2_097_152}
_STEP = re.compile(r"(?:^|[^a-z])step[-_]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class PretrainedOptions:
    """Which checkpoints of a published model, with --hf, and how they are measured."""

    revision: tuple[str, ...] = ()  # branches, tags, or folders within --hf; step*000 names many; none: the model
    tokens_per_step: int = 0  # times the step in a revision's name; 0: as published, where it is known
    tokens: tuple[int, ...] = ()  # training tokens seen, one number a revision, instead of --tokens-per-step
    context: int = 0  # positions of a window; 0: the longest context of the model, at most 2048
    batch: int = 8  # windows at a time
    dtype: str = "float32"  # of activations: float32 or bfloat16
    begin: str = "auto"  # windows begin with the token that begins a text: yes, no, or as the tokenizer does it
    end_of_text: str = ""  # the token between documents; default: the tokenizer's own
    field: str = "text"  # of a row of .jsonl or .parquet, that holds its text
    ignore: tuple[str, ...] = ()  # entries of config.json that are not known here and change no logits
    discard: bool = False  # delete what was downloaded once it is measured


# The seven that papers on small models measure zero-shot, by their names in lm-evaluation-harness.
DEFAULT_TASKS = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande")


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which tasks of lm-evaluation-harness are measured, and how."""

    tasks: tuple[str, ...] = DEFAULT_TASKS  # names, groups, tags, patterns such as arc_*, or task files (.yaml)
    include_path: tuple[Path, ...] = ()  # folders of task files
    limit: int = 0  # examples of a task, the first ones; 0: all
    fewshot: int = 0  # solved examples in a prompt


def label_revisions(
    name: str, revisions: list[str], tokens: tuple[int, ...] = (), tokens_per_step: int = 0
) -> dict[str, tuple[int, int]]:
    """Step (-1: not known) and tokens seen of every revision.

    Args:
        name: of the model. tokens: of each revision; or else tokens_per_step, by which the step in the name of a
            revision, such as step1000, is multiplied; 0: as published, for the models in TOKENS_PER_STEP.

    Raises:
        ValueError: where tokens cannot be known, saying what to give, or two revisions have the same.
    """
    found = {revision: _STEP.search(revision) for revision in revisions}
    steps = {revision: int(match[1]) if match else -1 for revision, match in found.items()}
    if tokens:
        if len(tokens) != len(revisions) or min(tokens) < 0:
            problem = f"--tokens has {len(tokens)} numbers for {len(revisions)} revisions ({', '.join(revisions[:4])})"
            raise ValueError(f"pretrained: {problem}; give the tokens seen of each, in this order")
        places = {revision: (steps[revision], seen) for revision, seen in zip(revisions, tokens, strict=True)}
    else:
        per_step = tokens_per_step or next((n for known, n in TOKENS_PER_STEP.items() if name.startswith(known)), 0)
        without = next((revision for revision in revisions if steps[revision] < 0), None)
        if without is not None:
            give = "--tokens with the training tokens seen of each revision (any number serves for a single one)"
            raise ValueError(f"pretrained: revision {without!r} has no step in its name; give {give}")
        if per_step < 1:
            give = "--tokens-per-step (batch size x sequence length), or --tokens of each revision"
            raise ValueError(f"pretrained: how many tokens a step of {name} is, is not known here; give {give}")
        places = {revision: (step, step * per_step) for revision, step in steps.items()}
    seen = [place[1] for place in places.values()]
    twice = next((n for n in seen if seen.count(n) > 1), None)
    if twice is not None:
        same = [revision for revision, place in places.items() if place[1] == twice]
        raise ValueError(f"pretrained: revisions {' and '.join(same)} are both at {twice} tokens; leave one out")
    return places
