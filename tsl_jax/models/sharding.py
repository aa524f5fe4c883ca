"""How a model lies on a mesh of devices with the axes (data, fsdp, tensor): one table for all architectures.

Sequences are split over data and fsdp. Matrices are split over fsdp (each device keeps a part and gathers the rest
when a layer runs; ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054) and over tensor (each device computes a part of the
columns or rows; Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053). Nothing here does anything without a mesh: the
functions ask jax for the one that is set where a program is traced (`jax.set_mesh`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

T = TypeVar("T")
AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Name of a parameter -> the axes that split its last dimensions; those before (layers, experts) stay whole.
RULES: dict[str, P] = {
    "embedding": P("tensor", "fsdp"),  # (V, D)
    "unembedding": P("tensor", "fsdp"),
    "place": P(None, "fsdp"),  # (C, D): learned positions
    "qkv": P("fsdp", "tensor"),  # into the heads
    "out": P("tensor", "fsdp"),  # and back
    "gate_up": P("fsdp", "tensor"),  # into the feed-forward layer, or into each of the experts
    "up": P("fsdp", "tensor"),
    "down": P("tensor", "fsdp"),
    "qkv_bias": P("tensor"),
    "up_bias": P("tensor"),
    "input": P("fsdp", None),  # of LSTM cells, whose four gates meet in every column: no part of the work is apart
    "recurrent": P("fsdp", None),
    "projection": P("fsdp", None),
    # What follows is small, and kept whole by every device.
    "scale": P(),
    "bias": P(),
    "out_bias": P(),
    "down_bias": P(),
    "router": P(),
    "depth": P(),
}


def platform_of(mesh: Mesh | None) -> str:
    """ "cpu", "gpu" or "tpu": where programs for this mesh run; without a mesh on jax's default device.

    Code for one platform is chosen by this, and passed down, so that a program can be compiled for devices that this
    machine does not have.
    """
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def specification(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """How one leaf of a tree is split; what has no rule, as the optimizer's counts, stays whole.

    Args:
        path: of the leaf in the parameters, or in any tree that holds the same names, as the optimizer's state does.
        shape: of the leaf; a dimension that a mesh axis does not divide stays whole.
    """
    rule = RULES.get(str(getattr(path[-1], "key", "")) if path else "", P())
    before = len(shape) - len(rule)
    if before < 0:
        return P()
    return P(*(None,) * before, *(_if_divides(axis, n, mesh) for axis, n in zip(rule, shape[before:], strict=True)))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a tree of arrays or their shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, specification(path, leaf.shape, mesh)), tree
    )


def constrain_tree(tree: Any) -> Any:
    """The same tree, its leaves split as the table says, inside a program."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(leaf, specification(path, leaf.shape, mesh)), tree
    )


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """The same array inside a program, split over these mesh axes (None: whole), but those that do not divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = P(*(_if_divides(axis, n, mesh) for axis, n in zip(axes, x.shape, strict=True)))
    return jax.lax.with_sharding_constraint(x, spec)


def by_device(f: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], *axes: Any) -> jax.Array:
    """f(*arrays) inside a program, each device with its own part: for kernels that XLA cannot split by itself.

    Args:
        f: gives an array that is split as its arguments are.
        arrays: of one rank. axes: that split them; None: whole; one that does not divide an array is left out for all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return f(*arrays)
    sizes = zip(axes, zip(*(x.shape for x in arrays), strict=True), strict=True)
    spec = P(*(axis if all(_if_divides(axis, n, mesh) for n in lengths) else None for axis, lengths in sizes))
    return jax.shard_map(f, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(*arrays)


def residual(x: T) -> T:
    """The residual stream (B, T, D), or a tree that holds it: each device has its own sequences, whole."""
    return jax.tree.map(lambda leaf: constrain(leaf, BATCH, None, None) if leaf.ndim == 3 else leaf, x)


def gathered(w_VxD: jax.Array) -> jax.Array:
    """An embedding as it is used: whole along D, so that looking up a token moves no activations."""
    return constrain(w_VxD, "tensor", None)


def batch_parts(n: int) -> int:
    """In how many parts n sequences lie on the mesh; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    axis = None if mesh.empty else _if_divides(BATCH, n, mesh)
    return 1 if axis is None else _size(axis, mesh)


def data_parts() -> int:
    """Devices along the axis data of the mesh; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"]


def mean_over_data(means: Callable[[Any, jax.Array, jax.Array], Any]) -> Callable[[Any, jax.Array, jax.Array], Any]:
    """The same function inside a program, called by each part of the axis data for its own sequences, then averaged.

    Where a tree of means over sequences has what is no such mean, as the square of a gradient, the average is that of
    parts of B / data sequences.

    Args:
        means: of parameters, batch (B, N) and key; data divides B. Each part has a key of its own.
    """

    def of_part(params: Any, batch_MxN: jax.Array, key: jax.Array) -> Any:
        tree = means(params, batch_MxN, jax.random.fold_in(key, jax.lax.axis_index("data")))
        return jax.lax.pmean(tree, "data")

    # The other axes stay with the compiler. Unchecked, as gradients of a part are wanted: checked, jax adds them up.
    return jax.shard_map(of_part, in_specs=(P(), P("data"), P()), out_specs=P(), axis_names={"data"}, check_vma=False)


def _if_divides(axis: Any, n: int, mesh: Mesh | AbstractMesh) -> Any:
    """The axis, or axes, if they divide n; without those that `mean_over_data` has split already."""
    if axis is None:
        return None
    left = tuple(name for name in (axis if isinstance(axis, tuple) else (axis,)) if name not in mesh.manual_axes)
    if not left or n % _size(left, mesh):
        return None
    return left if isinstance(axis, tuple) else axis


def _size(axis: Any, mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[name] for name in (axis if isinstance(axis, tuple) else (axis,)))
