"""YAML files that somebody wrote, read within bounds.

A few lines of YAML can refer to themselves, or stand for more entries than memory holds: an alias repeats what it
names, and aliases of aliases multiply. Such files are refused before anything is built of them, and so are entries that
a mapping has twice, of which PyYAML would keep the last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

BYTES = 16 << 20  # of a file
ENTRIES = 1_000_000  # of a file, those of aliases as often as they are named


def read_yaml(file: Path) -> Any:
    """The plain values of a file: mappings, lists, texts, numbers.

    Raises:
        ValueError: for what is not YAML or beyond the bounds; a sentence of one line that does not name the file.
        OSError: if it cannot be read.
    """
    with open(file, "rb") as stream:
        raw = stream.read(BYTES + 1)
    if len(raw) > BYTES:
        raise ValueError(f"more than {BYTES:,} bytes; give a shorter file")
    try:
        text = raw.decode("utf-8-sig")
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None:
            _count(root, {}, set())
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("nested too deep; give fewer levels") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        found = " ".join(str(error).split())  # YAML's are of several lines
        raise ValueError(f"not YAML ({found:.300})") from None


def _count(node: yaml.Node, counted: dict[int, int], above: set[int]) -> int:
    """Entries of a node, aliases as often as they are named; `above` are those that it lies in."""
    if id(node) in above:
        mark = node.start_mark
        raise ValueError(f"refers to itself in line {mark.line + 1 if mark else '?'}; write its entries out")
    if id(node) not in counted:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated(node)
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        above.add(id(node))
        counted[id(node)] = 1 + sum(_count(child, counted, above) for child in children)
        above.remove(id(node))
        if counted[id(node)] > ENTRIES:
            raise ValueError(f"stands for more than {ENTRIES:,} entries; give a shorter file")
    return counted[id(node)]


def _refuse_repeated(mapping: yaml.MappingNode) -> None:
    """Refuse an entry that is there twice; only names that are plain values are compared."""
    seen: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            name, line = (key.tag, key.value), key.start_mark.line + 1 if key.start_mark else 0
            if name in seen:
                lines = f"line {line}" if line == seen[name] else f"lines {seen[name]} and {line}"
                raise ValueError(f"has the entry {key.value!r:.80} twice, in {lines}; keep one")
            seen[name] = line
