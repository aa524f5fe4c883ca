"""What all tests share: one table of tolerances, and simulated surfaces whose truth is known."""

import gc
import os
from collections.abc import Iterator

import jax
import jaxtyping
import numpy as np
import optax
import pytest
import xarray as xr

# Most of the time of these tests is LLVM's, for programs that then run for milliseconds: without its optimisation, and
# with XLA's older way of writing loops, half of the processor time is saved. What XLA itself does to a program is the
# same. jax reads this with its first array; child processes inherit it. Programs as users have them, in the tests:
# XLA_FLAGS=--xla_backend_optimization_level=3. Later compilers end the process at the second flag: they lack it.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    flags = ["--xla_backend_optimization_level=0"]
    flags += ["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()

FAST_PROGRAMS = "fusion_emitters=false" in os.environ["XLA_FLAGS"]

# Shapes and types of arguments and results are checked at every call of these packages; before they are imported.
CHECKED = ("laws", "fitting", "diagnostics", "surface", "models")
jaxtyping.install_import_hook([f"tsl_jax.{name}" for name in CHECKED], "typechecking.check")

import tsl_jax as tsl  # noqa: E402

# An array that takes another rank without being asked is an error. The library itself sets no global option.
jax.config.update("jax_numpy_rank_promotion", "raise")
# So is another dtype, where models and training decide about precision. Laws and fits take whole numbers and float32
# data among float64 parameters, promoted as documented, and jaxopt mixes dtypes itself: nothing would be gained there.
STRICT_DTYPES = ("test_models_", "test_training_")


# Files of a minute and more begin first, or one of them ends alone; others keep their order. With xdist this takes
# --no-loadscope-reorder, see the Makefile: by itself it begins the files of most tests, however short.
LONGEST = (
    *("test_training_mesh", "test_end_to_end", "test_curve_tables", "test_fitting_solver", "test_models_architectures"),
    *("test_training_weights", "test_training_changes", "test_training_safety", "test_sweeps", "test_nist"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    later = pytest.mark.skip(reason="two programs differ in a last bit under the fast settings: make test-slow runs it")
    for item in items:
        if FAST_PROGRAMS and item.get_closest_marker("exact_bits") is not None:
            item.add_marker(later)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not go through it again and again, 3% of the time."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _dtypes_as_written(request: pytest.FixtureRequest) -> Iterator[None]:
    """No implicit promotion of dtypes in the modules of STRICT_DTYPES."""
    if not request.module.__name__.startswith(STRICT_DTYPES):
        yield
        return
    correct = optax.tree.bias_correction  # writes 1 - decay**count with a float and an int32: standard promotion there
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("strict"):
        patch.setattr(optax.tree, "bias_correction", jax.numpy_dtype_promotion("standard")(correct))
        yield


@pytest.fixture(autouse=True)
def _wrong_types_reach_the_library(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked `wrong_types` gives what no annotation allows, to see the library's own sentence."""
    marked = request.node.get_closest_marker("wrong_types") is not None
    jaxtyping.config.update("jaxtyping_disable", marked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Why each number: see the right column. Tests name the row they need.
TOLERANCE = {
    "algebra": 1e-10,  # float64 linear algebra on a few hundred points
    "solver": 1e-6,  # two solvers at one optimum, relative SSE; parameters of a noise-free curve
    "float32": 1e-4,  # a float32 model: reductions over hundreds of terms
}


@pytest.fixture(autouse=True, scope="session")
def _caches_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared text and compiled programs are kept for this session, child processes included; never the user's own."""
    # Workers side by side share what they compile; a largest size makes jax lock the folder.
    session = tmp_path_factory.getbasetemp()
    programs = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "programs"
    settings = {
        "jax_compilation_cache_dir": str(programs),
        "jax_compilation_cache_max_size": 8 << 30,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSL_JAX_CACHE", str(tmp_path_factory.mktemp("corpora")))
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    return TOLERANCE


TOTAL = 2_500_000
PLAN = {"kind": "cosine", "peak": 5e-3, "warmup_tokens": 50_000, "total_tokens": TOTAL, "final_ratio": 0.1}


def token_grid() -> np.ndarray:
    """Checkpoints as a run has them: two in the warm-up, log-spaced early, even later."""
    parts = [[16_384, 32_768], np.geomspace(60_000, 0.1 * TOTAL, 9), np.linspace(0.1 * TOTAL, TOTAL, 21)]
    return np.unique(np.concatenate(parts).astype(int))


def planted(tokens: np.ndarray, position: np.ndarray, a2: str = "reciprocal") -> np.ndarray:
    """A surface (tokens, position) that follows the laws exactly: a0 logarithmic, a1 reciprocal, a2 as named."""
    a0 = 0.1 * np.log1p(1e-5 * tokens) + 0.8
    a1 = 0.1 + 0.2 / (1 + 3e-6 * tokens)
    forms = {"reciprocal": 4.0 / (1 + 5e-6 * tokens) + 3.5, "power": 60 * tokens**-0.3 + 2.5}
    return a0[:, None] / (1 + a1[:, None] * position) + forms[a2][:, None]


def simulate(a2: str) -> xr.Dataset:
    """Two splits of the planted surface with a constant plan and a little noise, id and ood."""
    tokens, position = token_grid(), np.arange(1, 65)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((2, len(tokens), len(position)))
    loss = planted(tokens, position, a2) + np.array([0.0, 0.5])[:, None, None] + noise
    plan = {**PLAN, "kind": "constant"}
    return tsl.from_losses(loss, tokens=tokens, split=["id", "ood"], schedule=plan, run="simulated")


@pytest.fixture(scope="session")
def simulated() -> xr.Dataset:
    """a2 reciprocal, as the route of separate temporal laws has it."""
    return simulate("reciprocal")
