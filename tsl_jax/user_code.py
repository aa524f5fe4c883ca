"""Python of a user, named by a text: `./file.py:NAME` or `module:NAME`, a law or a rule of position weights.

Importing runs it, so it is loaded only where its user has named it on the command line, or has said to trust it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

_NAMED = re.compile(r"(.*\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


def is_named(text: str) -> bool:
    """Whether a text names something in a Python file or module, by its form alone: nothing is looked up or run.

    Example:
        >>> is_named("./mine.py:LAW"), is_named("hyperbolic")
        (True, False)
    """
    return _NAMED.fullmatch(text) is not None


def load(module: str, name: str) -> Any:
    """What has this name in a module, or in a .py file; None where there is nothing.

    Args:
        module: the name of an installed module, or the path of a .py file, which is run anew at every call.

    Raises:
        ValueError: where the module cannot be imported.
    """
    try:
        loaded = _import_file(module) if module.endswith(".py") else importlib.import_module(module)
    except (Exception, SystemExit) as error:  # how this program ends is not for such a module to say
        raise ValueError(f"{module} cannot be imported ({type(error).__name__}: {error})") from error
    return getattr(loaded, name, None)


def _import_file(path: str) -> Any:
    name = f"user_code_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
