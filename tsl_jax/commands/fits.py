"""`tsl fits`: does a model train on devices that are not here? Its step is compiled for them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tsl_jax.training.config import MeshConfig

if TYPE_CHECKING:
    from tsl_jax.models.config import ModelConfig
    from tsl_jax.training.compile_ahead import CompiledStep


@dataclass(frozen=True)
class FitsCommand:
    """Compile the training step of a model for devices that this machine lacks: memory, kernels, collectives, time.

    Nothing is trained. It takes from half a minute to some minutes. --devices h100 needs the extra tsl_jax[cuda], which
    is some 5 GB, v5e and v5p need tsl_jax[tpu], .4 GB; neither needs a driver.
    """

    preset: str = "124m"
    """A preset of `tsl models`, or kaplan-LxD."""
    devices: str = "h100"
    """h100, h100x8, v5e:4x4, v5p:4x4x4: a kind of device, and how many of them, for TPUs along each axis of the pod."""
    batch: int = 64
    """Sequences of a step, over all devices."""
    context: int = 1024
    vocabulary: int = 50_304
    architecture: str = ""
    """llama, gpt_neox, moe, lstm or universal; that of the preset by default."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of activations."""
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    """What the backward pass makes again, see TrainConfig.model."""
    accumulate: int = 1
    """Microbatches of a step: less memory, the same gradient."""
    data: int = 0
    """Parts of a batch that are no parts of the parameters; 0: all devices that --fsdp and --tensor leave."""
    fsdp: int = 0
    """Parts of the parameters, and of the batch; 0: all devices that --data, at least 1, and --tensor leave."""
    tensor: int = 1
    """Parts of the parameters that share a batch."""
    tokens: float = 0.0
    """Tokens of the whole run, for its time; 0: twenty a parameter."""
    utilisation: float = 0.4
    """Share of the devices' peak that training is assumed to reach, for the time."""


def run_fits(command: FitsCommand) -> None:
    """Compile, and print what the compiler says.

    Raises:
        ValueError: for numbers that cannot be, or a compiler that is not installed.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # devices that are here are not opened
    from tsl_jax.models.config import ModelConfig, resolve
    from tsl_jax.training import compile_ahead

    for name in ("batch", "context", "vocabulary", "accumulate"):
        if getattr(command, name) < 1:
            raise ValueError(f"fits: --{name} must be at least 1, found {getattr(command, name)}")
    if not 0 < command.utilisation <= 1:
        raise ValueError(f"fits: --utilisation is a share between 0 and 1, found {command.utilisation}")
    config = resolve(
        ModelConfig(preset=command.preset, architecture=command.architecture, dtype=command.dtype, remat=command.remat),
        vocabulary=command.vocabulary,
        context=command.context,
    )
    kind, sizes = compile_ahead.parse_devices(command.devices)
    accelerator = compile_ahead.ACCELERATORS[kind]
    mesh = compile_ahead.make_mesh(command.devices, _mesh_config(command, math.prod(sizes)))
    step = compile_ahead.compile_step(config, command.batch, mesh, accelerator, command.accumulate)
    print("\n".join(_lines(command, config, step)))


def _mesh_config(command: FitsCommand, n_devices: int) -> MeshConfig:
    """The mesh that was asked for, with what is left of the devices along the axis that was not."""
    for name, least in (("data", 0), ("fsdp", 0), ("tensor", 1)):
        if getattr(command, name) < least:
            raise ValueError(f"fits: --{name} must be at least {least}, found {getattr(command, name)}")
    if command.fsdp:
        return MeshConfig(command.data, command.fsdp, command.tensor)
    data = command.data or 1
    return MeshConfig(data, max(n_devices // (data * command.tensor), 1), command.tensor)


def _lines(command: FitsCommand, config: ModelConfig, step: CompiledStep) -> list[str]:
    from tsl_jax.commands.models import TOKENS_PER_PARAMETER
    from tsl_jax.commands.progress import duration
    from tsl_jax.models.cost import flops_per_token, n_params, n_params_active, n_params_embedding

    accelerator, n_devices = step.accelerator, 1
    for size in step.mesh.values():
        n_devices *= size
    needed, flops = step.argument_bytes + step.temporary_bytes, flops_per_token(config)
    speed = command.utilisation * accelerator.peak * n_devices / flops
    tokens = command.tokens or TOKENS_PER_PARAMETER * min(n_params(config), n_params_active(config))
    layout = ", ".join(f"{axis} {size}" for axis, size in step.mesh.items())

    def counted(names: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(names.items())) or "none"

    return [
        f"{config.preset} ({config.architecture}), {n_params(config) + n_params_embedding(config):,} parameters, "
        f"{command.batch} x {config.context:,} tokens a step, {config.dtype}",
        f"on {n_devices} x {step.device_kind} ({layout}), compiled in {step.compile_seconds:.0f} s",
        f"{'FITS' if step.fits else 'DOES NOT FIT'}: {needed / 1e9:.2f} of {accelerator.memory / 1e9:.0f} GB a device: "
        f"{step.argument_bytes / 1e9:.2f} state and batch, {step.temporary_bytes / 1e9:.2f} temporaries",
        f"library calls: {counted(step.kernels)}",
        f"collectives:   {counted(step.collectives)}",
        f"FLOPs:         {flops:.3e} a token, {flops * command.batch * config.context:.3e} a step",
        f"time:          {speed:,.0f} tokens/s at {command.utilisation:.0%} of the peak of "
        f"{accelerator.peak / 1e12:,.0f} TFLOP/s a device (assumed, not measured); "
        f"{duration(tokens / speed)} for {tokens:.3g} tokens",
        *(f"PROBLEM: {sentence}" for sentence in step.problems),
    ]
