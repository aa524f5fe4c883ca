"""Shares of the domains in training."""

from __future__ import annotations

from dataclasses import dataclass

from tsl_jax.data.config import check_weights


@dataclass(frozen=True)
class Mixture:
    """Domain and weight, in order; the weights sum to one.

    Raises:
        ValueError: for weights that are not shares, or a domain named twice.
    """

    shares: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shares]
        if len(set(names)) != len(names):
            raise ValueError(f"data: a mixture names each domain once, found {names}")
        check_weights(dict(self.shares))

    def __getitem__(self, name: str) -> float:
        """The weight of a domain; 0 for one that is not in the mixture."""
        return dict(self.shares).get(name, 0.0)
