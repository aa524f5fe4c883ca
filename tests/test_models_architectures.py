"""What every architecture must do: see no future, run in two ways, learn, and cost what the formulas say."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tsl_jax.models import build as model_build
from tsl_jax.models.build import ARCHITECTURES, abstract, unembedding
from tsl_jax.models.config import SIZES, ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token, flops_per_token_6n, n_params, n_params_active, n_params_embedding
from tsl_jax.training.config import OptimizerConfig
from tsl_jax.training.optimizer import adamw, lr_plan
from tsl_jax.training.resources import memory
from tsl_jax.training.step import StepFunction, TrainState, initial_state, make_step

TINY = {
    name: ModelConfig(preset="tiny", architecture=name, vocabulary=50, context=40, layers="unroll")
    for name in ARCHITECTURES
}
TINY["gpt_neox"] = replace(TINY["gpt_neox"], tied=False)
FLOAT32 = 1e-4  # float32 model: sums of a few hundred terms in another order
T = 17
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)

# Loss of step 20 on one batch, as `trained` gives it; made with jax 0.10.2 on an x86-64 CPU. All digits stay with one
# core or two and with more optimisation by XLA; the tolerance allows for other processors and versions.
GOLDEN = {"llama": 2.386283, "gpt_neox": 2.216838, "moe": 2.387700, "lstm": 3.253110, "universal": 2.537439}
GOLDEN_TOLERANCE = 2e-4

# Last entry of every parameter that is drawn at random, of seed 0, untied. Checkpoints and runs depend on the names and
# on the order of the draws; scales and biases are constants.
INITIAL = {
    "llama": """attention.out -0.0011672 attention.qkv -0.0201068 mlp.down 0.0000131 mlp.gate_up 0.0022162
        embedding 0.0147792 unembedding 0.0174059""",
    "gpt_neox": """attention.out -0.0011672 attention.qkv -0.0201068 mlp.down -0.0135665 mlp.up 0.0050929
        embedding 0.0147792 unembedding 0.0174059""",
    "moe": """attention.out -0.0011672 attention.qkv -0.0201068 mlp.down -0.0049832 mlp.gate_up 0.0238077
        mlp.router -0.0100561 embedding 0.0147792 unembedding 0.0174059""",
    "lstm": "input 0.1118910 recurrent -0.2444306 embedding 0.0147792 projection -0.1584639 unembedding -0.0012310",
    "universal": """attention.out -0.0140357 attention.qkv -0.0049142 mlp.down -0.0015806 mlp.gate_up -0.0049544
        depth 0.0186712 embedding 0.0147792 unembedding -0.0012310""",
}

QUICK = {"xla_backend_optimization_level": 0}  # compiling is what takes the time here

hidden_and_auxiliary = jax.jit(model_build.hidden_and_auxiliary, static_argnums=0, compiler_options=QUICK)


def hidden(graphdef: nnx.GraphDef, params: dict, x: np.ndarray) -> jax.Array:
    return hidden_and_auxiliary(graphdef, params, x)[0]


def tokens(batch: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50, (batch, n)).astype(np.int32)


def model(config: ModelConfig) -> tuple[nnx.GraphDef, dict]:
    """The model with parameters large enough that no branch is silent; quicker than the initial ones."""
    rng = np.random.default_rng(1)
    graphdef, shapes = abstract(config)
    params = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)
    return graphdef, jax.tree_util.tree_map_with_path(lambda path, p: p + (path[-1].key == "scale"), params)


@functools.cache
def stepper(name: str, dropout: float = 0.0, seed: int = 0) -> tuple[StepFunction, TrainState]:
    """The training step of a tiny model, and its first state."""
    graphdef, _ = abstract(replace(TINY[name], dropout=dropout, layers="scan"))
    _, params = model_build.build(TINY[name], 0)
    config = OptimizerConfig(peak_lr=3e-3, schedule="constant")
    optimizer = adamw(config, lr_plan(config, 100, 4 * T), 4 * T)
    state = initial_state(params, optimizer)
    step = make_step(graphdef, optimizer, np.ones(T), seed=seed).lower(state, tokens(4, T + 1))
    return step.compile(compiler_options=QUICK), state


@functools.cache
def trained(name: str) -> tuple[TrainState, TrainState, list[dict[str, float]]]:
    """The states after the first and the last of 150 steps on one batch, and the metrics of all."""
    step, state = stepper(name)
    metrics, first = [], None
    state = jax.tree.map(jnp.copy, state)  # the step takes its state for itself
    for _ in range(150):
        state, values = step(state, tokens(4, T + 1))
        first = first or jax.device_get(state)
        metrics.append({key: float(value) for key, value in values.items()})
    return first, state, metrics


@each_architecture
def test_a_seed_gives_the_parameters_that_it_always_gave(name: str) -> None:
    _, params = model_build.build(replace(TINY[name], tied=False), 0)
    last = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = [key.key for key in path]
        if keys[-1] != "scale" and "bias" not in keys[-1]:
            last[".".join(keys).removeprefix("blocks.")] = float(leaf.ravel()[-1])
    words = INITIAL[name].split()
    expected = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert last == {key: pytest.approx(value, abs=1e-7) for key, value in expected.items()}


@each_architecture
def test_future_does_not_change_past_hidden_states(name: str) -> None:
    (graphdef, params), before = model(TINY[name]), tokens(2, 40)
    for place in (1, 33, 39):
        after = before.copy()
        after[:, place:] = (after[:, place:] + 1) % 50
        h, changed = hidden(graphdef, params, before), hidden(graphdef, params, after)
        np.testing.assert_allclose(h[:, :place], changed[:, :place], atol=FLOAT32)
        assert np.abs(h[:, place] - changed[:, place]).max() > 0.01


@each_architecture
def test_scanned_layers_equal_unrolled_ones(name: str) -> None:
    (unrolled, params), x = model(TINY[name]), tokens(2, 40)
    scanned, _ = abstract(replace(TINY[name], layers="scan"))
    np.testing.assert_allclose(hidden(scanned, params, x), hidden(unrolled, params, x), atol=FLOAT32)


@each_architecture
def test_bfloat16_activations_stay_close_and_parameters_stay_float32(name: str) -> None:
    graphdef, params = model(TINY[name])
    params = jax.tree.map(lambda p: 0.3 * p, params)
    low, shapes = abstract(replace(TINY[name], dtype="bfloat16", layers="scan"))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    h, h_low = hidden(graphdef, params, tokens(2, 40)), hidden(low, params, tokens(2, 40))
    assert h_low.dtype == jnp.bfloat16
    np.testing.assert_allclose(h_low.astype(np.float32), h, atol=0.15)


@each_architecture
def test_it_learns_one_batch_by_heart(name: str) -> None:
    losses = [metrics["loss"] for metrics in trained(name)[2]]
    assert losses[0] == pytest.approx(np.log(50), abs=0.2)
    assert losses[-1] < 0.5
    assert losses[19] == pytest.approx(GOLDEN[name], rel=GOLDEN_TOLERANCE)


@each_architecture
def test_every_parameter_of_every_layer_and_expert_gets_a_gradient(name: str) -> None:
    first = trained(name)[0]
    moments = optax.tree.get(first.opt_state, "mu")  # a tenth of the clipped gradient, after one step

    def check(path: Any, moment: np.ndarray) -> None:
        stacked = (path[0].key == "blocks") * (1 + (name == "moe" and path[-1].key in ("gate_up", "down")))
        largest = np.abs(moment).max(axis=tuple(range(stacked, moment.ndim)))
        assert (largest > 1e-9).all(), f"{jax.tree_util.keystr(path)}: {largest}"

    jax.tree_util.tree_map_with_path(check, moments)


def test_the_balancing_loss_is_reported_beside_the_cross_entropy() -> None:
    config = resolve(TINY["moe"])
    metrics = trained("moe")[2]
    assert all("auxiliary" not in trained(name)[2][0] for name in ARCHITECTURES if name != "moe")
    # 1 where experts are evenly busy, n_experts / experts_per_token at most where each token has the same ones
    assert all(0.9 < step["auxiliary"] / config.balance < 4 for step in metrics)
    graphdef, _ = abstract(TINY["moe"])
    params, x = stepper("moe")[1].params, tokens(4, T + 1)
    h, auxiliary = hidden_and_auxiliary(graphdef, params, x[:, :-1])
    logits = np.asarray(h) @ np.asarray(unembedding(params)).T
    at_target = np.take_along_axis(logits, x[:, 1:, None], 2)[..., 0]
    loss = (np.log(np.exp(logits).sum(-1)) - at_target).mean()
    assert metrics[0] == pytest.approx({**metrics[0], "loss": float(loss), "auxiliary": float(auxiliary)}, rel=1e-5)


@each_architecture
def test_dropout_acts_in_training_alone_and_is_a_function_of_seed_and_step(name: str) -> None:
    plain, params = model(replace(TINY[name], layers="scan"))
    (graphdef, _), x = abstract(replace(TINY[name], dropout=0.5, layers="scan")), tokens(2, 8)
    programs = [jax.make_jaxpr(model_build.hidden, static_argnums=0)(graph, params, x) for graph in (graphdef, plain)]
    assert str(programs[0]) == str(programs[1]), "evaluation must be the same program"
    first, again, other = (hidden_and_auxiliary(graphdef, params, x, jax.random.key(i))[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_a_step_with_dropout_can_be_made_again() -> None:
    losses = {}
    for case, seed, at in (("once", 0, 0), ("again", 0, 0), ("another step", 0, 1), ("another seed", 1, 0)):
        step, state = stepper("lstm", 0.1, seed)
        state = jax.tree.map(jnp.copy, state)._replace(step=jnp.asarray(at, jnp.int32))
        losses[case] = float(step(state, tokens(4, T + 1))[1]["loss"])
    assert losses["once"] == losses["again"]
    assert len(set(losses.values())) == 3


def test_ragged_experts_equal_dense_ones_in_value_and_gradient() -> None:
    """The dense way cannot drop a token, so neither does the ragged one."""
    results = []
    for kind in ("dense", "ragged"):
        graphdef, params = model(replace(TINY["moe"], experts=kind, n_layers=1))

        def objective(params: dict, graphdef: Any = graphdef) -> jax.Array:
            h, auxiliary = model_build.hidden_and_auxiliary(graphdef, params, tokens(2, 16))
            return jnp.sum(jnp.sin(h)) + auxiliary

        results.append(jax.jit(jax.value_and_grad(objective), compiler_options=QUICK)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *results)


def test_one_expert_is_the_dense_model() -> None:
    sizes = {"n_experts": 1, "experts_per_token": 1, "d_ff": 88}
    graphdef, params = model(replace(TINY["moe"], experts="ragged", n_layers=1, **sizes))
    dense, same = abstract(replace(TINY["llama"], n_layers=1, d_ff=88))
    blocks = {**params["blocks"], "mlp": {name: params["blocks"]["mlp"][name][:, 0] for name in ("down", "gate_up")}}
    params_dense = {**params, "blocks": blocks}
    assert jax.tree.structure(params_dense) == jax.tree.structure(same)
    x = tokens(2, 16)
    np.testing.assert_allclose(hidden(graphdef, params, x), hidden(dense, params_dense, x), atol=FLOAT32)


@each_architecture
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_equal_the_parameters(name: str, tied: bool) -> None:
    sizes = {} if name == "lstm" else {"d_model": 48, "n_heads": 6, "n_kv_heads": 2, "d_ff": 56}
    config = resolve(replace(TINY[name], **sizes, tied=tied, n_layers=3))
    _, params = abstract(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    outside = sum(params[part].size for part in ("embedding", "unembedding") if part in params)
    assert (n_params(config), n_params_embedding(config)) == (count - outside, outside)
    blocks = sum(leaf.size for leaf in jax.tree.leaves(params["blocks"]))
    experts = sum(params["blocks"]["mlp"][part].size for part in ("gate_up", "down")) if name == "moe" else 0
    repeated = 2 * blocks if name == "universal" else 0
    assert n_params_active(config) == count - outside - experts * 6 // 8 + repeated
    assert flops_per_token_6n(config) == 6 * n_params_active(config)


@each_architecture
def test_training_flops_equal_the_products_in_the_gradient(name: str) -> None:
    """Every product in the traced gradient is counted; full attention is what the trace has, causal what counts."""
    sizes = {} if name == "lstm" else {"d_model": 48, "n_heads": 6, "n_kv_heads": 2, "d_ff": 56}
    config = resolve(replace(TINY[name], **sizes, n_layers=3, attention="fused", experts="ragged"))
    (graphdef, params), x = abstract(config), tokens(2, T)

    def objective(params: dict) -> jax.Array:
        return jnp.sum(jnp.sin(model_build.hidden(graphdef, params, x) @ unembedding(params).T))

    matrices, attention = products(jax.make_jaxpr(jax.grad(objective))(params).jaxpr)
    counted = (matrices + attention * (T + 1) / (2 * T)) / x.size
    assert flops_per_token(config, context=T) == pytest.approx(counted, rel=1e-9)


def products(jaxpr: Any) -> tuple[float, float]:
    """FLOPs of a program's matrix products: of rows with a matrix, and of batches with each other (attention)."""
    total = np.zeros(2)
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars]
        inner = [x for v in equation.params.values() for x in (v if isinstance(v, tuple) else (v,))]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for part in inner:
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                total += times * np.array(products(getattr(part, "jaxpr", part)))
        if equation.primitive.name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            depth = np.prod([shapes[0][i] for i in contracted])
            total[int(bool(batch))] += 2 * depth * np.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name.startswith("ragged_dot"):
            (contracted, _), _ = equation.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
            depth = np.prod([shapes[0][i] for i in contracted])
            out = equation.outvars[0].aval.shape
            total[0] += 2 * depth * np.prod(out[-2:])  # each row meets one expert, whichever side has the experts
    return total[0], total[1]


@each_architecture
def test_the_estimated_memory_of_a_step_is_near_what_is_allotted(name: str) -> None:
    """So small a model, scanned, needs up to 1.4 times the estimate; see `estimate` for larger ones."""
    allotted = stepper(name)[0].memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
    config = model_build.for_platform(resolve(replace(TINY[name], context=T)), "cpu")
    share = sum(memory(config, 4, "cpu").values()) / (allotted.temp_size_in_bytes + allotted.argument_size_in_bytes)
    assert 0.65 < share < 1.2


def test_every_architecture_has_its_sizes() -> None:
    assert set(SIZES) == set(ARCHITECTURES)
