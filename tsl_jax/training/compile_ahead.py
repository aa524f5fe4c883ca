"""The training step compiled for devices that this machine does not have: memory, kernels and collectives.

XLA compiles for a described topology (`jax.experimental.topologies`): an H100 needs jax's CUDA plugin but no driver, a
TPU needs libtpu. What is compiled is the step that `train` runs, so that what the compiler allots is what a device will
be asked for. Nothing runs: speeds are estimates from FLOPs alone, and on a GPU products are not autotuned, so that
which of them become library calls can differ from a run.
"""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tsl_jax.models.build import abstract
from tsl_jax.models.config import SIZES, ModelConfig, resolve
from tsl_jax.models.sharding import AXES, platform_of, shardings
from tsl_jax.training import mesh as meshes
from tsl_jax.training.config import MeshConfig, OptimizerConfig
from tsl_jax.training.optimizer import adamw, lr_plan
from tsl_jax.training.step import TrainState, make_step

FLASH_FROM = 1024  # positions from which on attention must be a kernel that makes no scores of T x T
MOST_DEVICES = 65_536  # several times the largest pod; each is described in memory
KERNELS = {"gpu": "fmhaSoftmax", "tpu": "tpu_custom_call"}  # in the names of calls: cuDNN's flash kernel, splash's
COLLECTIVES = re.compile(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
# How XLA writes some of them for a TPU: a gather as the sum of arrays that are zero but for one's own part, and
# gathers or scattered sums as loops of a product that pass the parts on meanwhile.
SUMMED_PARTS = re.compile(r" all-reduce(?:-start)?\([^)]*%dynamic-update-slice")
IN_PRODUCTS = re.compile(r"%(?:wide\.)?(windowed_dot_general_body_(ag|rs)[.\w]*)")
REMATERIALISED = re.compile(r"[^\n]*[Ii]nvoluntary full rematerialization[^\n]*")

# An H100 SXM as XLA describes it; figures from NVIDIA's data sheet and CUDA's programming guide (compute capability 9).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Accelerator:
    """A kind of device, by its maker's data sheet."""

    platform: str  # "gpu" or "tpu"
    memory: float  # bytes
    peak: float  # FLOP/s of dense bfloat16 products
    extra: str  # of this package, which installs its compiler


ACCELERATORS = {
    "h100": Accelerator("gpu", 80e9, 989e12, "cuda"),
    "v5e": Accelerator("tpu", 16e9, 197e12, "tpu"),
    "v5p": Accelerator("tpu", 95e9, 459e12, "tpu"),
}


@dataclass(frozen=True)
class CompiledStep:
    """What the compiler says of a step; bytes are those of one device."""

    device_kind: str
    accelerator: Accelerator
    mesh: dict[str, int]  # devices along data, fsdp and tensor
    argument_bytes: int  # parameters, the optimizer's state and a batch
    temporary_bytes: int  # activations, gradients, logits of a chunk
    kernels: dict[str, int]  # calls of libraries, by name
    collectives: dict[str, int]  # of them, "in products": done by a loop that multiplies meanwhile
    problems: tuple[str, ...]  # a sentence each; none where the program is as it should be
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether arguments and temporaries are within the memory of a device."""
        return self.argument_bytes + self.temporary_bytes <= self.accelerator.memory


def parse_devices(text: str) -> tuple[str, tuple[int, ...]]:
    """ "h100x8" -> ("h100", (8,)), "v5p:4x4x4" -> ("v5p", (4, 4, 4)).

    Raises:
        ValueError: for anything else.
    """
    match = re.fullmatch(r"(h100)(?:x(\d+))?|(v5e|v5p):(\d+(?:x\d+){1,2})", text)
    sizes = tuple(int(n) for n in (match[2] or match[4] or "1").split("x")) if match else ()
    if match is None or min(sizes) < 1:
        raise ValueError(f"fits: devices are written h100, h100x8, v5e:4x4 or v5p:4x4x4, found {text!r:.60}")
    if math.prod(sizes) > MOST_DEVICES:
        raise ValueError(f"fits: --devices are at most {MOST_DEVICES:,}, found {text!r:.60}; give fewer")
    return match[1] or match[3], sizes


def make_mesh(devices: str, config: MeshConfig | None = None) -> Mesh:
    """A mesh of described devices; all of them along fsdp where no mesh is given.

    Raises:
        ValueError: for unknown devices, a mesh that does not fit them, or a compiler that is not installed.
    """
    name, sizes = parse_devices(devices)
    n = math.prod(sizes)
    shape = (1, n, 1) if config is None else meshes.shape(config, n)
    accelerator = ACCELERATORS[name]
    try:
        with _standard_error():  # libtpu writes of a network that it does not find
            described = _topology(accelerator.platform, devices, n)
    except Exception as error:  # which one depends on what is missing
        install = f'pip install "tsl_jax[{accelerator.extra}]"'
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"fits: no compiler for {name} works here ({reason}); {install} installs it") from error
    used = np.asarray(described[: math.prod(shape)]).reshape(shape)
    return Mesh(used, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _topology(platform: str, devices: str, n: int) -> Any:
    """The devices of a topology, described and not opened."""
    from jax.experimental import topologies

    if platform == "gpu":
        import jax_plugins.xla_cuda12  # noqa: F401  # pyright: ignore[reportMissingImports]

        jax.devices("cpu")  # loads the plugins, which is all that is needed of them
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=f"1x{n}x1", target_config=_H100
        ).devices
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu looks for a cloud machine's metadata for minutes
    return topologies.get_topology_desc(platform="tpu", topology_name=devices).devices


def compile_step(
    config: ModelConfig, batch_size: int, mesh: Mesh, accelerator: Accelerator, accumulate: int = 1
) -> CompiledStep:
    """Compile one training step of a model for the devices of a mesh.

    Args:
        config: with its vocabulary and context. batch_size: sequences of all devices together.
        mesh: from `make_mesh`. accelerator: the kind of its devices. accumulate: microbatches of a step.

    Raises:
        ValueError: for a config that is no model, or a batch that the devices cannot share evenly.
    """
    config, platform = resolve(config), platform_of(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (parts * accumulate):
        raise ValueError(
            f"fits: {batch_size} sequences do not divide over {parts} devices x {accumulate} microbatches; change one"
        )
    graphdef, params = abstract(config, platform)
    batch_tokens, defaults = batch_size * config.context, OptimizerConfig()
    optimizer = adamw(defaults, lr_plan(defaults, 1000, batch_tokens), batch_tokens)
    step = make_step(graphdef, optimizer, np.ones(config.context), 1, accumulate, platform=platform)

    def placed(tree: Any) -> Any:
        leaf = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
        return jax.tree.map(leaf, tree, shardings(tree, mesh))

    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    state = TrainState(placed(params), placed(jax.eval_shape(optimizer.init, params)), count)
    tokens = jax.ShapeDtypeStruct((batch_size, config.context + 1), jnp.int32, sharding=meshes.batch_sharding(mesh))
    start = time.perf_counter()
    # One device is traced as a run on one device is: without a mesh.
    with meshes.traced_on(mesh if mesh.size > 1 else None), _standard_error() as said:
        compiled = _compile(step.lower(state, tokens))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kernels = Counter(re.findall(r'custom_call_target="([^"]+)"', text))
    collectives = _collectives(text)
    return CompiledStep(
        device_kind=mesh.devices.flat[0].device_kind,
        accelerator=accelerator,
        mesh=dict(mesh.shape),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        kernels=dict(kernels),
        collectives=dict(collectives),
        problems=tuple(_problems(config, platform, mesh, text, kernels, collectives, said)),
        compile_seconds=time.perf_counter() - start,
    )


def _compile(lowered: Any) -> Any:
    """The compiled step. The compiler of TPUs plans no program that is larger than their memory."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("RESOURCE_EXHAUSTED:")[2].strip().partition("\n")[0]
        advice = "take more devices, a smaller batch, --accumulate or --remat full"
        raise ValueError(f"fits: DOES NOT FIT, the compiler says: {reason} {advice}") from error


def _collectives(text: str) -> Counter[str]:
    """How many of which collectives a compiled program has."""
    count = Counter(COLLECTIVES.findall(text))
    loops = Counter(kind for _, kind in set(IN_PRODUCTS.findall(text)))
    more = {"all-gather as all-reduce": len(SUMMED_PARTS.findall(text))}
    more |= {"all-gather in products": loops["ag"], "reduce-scatter in products": loops["rs"]}
    return count + Counter(more)  # without those that are zero


def _problems(
    config: ModelConfig,
    platform: str,
    mesh: Mesh,
    text: str,
    kernels: Counter[str],
    collectives: Counter[str],
    said: list[str],
) -> Iterator[str]:
    """Sentences on what a fast program on these devices would not have, or would have and this one has not."""
    attends = "n_heads" in SIZES[config.architecture]
    if attends and config.context >= FLASH_FROM and not any(KERNELS[platform] in name for name in kernels):
        yield f"attention over {config.context} positions is no flash kernel: its scores are kept"
    if re.search(r"\bf64\[", text):
        yield "something is computed in float64"
    rematerialised = REMATERIALISED.findall("\n".join(said))
    if rematerialised:
        first = rematerialised[0].strip()[:200]
        yield f"{len(rematerialised)} arrays are gathered whole to change their layout: {first}"
    if mesh.shape["fsdp"] > 1 and not any(name.startswith("all-gather") for name in collectives):
        yield "parameters are split over fsdp, but nothing gathers them"
    if collectives["all-gather as all-reduce"]:
        yield "parameters are gathered by sums, which move twice the bytes of a gather: ask for fewer parts, --fsdp N"
    if mesh.shape["fsdp"] > 1 and not any(name.startswith(("reduce-scatter", "all-reduce")) for name in collectives):
        yield "gradients are split over fsdp, but nothing adds them up"
    if mesh.shape["data"] > 1 and not collectives["all-reduce"]:
        yield "the batch is split over data, but nothing adds gradients up"


@contextmanager
def _standard_error() -> Iterator[list[str]]:
    """What C++ code writes to standard error inside, as lines: XLA says there what it had to gather whole."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines.extend(file.read().decode(errors="replace").splitlines())
