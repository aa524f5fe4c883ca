"""`tsl fits`: a step compiled for devices that are not here. Compiling is tested where a compiler is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from tsl_jax import cli
from tsl_jax.commands import fits
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.sharding import AXES
from tsl_jax.training import compile_ahead
from tsl_jax.training import mesh as meshes
from tsl_jax.training.compile_ahead import ACCELERATORS, compile_step, make_mesh, parse_devices

EXTRAS = {"h100": ("jax_plugins.xla_cuda12", "cuda"), "v5e:2x2": ("libtpu", "tpu")}


def has(module: str) -> bool:
    """Whether a module is installed."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_devices_are_written_as_they_are_sold() -> None:
    assert parse_devices("h100") == ("h100", (1,))
    assert parse_devices("h100x8") == ("h100", (8,))
    assert parse_devices("v5p:4x4x4") == ("v5p", (4, 4, 4))
    for wrong in ("", "h100x0", "h100:2", "v5e", "v5e:0x4", "a100", "v5p:4"):
        with pytest.raises(ValueError, match="devices are written"):
            parse_devices(wrong)
    for many in ("h100x65537", "h100x" + "9" * 400, "v5e:1000000x1000000"):
        with pytest.raises(ValueError, match="at most 65,536"):
            parse_devices(many)


def test_numbers_that_cannot_be_are_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for options, sentence in (
        (["--devices", "gpu"], "devices are written h100"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--utilisation", "2"], "share between 0 and 1"),
        (["--preset", "nine"], "preset"),
    ):
        assert cli.run_verb("fits", options, debug=False) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("devices", EXTRAS)
def test_a_missing_compiler_names_the_extra(devices: str) -> None:
    module, extra = EXTRAS[devices]
    if has(module):
        pytest.skip(f"{module} is installed here")
    with pytest.raises(ValueError, match=rf'tsl_jax\[{extra}\]" installs it'):
        make_mesh(devices)


def here(config: ModelConfig) -> compile_ahead.CompiledStep:
    """The step compiled for this machine's CPU: the same code, and a compiler that is always there."""
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    return compile_step(config, 4, mesh, replace(ACCELERATORS["h100"], platform="cpu", memory=1e9))


TINY = resolve(ModelConfig(preset="tiny", d_model=32, n_layers=1, n_heads=2), vocabulary=64, context=32)


def test_what_the_compiler_says_is_read() -> None:
    step = here(TINY)
    assert step.fits
    assert step.problems == ()
    # parameters and two moments of 4 bytes, the counts and a batch
    parameters = 64 * 32 + 32 + 2 * 32 + 32 * (3 * 32) + 32 * 32 + 32 * 2 * TINY.d_ff + TINY.d_ff * 32
    assert step.argument_bytes == pytest.approx(12 * parameters + 4 * 4 * 33, rel=0.01)
    assert step.temporary_bytes > 4 * parameters
    assert not replace(step, temporary_bytes=int(1e9)).fits
    with pytest.raises(ValueError, match="do not divide over"):
        compile_step(TINY, 3, Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES), ACCELERATORS["h100"], 2)


def test_what_is_wrong_with_a_program_is_said() -> None:
    """Each check fails on a program that has the fault."""
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    config = replace(TINY, context=1024)

    def problems(
        text: str = "", calls: tuple[str, ...] = ("__cudnn$fmhaSoftmax",), said: str = "", **sizes: int
    ) -> list[str]:
        class Sizes:
            shape = dict(mesh.shape) | sizes

        moves = compile_ahead._collectives(text)
        found = compile_ahead._problems(config, "gpu", Sizes, text, Counter(calls), moves, [said])  # type: ignore
        return list(found)

    assert problems() == []
    assert "no flash kernel" in problems(calls=())[0]
    assert "float64" in problems("%x = f64[2] add")[0]
    assert "gathered whole" in problems(said="W0000 spmd: [SPMD] Involuntary full rematerialization. The op ...")[0]
    assert len(problems(fsdp=8)) == 2
    as_sums = "%all-reduce.1 = (bf16[8], bf16[8]) all-reduce(%fusion.1, %dynamic-update-slice.2), channel_id=1"
    assert ["by sums" in sentence for sentence in problems(as_sums, fsdp=8)] == [True]
    assert "add" in problems(data=8)[0]


def test_gathers_within_products_are_counted() -> None:
    """As XLA writes them for TPUs: each loop's body is named where it is called and where it stands."""
    loops = """
%wide.windowed_dot_general_body_ag.1.sunk (param: bf16[8]) -> bf16[8] {
  %collective-permute-start.1 = bf16[8] collective-permute-start(%x), channel_id=1
%windowed_dot_general_body_rs (param: bf16[8]) -> bf16[8] {
  %while.1 = bf16[8] while(%x), body=%wide.windowed_dot_general_body_ag.1.sunk
  %while.2 = bf16[8] while(%x), body=%windowed_dot_general_body_rs
"""
    found = {"collective-permute": 1, "all-gather in products": 1, "reduce-scatter in products": 1}
    assert compile_ahead._collectives(loops) == found


@pytest.mark.parametrize("devices", EXTRAS)
def test_a_step_is_compiled_for_the_device(devices: str) -> None:
    """In a process of its own: a compiler's plugin stays loaded."""
    module, extra = EXTRAS[devices]
    if not has(module):
        pytest.skip(f"{module} is not installed: pip install 'tsl_jax[{extra}]'")
    code = f"""
import json
from dataclasses import asdict
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.training.compile_ahead import ACCELERATORS, compile_step, make_mesh, parse_devices
config = resolve(ModelConfig(d_model=256, n_layers=2, n_heads=2, dtype="bfloat16"), vocabulary=512, context=1024)
step = compile_step(config, 8, make_mesh({devices!r}), ACCELERATORS[parse_devices({devices!r})[0]])
print(json.dumps(asdict(step)))
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    step = json.loads(made.stdout.splitlines()[-1])
    assert step["problems"] == []
    kernel = compile_ahead.KERNELS[step["accelerator"]["platform"]]
    assert any(kernel in name for name in step["kernels"])
    if devices != "h100":
        assert step["collectives"]["all-gather"] > 0


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({}, (1, 16, 1)),
        ({"fsdp": 4}, (4, 4, 1)),
        ({"data": 4}, (4, 4, 1)),
        ({"tensor": 2}, (1, 8, 2)),
        ({"fsdp": 2, "tensor": 2}, (4, 2, 2)),
        ({"data": 2, "fsdp": 8}, (2, 8, 1)),
    ],
)
def test_what_is_left_out_of_a_mesh_takes_the_other_devices(options: dict[str, Any], axes: tuple[int, ...]) -> None:
    command = fits.FitsCommand(devices="v5e:4x4", **options)
    assert meshes.shape(fits._mesh_config(command, 16), 16) == axes


@pytest.mark.parametrize("option", [{"tensor": 0}, {"data": -1}, {"fsdp": -2}])
def test_a_mesh_of_no_device_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fits: --(tensor|data|fsdp) must be at least [01], found"):
        fits._mesh_config(fits.FitsCommand(**option), 16)


def test_a_step_that_the_compiler_finds_no_room_for_does_not_fit() -> None:
    class Lowered:
        def __init__(self, words: str):
            self.words = words

        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError(self.words)

    large = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory (18.02G) exceeds available HBM (15.75G).\nmore"
    )
    with pytest.raises(ValueError, match=r"fits: DOES NOT FIT, .* available HBM \(15.75G\). take more devices"):
        compile_ahead._compile(Lowered(large))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_ahead._compile(Lowered("INTERNAL: a defect"))
