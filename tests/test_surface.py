"""The loss surface: what is written is read, whole or not at all, and errors come from clusters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import PLAN

import tsl_jax as tsl
from tsl_jax import surface
from tsl_jax.surface_file import CheckpointArray, read_arrays, write_arrays


def measured(clusters: int, context: int, seed: int) -> dict[str, np.ndarray]:
    """One split's arrays, as an evaluation makes them."""
    rng = np.random.default_rng(seed)
    count = np.full((clusters, context), 4.0)
    sums = rng.normal(4.0, 1.0, (clusters, context)) * count
    squares = sums**2 / count + count
    return {
        "loss_sum": sums.sum(0),
        "loss_sum_squares": squares.sum(0),
        "count": count.sum(0),
        "cluster_sum": sums,
        "cluster_sum_squares": squares,
        "cluster_count": count,
        "loss_additive": sums.sum(0) / count.sum(0) + 0.01,
        "loss_additive_sem": np.full(context, 0.1),
    }


@pytest.fixture
def folder(tmp_path):
    surface.create(tmp_path / "surface", clusters={"id": 5, "ood": 3}, context=7, attrs={"run": "r", "seed": 0})
    for k in (1, 2, 3):
        splits = {"id": measured(5, 7, k), "ood": measured(3, 7, 10 + k)}
        surface.append(tmp_path / "surface", tokens=1000 * k, step=k, lr=0.1 * k, splits=splits)
    return tmp_path


def test_what_is_written_is_read(folder):
    loaded = tsl.load_surface(folder)
    assert loaded.loss.dims == ("split", "tokens", "position")
    assert loaded.position.values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert loaded.tokens.values.tolist() == [1000, 2000, 3000]
    assert loaded.step.values.tolist() == [1, 2, 3]
    assert loaded.attrs["run"] == "r"
    expected = measured(3, 7, 12)
    checkpoint = loaded.sel(split="ood", tokens=2000)
    np.testing.assert_array_equal(checkpoint.loss, expected["loss_sum"] / expected["count"])
    np.testing.assert_array_equal(checkpoint.cluster_sum[:3], expected["cluster_sum"])
    assert float(checkpoint.cluster_count[3:].sum()) == 0  # filled up to the widest split


def test_many_sums_by_cluster_are_read_when_they_are_used(folder, monkeypatch):
    whole = tsl.load_surface(folder)
    monkeypatch.setattr(surface, "IN_MEMORY", 0)
    reads = []
    monkeypatch.setattr(
        CheckpointArray, "_read", lambda self, key, read=CheckpointArray._read: (reads.append(key), read(self, key))[1]
    )
    late = tsl.load_surface(folder)
    assert late.sizes == whole.sizes
    xr.testing.assert_equal(late.loss, whole.loss)
    xr.testing.assert_equal(late.sem, whole.sem)
    past = late.sel(tokens=late.tokens <= 2000)
    assert not reads
    last = past.isel(tokens=[-1])
    xr.testing.assert_equal(surface.position_covariance(last), surface.position_covariance(whole.isel(tokens=[1])))
    assert {key[1].indices(3)[0] for key in reads} == {1}  # of one checkpoint alone
    for chosen in ({"split": "ood"}, {"tokens": [1000, 3000]}, {"tokens": 2000, "split": ["ood"]}, {"position": 4}):
        xr.testing.assert_equal(late.sel(chosen).cluster_sum, whole.sel(chosen).cluster_sum)
    assert late.load().identical(whole)


def test_a_packed_surface_is_the_same_surface(folder, tmp_path):
    for name in ("one.npz", "two", "three.surface"):
        packed = tsl.pack(folder, tmp_path / name)
        assert packed.name == name.removesuffix(".npz") + ".npz"
        assert tsl.load_surface(packed).identical(tsl.load_surface(folder))


def test_a_saved_surface_is_the_same_surface(folder, tmp_path):
    """Losses alone with whatever was made beside them, and a run with its clusters: variables, coordinates, attrs."""
    losses = tsl.from_losses(np.random.default_rng(0).random((2, 3, 1)), tokens=[1, 5, 9], split=["id", "é"], run="r")
    losses = losses.assign(sem=losses.loss / 10).assign_coords(
        lr=("tokens", [0.1, 0.2, 0.3]), step=("tokens", [1, 5, 9])
    )
    losses.attrs |= {"schedule": PLAN, "n_params": np.int64(7), "warm": None}
    losses.loss.attrs["units"] = "nats"
    for name, original in {"losses": losses, "run": tsl.load_surface(folder)}.items():
        saved = tsl.save_surface(original, tmp_path / "new" / name)
        assert saved == tmp_path / "new" / f"{name}.npz"
        loaded = tsl.load_surface(saved)
        assert loaded.identical(original)
        assert {n: v.dtype for n, v in loaded.variables.items()} == {n: v.dtype for n, v in original.variables.items()}
    assert tsl.load_surface(tsl.pack(saved, tmp_path / "packed")).equals(tsl.load_surface(folder))


def test_what_cannot_be_saved_is_refused_in_words(folder, tmp_path):
    losses = tsl.from_losses(np.ones((3, 4)), tokens=[1, 2, 3])
    plan = tsl.laws.Schedule(**PLAN)
    assert tsl.load_surface(tsl.save_surface(losses.assign_attrs(schedule=plan), tmp_path / "plan")).schedule == {
        **PLAN,
        "decay_start_tokens": 0,
    }
    with pytest.raises(ValueError, match=r"an attribute cannot be saved \(it is a set\); give attributes as numbers"):
        tsl.save_surface(losses.assign_attrs(run={1}), tmp_path / "no")
    with pytest.raises(ValueError, match="who holds object and cannot be saved"):
        tsl.save_surface(losses.assign(who=("tokens", np.array([None, 1, 2]))), tmp_path / "no")
    with pytest.raises(ValueError, match="expected a variable loss"):
        tsl.save_surface(losses.drop_vars("loss"), tmp_path / "no")
    with pytest.raises(ValueError, match="without the sums of its clusters"):
        tsl.pack(tsl.save_surface(losses, tmp_path / "losses"), tmp_path / "no")
    assert not (tmp_path / "no.npz").exists()
    arrays = read_arrays(tmp_path / "losses.npz")
    write_arrays(tmp_path / "new.npz", {**arrays, "header": np.array(json.dumps({"schema": 2}))})
    with pytest.raises(ValueError, match=r"new\.npz has schema 2, this version reads 1"):
        tsl.load_surface(tmp_path / "new.npz")


def test_sem_and_covariance_come_from_clusters(folder):
    loaded = tsl.load_surface(folder).sel(split="id", tokens=[1000])
    by_cluster = measured(5, 7, 1)
    means = by_cluster["cluster_sum"] / by_cluster["cluster_count"]
    np.testing.assert_allclose(loaded.sem[0], means.std(0, ddof=1) / np.sqrt(5), rtol=1e-12)
    covariance = surface.position_covariance(tsl.load_surface(folder)).sel(split="id", tokens=1000)
    np.testing.assert_allclose(covariance, np.cov(means.T) / 5, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), loaded.sem[0], rtol=1e-12)


def test_overlapping_windows_would_make_a_naive_error_too_small(tmp_path):
    """Windows of one document share its difficulty; a cluster error sees that, an error over windows does not."""
    rng = np.random.default_rng(1)
    documents, windows = 64, 16
    losses = rng.normal(4, 0.5, (documents, 1, 1)) + rng.normal(0, 0.5, (documents, windows, 3))
    arrays = {"cluster_sum": losses.sum(1), "cluster_sum_squares": (losses**2).sum(1)}
    arrays["cluster_count"] = np.full((documents, 3), float(windows))
    totals = {"loss_sum": "cluster_sum", "loss_sum_squares": "cluster_sum_squares", "count": "cluster_count"}
    arrays |= {name: arrays[source].sum(0) for name, source in totals.items()}
    arrays |= {"loss_additive": np.full(3, np.nan), "loss_additive_sem": np.full(3, np.nan)}
    surface.create(tmp_path, clusters={"id": documents}, context=3, attrs={})
    surface.append(tmp_path, tokens=1, step=1, lr=0.1, splits={"id": arrays})
    loaded = tsl.load_surface(tmp_path)
    naive = losses.reshape(-1, 3).std(0) / np.sqrt(documents * windows)
    assert (loaded.sem.values.ravel() > 2 * naive).all()
    assert (np.abs(loaded.loss.values.ravel() - 4) < 4 * loaded.sem.values.ravel()).all()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_named(folder, damage):
    file = sorted((folder / "surface").glob("tokens-*.npz"))[1]
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0xFF
    file.write_bytes({"flip": bytes(data), "cut": bytes(data[:200]), "empty": b""}[damage])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        tsl.load_surface(folder)


def test_a_changed_value_does_not_pass_the_surfaces_own_checksum(folder):
    """The archive is whole, and its own checksums agree: it was written anew."""
    file = sorted((folder / "surface").glob("tokens-*.npz"))[1]
    with np.load(file) as opened:
        arrays = {name: opened[name] for name in opened.files}
    arrays["id/loss_sum"][3] += 1e-9
    with open(file, "wb") as opened:
        np.savez(opened, **arrays)
    damage = rf"{file.name} is damaged \(its checksum does not match\)"
    with pytest.raises(ValueError, match=f"{damage}; restore it from a copy, or delete it: that checkpoint is lost"):
        tsl.load_surface(folder)


def refusal(file: Path) -> str:
    """Why a file is not read; empty if it is."""
    try:
        read_arrays(file)
    except ValueError as error:
        return str(error)
    return ""


def test_any_flipped_byte_is_met_with_a_sentence(tmp_path):
    """Damage of an archive shows as half a dozen kinds of errors in the layers below."""
    surface.create(tmp_path, clusters={"id": 1}, context=1, attrs={})
    file = surface.append(tmp_path, tokens=1, step=1, lr=0.1, splits={"id": measured(1, 1, 0)})
    data, refusals = file.read_bytes(), []
    for at in range(0, len(data), 3):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        refusals.append(refusal(file))
    assert all("damaged" in sentence for sentence in refusals if sentence)
    assert sum(map(bool, refusals)) > 0.5 * len(refusals), "what is read all the same has a flip in a time of day, say"


def test_a_file_that_cannot_be_read_is_not_called_damaged(folder):
    (folder / "surface" / "tokens-000000000004000.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        tsl.load_surface(folder)


def test_a_surface_packed_with_fewer_clusters_has_the_same_losses(folder, tmp_path):
    whole = tsl.load_surface(folder)
    coarse = tsl.load_surface(tsl.pack(folder, tmp_path / "coarse", clusters=2))
    for name in ("loss", "count", "loss_additive"):
        np.testing.assert_array_equal(coarse[name], whole[name])
    np.testing.assert_allclose(coarse.cluster_sum.sum("cluster"), whole.cluster_sum.sum("cluster"))
    assert coarse.sizes["cluster"] == 2
    assert np.isfinite(coarse.sem).all()
    with pytest.raises(ValueError, match="two clusters or more, found clusters=1"):
        tsl.pack(folder, tmp_path / "one", clusters=1)


def test_files_that_are_no_packed_surface_get_a_sentence(folder, tmp_path):
    checkpoint = next(iter(surface.checkpoints(folder / "surface").values()))
    np.save(tmp_path / "array.npy", np.ones((3, 4)))
    np.savez(tmp_path / "arrays.npz", loss=np.ones((3, 4)))
    for file, sentence in {
        checkpoint: "is one checkpoint of a surface; name its folder",
        tmp_path / "array.npy": "is a single array; make a surface of it with from_losses",
        tmp_path / "arrays.npz": "has no checksum: no file of a surface",
    }.items():
        with pytest.raises(ValueError, match=f"{file.name} {sentence}"):
            tsl.load_surface(file)


def test_a_checkpoint_is_immutable(folder):
    with pytest.raises(ValueError, match="immutable"):
        surface.append(folder / "surface", tokens=1000, step=1, lr=0.1, splits={})


def test_a_surface_of_another_run_is_left_alone(folder):
    before = (folder / "surface" / "surface.json").read_text()
    with pytest.raises(ValueError, match="another run"):
        surface.create(folder / "surface", clusters={"id": 9}, context=7, attrs={"run": "r", "seed": 0})
    for change in ({"run": "s"}, {"config_hash": "0"}, {"seed": 1}, {"model": {}}, {"windows": {}}):
        attrs = {"run": "r", "seed": 0, **change}
        with pytest.raises(ValueError, match=rf"another run's surface \({next(iter(change))} differ\)"):
            surface.create(folder / "surface", clusters={"id": 5, "ood": 3}, context=7, attrs=attrs)
    assert (folder / "surface" / "surface.json").read_text() == before
    surface.create(folder / "surface", clusters={"id": 5, "ood": 3}, context=7, attrs={"run": "r", "seed": 0})


def test_leftovers_of_a_killed_write_do_not_disturb(folder):
    before = tsl.load_surface(folder)
    (folder / "surface" / ".tokens-000000000004000.npz.1.tmp").write_bytes(b"half a file")
    assert tsl.load_surface(folder).identical(before)


KILLED = """
import sys, numpy as np
from tsl_jax import surface
sys.path.insert(0, sys.argv[2])
from test_surface import measured
surface.create(sys.argv[1], clusters={"id": 400}, context=256, attrs={})
k = 0
while True:
    k += 1
    surface.append(sys.argv[1], tokens=k, step=k, lr=0.1, splits={"id": measured(400, 256, k)})
    print(k, flush=True)
"""


def test_sigkill_at_any_moment_leaves_whole_checkpoints(tmp_path):
    here = os.path.dirname(__file__)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "s"), here], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if int(line) == 4:  # in the middle of writing the fifth
                child.kill()
                break
    child.wait()
    loaded = tsl.load_surface(tmp_path / "s")
    assert loaded.sizes["tokens"] >= 4
    np.testing.assert_array_equal(loaded.cluster_sum.sel(tokens=4)[0], measured(400, 256, 4)["cluster_sum"])


def test_bad_surfaces_are_refused_in_words():
    loss = np.ones((3, 4))
    with pytest.raises(ValueError, match="position counts tokens of context, from 1"):
        tsl.from_losses(loss, tokens=[1, 2, 3], position=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="tokens must increase"):
        tsl.from_losses(loss, tokens=[1, 3, 2])
    with pytest.raises(ValueError, match="tokens has 2 labels"):
        tsl.from_losses(loss, tokens=[1, 2])
    with pytest.raises(ValueError, match="expected loss of shape"):
        tsl.from_losses(np.ones(3), tokens=[1, 2, 3])
    with pytest.raises(ValueError, match="tokens must be numbers, found 'abc'"):
        tsl.from_losses(loss, tokens="abc")
    with pytest.raises(ValueError, match="position must be a list"):
        tsl.from_losses(loss, tokens=[1, 2, 3], position=4)
    with pytest.raises(ValueError, match="loss must be numbers"):
        tsl.from_losses([["a"]], tokens=[1])
    with pytest.raises(ValueError, match=r"expected an xr\.Dataset, found DataArray"):
        surface.validate_surface(tsl.from_losses(loss, tokens=[1, 2, 3]).loss)  # pyright: ignore[reportArgumentType]


def test_losses_that_are_none_are_counted_and_placed():
    loss = np.ones((3, 4))
    loss[1, 2:] = -1.0, -2.0
    with pytest.raises(
        ValueError, match=r"2 of 12 losses are negative, the first at split id, tokens 2, position 3; .* log-prob"
    ):
        tsl.from_losses(loss, tokens=[1, 2, 3])
    loss[1, 2:] = np.nan, 0.0
    with pytest.raises(ValueError, match=r"1 of 12 losses is NaN, .* position 3; .* allow_missing=True"):
        tsl.from_losses(loss, tokens=[1, 2, 3])
    assert int(tsl.from_losses(loss, tokens=[1, 2, 3], allow_missing=True).loss.isnull().sum()) == 1
    loss[1, 2] = np.inf
    with pytest.raises(ValueError, match="1 of 12 losses is infinite"):
        tsl.from_losses(loss, tokens=[1, 2, 3], allow_missing=True)


def test_one_split_may_be_named_by_a_string():
    assert tsl.from_losses(np.ones((3, 4)), tokens=[1, 2, 3], split="code").split.values.tolist() == ["code"]


def test_missing_surfaces_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no surface\.json"):
        tsl.load_surface(tmp_path)
    (tmp_path / "log.csv").write_text("tokens,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"log\.csv is a table; make surfaces of it by tsl import"):
        tsl.load_surface(tmp_path / "log.csv")
    (tmp_path / "log.csv").unlink()
    surface.create(tmp_path, clusters={"id": 1}, context=2, attrs={})
    with pytest.raises(ValueError, match="no checkpoint yet"):
        tsl.load_surface(tmp_path)
    (tmp_path / "surface.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        tsl.load_surface(tmp_path)
