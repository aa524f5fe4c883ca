"""One run on many devices: the same losses on every mesh, checkpoints from one to another, and clear refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from eight_devices import MESHES, model
from training_material import write_words

from tsl_jax.models.build import ARCHITECTURES, abstract
from tsl_jax.models.sharding import RULES, specification
from tsl_jax.training import mesh
from tsl_jax.training.checks import check_shares, validate_config
from tsl_jax.training.config import MeshConfig, TrainConfig

FLOAT32 = 1e-5  # losses of some steps, summed over devices in another order


@pytest.fixture(name="eight", scope="module")
def _eight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the process with eight devices printed, and its stderr."""
    folder = tmp_path_factory.mktemp("eight")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, str(Path(__file__).parent / "eight_devices.py"), str(folder)]
    done = subprocess.run(
        [*command, *write_words(folder / "text")],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_the_same_on_every_mesh(eight: dict[str, Any], architecture: str) -> None:
    losses = eight["losses"][architecture]
    assert losses["1,1,1"][0] - losses["1,1,1"][-1] > 0.02, "it learns"
    assert len(losses) == (len(MESHES) if architecture == "llama" else 2)
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["1,1,1"], rtol=0, atol=FLOAT32, err_msg=name)


def test_xla_moves_no_array_as_a_whole_without_being_asked(eight: dict[str, Any]) -> None:
    assert "rematerialization" not in eight["stderr"]


def test_a_checkpoint_moves_from_one_mesh_to_another(eight: dict[str, Any]) -> None:
    assert eight["moved"]


def test_a_run_goes_on_on_another_mesh_to_the_same_losses(eight: dict[str, Any]) -> None:
    single, eight_devices = eight["runs"]["one"], eight["runs"]["eight"]
    np.testing.assert_allclose(eight_devices["steps"], single["steps"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(eight_devices["final"], single["final"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(eight["runs"]["again"], eight_devices["final"], rtol=0, atol=FLOAT32)


def test_weights_that_follow_a_run_are_the_same_on_a_mesh(eight: dict[str, Any]) -> None:
    single, eight_devices = (eight["weighted"][key] for key in ("1,1,1", "8,1,1"))
    assert max(single["weights"]) - min(single["weights"]) > 0.1
    np.testing.assert_allclose(eight_devices["weights"], single["weights"], rtol=1e-3)
    np.testing.assert_allclose(eight_devices["steps"], single["steps"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_has_its_rule_and_matrices_are_split(architecture: str) -> None:
    _, params = abstract(model(architecture))
    devices = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    split = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert path[-1].key in RULES, f"{jax.tree_util.keystr(path)} has no rule"
        spec = specification(path, leaf.shape, devices)
        assert len(spec) <= leaf.ndim
        split.append(leaf.size if "fsdp" in spec else 0)
    assert sum(split) > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_what_has_no_rule_or_does_not_divide_stays_whole() -> None:
    abstract = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))

    def spec(name: str, *shape: int) -> tuple:
        return tuple(specification((jax.tree_util.DictKey(name),), shape, abstract))

    assert spec("new_matrix", 8, 8) == (None, None)
    assert spec("qkv", 3, 8, 6) == (None, "fsdp", "tensor")
    assert spec("qkv", 3, 6, 7) == (None, None, None)
    assert spec("gate_up", 3, 5, 8, 6) == (None, None, "fsdp", "tensor")


def test_one_device_is_no_mesh() -> None:
    assert mesh.make(MeshConfig()) is None
    assert mesh.make(MeshConfig(1, 1, 1)) is None


@pytest.mark.parametrize(
    ("axes", "devices", "shape"),
    [((0, 1, 1), 8, (8, 1, 1)), ((0, 2, 2), 8, (2, 2, 2)), ((0, 8, 1), 8, (1, 8, 1)), ((2, 2, 1), 8, (2, 2, 1))],
)
def test_zero_takes_all_remaining_devices(axes: tuple, devices: int, shape: tuple) -> None:
    assert mesh.shape(MeshConfig(*axes), devices) == shape


@pytest.mark.parametrize(
    ("axes", "devices", "message"),
    [
        ((4, 2, 2), 8, "data 4, fsdp 2, tensor 2 on 8 devices needs 16; lower one of them"),
        ((0, 2, 8), 8, "data 0, fsdp 2, tensor 8 on 8 devices needs 16"),
        ((0, 3, 1), 8, "leaves some without work; let fsdp x tensor divide them, or give data"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(axes: tuple, devices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mesh.shape(MeshConfig(*axes), devices)


def test_batches_that_the_devices_cannot_share_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="share evenly, found 8 sequences at a time over data x fsdp = 3 devices"):
        check_shares([9, 8], 1, 3)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mesh": MeshConfig(fsdp=0)}, "mesh.fsdp must be at least 1, found 0"),
        ({"mesh": MeshConfig(data=-1)}, "mesh.data must not be negative, found -1"),
        ({"mesh": MeshConfig(data=2, fsdp=8)}, "8 sequences at a time over data x fsdp = 16 devices"),
        ({"mesh": MeshConfig(fsdp=8), "accumulate": 2}, "4 sequences at a time over data x fsdp = 8 devices"),
        ({"mesh": MeshConfig(fsdp=8), "evaluation_batch": 12}, "evaluation_batch must share evenly, found 12 windows"),
        ({"accumulate": 3}, "accumulate must divide batch_size, found batch_size 8 and accumulate 3"),
        ({"steps_per_call": -1}, "steps_per_call must not be negative"),
    ],
)
def test_what_cannot_be_shared_is_refused_without_a_look_at_the_devices(entries: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_config(replace(TrainConfig(), **entries))
