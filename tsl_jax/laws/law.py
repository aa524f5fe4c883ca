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
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

# The points where a law is evaluated: one array for a single covariate, else a mapping of named covariates. Arrays of a
# mapping may be longer than the data (a learning-rate history): a law's basis decides how it reads them.
Covariates = ArrayLike | Mapping[str, ArrayLike]
Values = Mapping[str, Any]  # parameters by name


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
        covariates: names of what x holds; with more than one, x is a mapping. A law of ("x",) reads any dimension.
        decreasing_coefs: coefficients that are positive when the curve falls as the law says it should.
        params_from_raw, raw_from_params: between {raw name: value} and {published name: value}, where the published
            constants differ from shapes and coefs.
        shift: (shape, x0) -> factors (n_coefs,) by which the coefficients of f(x) become those of f(x - x0), for laws
            that are the same after a shift of x; their params are their shapes and coefs.
        covariate_params: (covariate, the raw parameters that it alone determines), for laws whose covariates must vary,
            each by itself; data in which they do not get a status.
        starts: how many starts the general solver spreads over the box of shapes.
        reference: (parameter, value) as the paper gives them, in the units of `covariates`; read as `published`.
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
    params_from_raw: Callable[[Values], Values] | None = None
    raw_from_params: Callable[[Values], Values] | None = None
    shift: Callable[[Array, float], Array] | None = None
    covariate_params: tuple[tuple[str, tuple[str, ...]], ...] = ()
    starts: int = 4
    reference: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if (self.basis is None) == (self.curve is None):
            raise ValueError(f"law {self.name}: give either basis (separable) or curve (not separable), not both")
        if self.curve is not None and self.coefs:
            raise ValueError(f"law {self.name}: a law with curve= has no linear coefs, found {self.coefs}")
        if not callable(self.bounds):
            wanted = "bounds must be a function x -> (n_shapes, 2) of the least and greatest value of each shape"
            example = "bounds=lambda x: jnp.array([[0.1, 10.0]])"
            raise ValueError(f"law {self.name}: {wanted}, found {self.bounds!r}; write {example}")
        if self.params_from_raw is None and sorted(self.params) != sorted(self.raw_params):
            raise ValueError(f"law {self.name}: params {self.params} are not its shapes and coefs {self.raw_params}")

    def check(self, x: Covariates) -> None:
        """Nothing, where the law can be read at x.

        Raises:
            ValueError: for bounds, basis or curve that fail there, or whose shapes do not fit the names.
        """
        shape = jnp.ones(len(self.shapes))
        bounds = self._shape_of("bounds", self.bounds, x)
        if bounds != (len(self.shapes), 2):
            wanted = f"bounds(x) must be an array (n_shapes, 2), here {(len(self.shapes), 2)}"
            raise ValueError(f"law {self.name}: {wanted}, found the shape {bounds}")
        if self.basis is None:
            assert self.curve is not None  # by __post_init__
            if len(found := self._shape_of("curve", self.curve, shape, x)) != 1:
                raise ValueError(f"law {self.name}: curve(shape, x) must give (point,), found the shape {found}")
            return
        found = self._shape_of("basis", self.basis, shape, x)
        if len(found) != 2 or found[1] != len(self.coefs):
            wanted = f"basis(shape, x) must give (point, coef), a column for each of {self.coefs}"
            raise ValueError(f"law {self.name}: {wanted}, found the shape {found}")

    def _shape_of(self, part: str, function: Callable[..., Any], *arguments: Any) -> tuple[int, ...]:
        try:
            return jax.eval_shape(function, *arguments).shape
        except Exception as error:  # whatever the user's function raises
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"law {self.name}: its {part} fails: {type(error).__name__}: {reason}") from error

    @property
    def published(self) -> dict[str, float]:
        """The paper's own values of the parameters, `law(x, law.published)`; empty where it gives none."""
        return dict(self.reference)

    @property
    def raw_params(self) -> tuple[str, ...]:
        """Names of what a solver finds: shapes, then coefficients."""
        return self.shapes + self.coefs

    def evaluate(
        self, shape: Float[Array, " shape"], coef: Float[Array, " coef"], x: Covariates
    ) -> Float[Array, " point"]:
        """The curve (point,) at x, from shapes (n_shapes,) and coefficients (n_coefs,)."""
        if self.basis is not None:
            return self.basis(shape, x) @ coef
        assert self.curve is not None  # by __post_init__
        return self.curve(shape, x)

    def __call__(self, x: Covariates, params: Any = None, /, **values: Any) -> Float[Array, " point"]:
        """The curve at x, from published or from raw parameters by name.

        Args:
            x: where, as `covariates` says.
            params: the parameters as a mapping, or as a DataArray of dimension `param` such as `fit.params` of one
                curve. values: the same by keyword, `HYPERBOLIC(i, a0=3.0, a1=0.5, a2=2.0)`.

        Raises:
            ValueError: if names are missing or unknown.
        """
        if params is not None:
            values = {**dict(params.to_series() if hasattr(params, "to_series") else params), **values}
        raw = values
        if set(values) != set(self.raw_params) and set(values) == set(self.params) and self.raw_from_params:
            raw = self.raw_from_params(values)
        elif set(values) != set(self.raw_params):
            names = " or ".join(str(names) for names in dict.fromkeys((self.params, self.raw_params)))
            raise ValueError(f"law {self.name}: expected values for {names}, found {tuple(values)}")
        shape, coef = (
            jnp.asarray([jnp.asarray(raw[name], float) for name in names], float) for names in (self.shapes, self.coefs)
        )
        return self.evaluate(shape, coef, x)

    def origin(self, x: Any) -> float:
        """Where a fit measures x from: zero, or, for laws with `shift`, the least x if it is far from zero."""
        if self.shift is None:
            return 0.0
        points = jax.device_get(x)
        least, greatest = float(points.min()), float(points.max())
        return least if least < 0 or least > greatest - least else 0.0

    def to_params(self, raw: Float[Array, " raw_param"]) -> Float[Array, " param"]:
        """The parameters (param,) in published order, from shapes and coefficients (raw_param,)."""
        values = dict(zip(self.raw_params, raw, strict=True))
        published = values if self.params_from_raw is None else self.params_from_raw(values)
        return jnp.stack([published[name] for name in self.params])
