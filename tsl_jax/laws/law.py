"""What a law is: one frozen record, no class tree.

Most laws of loss dynamics are *separable*: linear in all but a few parameters,

    f(x) = sum_k coef_k * basis_k(x; shape),

so a fit searches only the positive *shapes* (as logarithms) and solves the *coefficients* by linear least squares
(variable projection; Golub & Pereyra 1973). A law that does not separate gives `curve` instead of `basis`: then every
parameter is a shape. Adding a law means one basis function, one value of `Law`, and its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

# The points where a law is evaluated: one array for a single covariate, else a mapping of named covariates. Arrays of a
# mapping may be longer than the data (a learning-rate history): a law's basis decides how it reads them.
Covariates = Array | Mapping[str, Array]


@dataclass(frozen=True)
class Law:
    """A parametric curve, as data.

    Attributes:
        name: short name, as typed on the command line.
        formula: the equation, for people.
        params: parameter names in the published order.
        shapes: the nonlinear ones, positive, searched as logarithms, in the order `basis` reads them.
        coefs: the linear ones, solved and never searched, in the order of the columns of `basis`.
        bounds: x -> (n_shapes, 2), low and high of each shape: the range that data at x can tell apart.
        source: paper and section.
        basis: (shape (n_shapes,), x) -> (point, coef), for separable laws.
        curve: (shape (n_shapes,), x) -> (point,), for laws that do not separate; then `coefs` is empty.
        covariates: names of what x holds; with more than one, x is a mapping.
        decreasing_coefs: coefficients that are positive when the curve falls as the law says it should.
        params_from_raw: maps {solved name: value} to the published constants, where these differ from shapes and coefs.
        starts: how many starts the general solver spreads over the box of shapes.
    """

    name: str
    formula: str
    params: tuple[str, ...]
    shapes: tuple[str, ...]
    coefs: tuple[str, ...]
    bounds: Callable[[Covariates], Array]
    source: str
    basis: Callable[[Array, Covariates], Array] | None = None
    curve: Callable[[Array, Covariates], Array] | None = None
    covariates: tuple[str, ...] = ("x",)
    decreasing_coefs: tuple[str, ...] = ()
    params_from_raw: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None
    starts: int = 4

    def __post_init__(self) -> None:
        if (self.basis is None) == (self.curve is None):
            raise ValueError(f"law {self.name}: give either basis (separable) or curve (not separable), not both")
        if self.curve is not None and self.coefs:
            raise ValueError(f"law {self.name}: a law with curve= has no linear coefs, found {self.coefs}")
        if self.params_from_raw is None and sorted(self.params) != sorted(self.raw_params):
            raise ValueError(f"law {self.name}: params {self.params} are not its shapes and coefs {self.raw_params}")

    @property
    def raw_params(self) -> tuple[str, ...]:
        """Names of what a solver finds: shapes, then coefficients."""
        return self.shapes + self.coefs

    def evaluate(self, shape: Array, coef: Array, x: Covariates) -> Array:
        """The curve (point,) at x, from shapes (n_shapes,) and coefficients (n_coefs,)."""
        if self.basis is not None:
            return self.basis(shape, x) @ coef
        assert self.curve is not None  # by __post_init__
        return self.curve(shape, x)

    def __call__(self, x: Covariates, **values: float) -> Array:
        """The curve at x for values of the solved parameters, by name: `HYPERBOLIC(i, a0=3.0, a1=0.5, a2=2.0)`.

        Raises:
            ValueError: if names are missing or unknown.
        """
        if sorted(values) != sorted(self.raw_params):
            raise ValueError(f"law {self.name}: expected values for {self.raw_params}, found {tuple(values)}")
        shape = jnp.stack([jnp.asarray(values[name], float) for name in self.shapes])
        coef = jnp.asarray([values[name] for name in self.coefs], float)
        return self.evaluate(shape, coef, x)

    def to_params(self, solved: Array) -> Array:
        """The parameters (param,) in published order, from the solved values (solved,)."""
        values = dict(zip(self.raw_params, solved, strict=True))
        published = values if self.params_from_raw is None else self.params_from_raw(values)
        return jnp.stack([published[name] for name in self.params])
