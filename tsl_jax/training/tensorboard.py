"""A run's metrics for TensorBoard: what `train` observes, written as scalars.

tensorboardX is an extra (`pip install tsl_jax[tensorboard]`), imported only here and only when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tsl_jax.training.setup import Observe


@contextmanager
def scalars(folder: Path) -> Iterator[Observe]:
    """Gives the function to observe a run with; a continued run takes the place of the steps it makes again.

    Raises:
        ValueError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError("training: tensorboardX is not installed; pip install 'tsl_jax[tensorboard]'") from None
    writers: list[Any] = []

    def observe(facts: Mapping[str, Any]) -> None:
        if not writers:
            writers.append(SummaryWriter(str(folder), purge_step=facts["step"]))
        for name, value in facts.items():
            if name != "step":
                tag = name if "/" in name else f"train/{name}"
                writers[0].add_scalar(tag, value, global_step=facts["step"])

    try:
        yield observe
    finally:
        for writer in writers:
            writer.close()
