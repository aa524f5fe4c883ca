"""Tables of curves out of core: whatever the file, its cuts, its faults, and whenever the process is killed."""

import errno
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from tsl_jax import cli, laws
from tsl_jax.curve_tables import (
    RayExecutor,
    ShardsFailed,
    curve_blocks,
    fit_table,
    long_table,
    open_source,
    shards,
    worker,
)
from tsl_jax.fitting import CurveFits, Status, fit

HYPERBOLIC = laws.HYPERBOLIC
POSITION = np.arange(1.0, 33.0)
RANGE = ["position_low", "position_high"]
COLUMNS = ["curve", "a0", "a1", "a2", "a0_stderr", "a1_stderr", "a2_stderr", "sse", "r2", *RANGE, "status"]


def curves(n: int, points: int = 32) -> np.ndarray:
    a1 = np.linspace(0.2, 0.6, n)[:, None]
    return 1.5 / (1 + a1 * np.arange(1.0, points + 1)) + 4


def moments(law, y, x=None, weights=None, method="auto", dtype=None) -> CurveFits:
    """A fit for tests of what surrounds it: a0 = sum w, a1 = sum w y, a2 = sum w x y of each curve, and no errors."""
    y = np.asarray(y, float)
    w = np.ones_like(y) if weights is None else np.broadcast_to(weights, y.shape)
    assert np.all(np.isfinite(x))
    assert np.all(w >= 0)
    if np.any(np.asarray(x) == 0):
        raise ValueError("fit: not finite at x = 0")
    y = np.where(w > 0, y, 0)
    params = np.stack([w.sum(1), (w * y).sum(1), (w * y * x).sum(1)], axis=1)
    bad = ~np.isfinite(params).all(axis=1)
    params[bad] = np.nan
    ones = np.where(bad, np.nan, 1.0)
    status = np.where(bad, Status.NON_FINITE, Status.CONVERGED).astype(np.int8)
    spread = params[:, :, None] ** 2 * np.eye(3)  # standard errors that are the parameters themselves
    return CurveFits(
        params=params,
        raw_params=params,
        covariance=spread,
        log_error=ones[:, None],
        sse=ones,
        sst=np.full_like(ones, np.inf),
        status=status,
        n_agreeing_starts=np.full_like(status, -1),
    )


@pytest.fixture
def quick(monkeypatch):
    """Streaming is tested without the cost of fitting."""
    monkeypatch.setattr(worker, "fit_rows", moments)


def expected(table: pd.DataFrame) -> pd.DataFrame:
    """The moments of each curve of a long table, in the order of the file."""
    w = table.weight if "weight" in table else pd.Series(1.0, table.index)
    y = table.y.where(w > 0, 0)
    parts = pd.DataFrame({"curve": table.curve, "a0": w, "a1": w * y, "a2": w * y * table.x})
    return parts.groupby("curve", sort=False).sum().reset_index()


def ragged_table(n: int = 200, seed: int = 0) -> pd.DataFrame:
    """Curves of 1 to 90 points on positions, with gaps, on other lattices, on no lattice, unsorted; with weights."""
    draw = np.random.default_rng(seed)
    parts = []
    for k in range(n):
        x = np.arange(1.0, draw.integers(1, 90) + 1)
        x = [x, x[draw.random(len(x)) < 0.8], 5.0 + 3 * x, np.sqrt(x), x[::-1], np.repeat(x, 2)][k % 6]
        weight = draw.integers(0, 3, len(x)).astype(float) if k % 4 == 0 else np.ones(len(x))
        parts.append(pd.DataFrame({"curve": f"run {k}, α", "x": x, "y": draw.random(len(x)) + 1, "weight": weight}))
    return pd.concat(parts, ignore_index=True)


def save(table: pd.DataFrame, file, rows: int = 97) -> None:
    table.to_csv(file, index=False) if file.suffix == ".csv" else table.to_parquet(file, row_group_size=rows)


def same(table: pd.DataFrame, truth: pd.DataFrame) -> None:
    assert table.curve.tolist() == truth.curve.tolist()
    np.testing.assert_allclose(table[["a0", "a1", "a2"]], truth[["a0", "a1", "a2"]], rtol=1e-12)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("shard_bytes", [700, 5000, 1 << 27])
def test_every_point_of_a_ragged_table_reaches_its_curve_however_the_file_is_cut(
    tmp_path, quick, monkeypatch, suffix, shard_bytes
):
    monkeypatch.setattr(long_table, "CHUNK_BYTES", 500)
    monkeypatch.setattr(long_table, "CHUNK_ROWS", 13)
    monkeypatch.setattr(curve_blocks.blocks, "__defaults__", (300,))
    table, file, out = ragged_table(90), tmp_path / f"t.{suffix}", tmp_path / "fits.parquet"
    save(table, file)
    summary = fit_table(HYPERBOLIC, file, out, shard_bytes=shard_bytes)
    fits = pd.read_parquet(out)
    same(fits, expected(table))
    assert list(fits) == COLUMNS
    assert summary.curves == 90
    assert summary.malformed_rows == 0
    assert sorted(os.listdir(tmp_path)) == ["fits.parquet", file.name]


def test_curves_with_one_x_and_ragged_ones_share_few_fits(tmp_path, monkeypatch):
    calls = []

    def counted(law, y, x=None, weights=None, **options):
        calls.append((y.shape, weights is not None))
        return moments(law, y, x, weights)

    monkeypatch.setattr(worker, "fit_rows", counted)
    lengths = [32] * 10 + list(range(65, 97))
    parts = [pd.DataFrame({"curve": k, "x": np.arange(1.0, n + 1), "y": 1.0}) for k, n in enumerate(lengths)]
    save(pd.concat(parts), tmp_path / "t.parquet")
    fit_table(HYPERBOLIC, tmp_path / "t.parquet", tmp_path / "fits.parquet")
    assert sorted(calls) == [((1, 96), False), ((10, 32), False), ((31, 96), True)]
    assert pd.read_parquet(tmp_path / "fits.parquet").curve.tolist() == list(range(42))


def test_a_ragged_curve_is_fitted_as_on_its_own(tmp_path, tolerance):
    noisy = curves(3) + 1e-3 * np.sin(np.arange(32))
    lengths = [32, 20, 32]  # of neighbours without gaps
    parts = [pd.DataFrame({"curve": f"c{k}", "x": POSITION[:n], "y": noisy[k, :n]}) for k, n in enumerate(lengths)]
    save(pd.concat(parts), tmp_path / "t.csv")
    fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "fits.csv")
    fits = pd.read_csv(tmp_path / "fits.csv")
    alone = fit(HYPERBOLIC, noisy[1:2, :20], x=POSITION[:20])
    np.testing.assert_allclose(fits.loc[1, ["a0", "a1", "a2"]].astype(float), alone.params[0], rtol=1e-5)
    np.testing.assert_allclose(fits.sse[1], alone.sse[0], rtol=tolerance["solver"])
    np.testing.assert_allclose(fits.r2[1], alone.r2[0], rtol=tolerance["solver"])


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_matrix_of_any_kind_of_number_is_read_as_it_stands(tmp_path, quick, dtype, order):
    y = np.asarray(100 * curves(70), dtype=dtype, order=order)
    x = np.geomspace(1, 9, 32)
    np.save(tmp_path / "c.npy", y)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "fits.parquet"
    fit_table(HYPERBOLIC, tmp_path / "c.npy", out, x=tmp_path / "x.npy", shard_bytes=32 * y.itemsize * 16)
    fits = pd.read_parquet(out)
    assert fits.curve.dtype == np.int64
    assert fits.curve.tolist() == list(range(70))
    np.testing.assert_allclose(fits.a2, y.astype(float) @ x, rtol=1e-6)


def test_the_shards_of_a_matrix_are_read_into_two_aligned_buffers(tmp_path):
    np.save(tmp_path / "c.npy", curves(50).astype(np.float32))
    source = open_source(tmp_path / "c.npy")
    shards = source.shards(2048)
    places, rows = set(), []
    for y in source.read(shards):
        places.add(y.ctypes.data)
        rows.append(y.copy())
    assert len(places) == 2
    assert all(place % 4096 == 0 for place in places)
    np.testing.assert_array_equal(np.concatenate(rows), np.load(tmp_path / "c.npy"))


def test_the_table_in_float32_and_float64(tmp_path):
    np.save(tmp_path / "c.npy", curves(5).astype(np.float32))
    for dtype in ("float32", "float64"):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "f.parquet", dtype=dtype, metadata={"note": "kept"})
        schema = pyarrow.parquet.read_schema(tmp_path / "f.parquet")
        assert schema.names == COLUMNS
        assert schema.field("a1").type == dtype.replace("float64", "double").replace("float32", "float")
        assert schema.metadata[b"note"] == b"kept"
        fits = pd.read_parquet(tmp_path / "f.parquet")
        np.testing.assert_allclose(fits.a1, np.linspace(0.2, 0.6, 5), rtol=1e-3)


BROKEN = """curve,x,y,weight
a,1,3,1
a,2,oops,1
a,3,2,1
b,1,3,1
b,2,2,1
c,1,3,1
c,2
c,3,2,1
d,1,3,1
d,2,,1
e,1,3,1
e,2,nan,0
e,3,,0
f,1,nan,1
f,2,2,1
g,inf,3,1
h,1,3,-1
,1,3,1
i,1,"5",1
i,"2",6,1
j,1,1_0,1
"""


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("shard_bytes", [40, 1 << 20])
def test_a_malformed_row_costs_its_curve_alone_and_is_listed_with_its_place(tmp_path, quick, suffix, shard_bytes):
    file, out = tmp_path / f"t.{suffix}", tmp_path / "fits.parquet"
    if suffix == "csv":
        file.write_text(BROKEN.replace("\n", "\r\n"))
    else:
        cells = [line.split(",") for line in BROKEN.replace('"', "").splitlines()]
        columns = zip(*[row + [""] * (4 - len(row)) for row in cells[1:]], strict=True)
        arrow = pa.table({name: list(column) for name, column in zip(cells[0], columns, strict=True)})
        pyarrow.parquet.write_table(arrow, file, row_group_size=3)
    with pytest.warns(UserWarning, match=r"malformed rows: 6, the first in .*row 2 \(curve a\): y is 'oops'"):
        summary = fit_table(HYPERBOLIC, file, out, shard_bytes=shard_bytes)
    fits = pd.read_parquet(out).set_index("curve")
    assert list(fits.index) == list("abcdefghij")
    assert fits.index[fits.status == "non_finite"].tolist() == list("acghj")
    assert fits.a1[fits.status == "non_finite"].isna().all()
    assert fits.a1[["b", "d", "e", "i"]].tolist() == [5, 3, 3, 11]
    errors = pd.read_csv(tmp_path / "fits.parquet.errors.csv", keep_default_na=False)
    assert summary.malformed_rows == 6
    assert summary.errors == tmp_path / "fits.parquet.errors.csv"
    assert list(errors.file.unique()) == [str(file)]
    assert summary.left_out == {"y is missing": 2}
    short = "2 cells, expected 4" if suffix == "csv" else "weight is missing"
    assert list(zip(errors.row, errors.curve, errors.problem, strict=True)) == [
        (2, "a", "y is 'oops', not a number"),
        (7, "c", short),
        (16, "g", "x is inf, expected a finite number"),
        (17, "h", "weight is -1, expected finite and not negative"),
        (18, "h", "curve is missing"),
        (21, "j", "y is '1_0', not a number"),
    ]


def test_a_sound_table_leaves_no_errors_of_an_earlier_one(tmp_path, quick):
    file, out = tmp_path / "t.csv", tmp_path / "fits.csv"
    file.write_text("curve,x,y\na,1,oops\n")
    with pytest.warns(UserWarning, match="malformed"):
        fit_table(HYPERBOLIC, file, out)
    file.write_text("curve,x,y\na,1,1\n")
    fit_table(HYPERBOLIC, file, out)
    assert sorted(os.listdir(tmp_path)) == ["fits.csv", "t.csv"]


@pytest.mark.parametrize("workers", [0, 3])
def test_strict_stops_at_the_first_malformed_row_of_the_file(tmp_path, quick, workers):
    table = ragged_table(60).astype({"y": str})
    table.loc[[900, 1200], "y"] = "oops"
    save(table, tmp_path / "t.csv")
    executor = ThreadPoolExecutor(workers) if workers else None
    with pytest.raises(ValueError, match=rf"row 901 \(curve {table.curve[900]}\): y is 'oops'.*fix it"):
        fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv", strict=True, executor=executor, shard_bytes=2000)
    assert not (tmp_path / "o.csv").exists()


def test_strict_on_the_command_line(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("curve,x,y\na,1,3\na,2,oops\n")
    assert (
        cli.run_verb("fit", [str(tmp_path / "t.csv"), "--out", str(tmp_path / "o.csv"), "--strict"], debug=False) == 2
    )
    assert "row 2 (curve a): y is 'oops', not a number" in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("hashes", [3, 1 << 20])
def test_a_curve_that_comes_back_is_reported_and_never_fitted_in_part(tmp_path, quick, monkeypatch, suffix, hashes):
    monkeypatch.setattr("tsl_jax.curve_tables.writer.HASHES", hashes)
    names = ["b", "c", "a", "a", "d", "b", "b", "e", "a", "f"]
    table = pd.DataFrame({"curve": names, "x": np.arange(1.0, 11), "y": 2.0})
    save(table, tmp_path / f"t.{suffix}", rows=2)
    with pytest.warns(UserWarning, match=r"row 6 \(curve b\): the curve comes back after others; .* sort the file"):
        fit_table(HYPERBOLIC, tmp_path / f"t.{suffix}", tmp_path / "o.csv", shard_bytes=10)
    fits = pd.read_csv(tmp_path / "o.csv").set_index("curve")
    assert list(fits.index) == ["b", "c", "a", "d", "e", "f"]
    assert fits.index[fits.status == "non_finite"].tolist() == ["b", "a"]
    assert fits.a1[["c", "d", "e", "f"]].tolist() == [2, 2, 2, 2]
    assert pd.read_csv(tmp_path / "o.csv.errors.csv").row.tolist() == [6, 9]


def test_a_curve_that_the_law_refuses_is_reported(tmp_path, quick):
    (tmp_path / "t.csv").write_text("curve,x,y\na,0,3\na,1,2\nb,1,3\nb,2,2\n")
    with pytest.warns(UserWarning, match=r"row 1 \(curve a\): fit: not finite at x = 0"):
        fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv")
    assert pd.read_csv(tmp_path / "o.csv").status.tolist() == ["non_finite", "converged"]


KILLED = """
import os, sys, time
from tsl_jax import atomic_write, laws
from tsl_jax.curve_tables import fit_table
from tsl_jax.curve_tables import shards, worker
sys.path.insert(0, {tests!r})
from test_curve_tables import moments
worker.fit_rows = moments
moment, after = sys.argv[3], int(sys.argv[4])
count = 0
def at(name, before):
    def call(*arguments, **options):
        global count
        count += name == moment
        if name == moment and count > after:
            os.kill(os.getpid(), 9)
        return before(*arguments, **options)
    return call
atomic_write.os = type("os", (), {{**vars(os), "fsync": staticmethod(at("fsync", os.fsync)),
                             "replace": staticmethod(at("replace", os.replace))}})
shards.ShardStore.remove = at("remove", shards.ShardStore.remove)
shards.Path.unlink = at("unlink", shards.Path.unlink)
fit_table(laws.HYPERBOLIC, sys.argv[1], sys.argv[2], shard_bytes=4000)
"""


@pytest.mark.parametrize(
    ("moment", "after"),
    [
        ("fsync", 5),
        ("replace", 9),
        ("remove", 0),
        # a process each, and other places of the same loops
        pytest.param("replace", 4, marks=pytest.mark.slow),
        pytest.param("unlink", 3, marks=pytest.mark.slow),
    ],
)
def test_a_call_killed_at_any_moment_continues_and_ends_with_the_same_table(tmp_path, quick, moment, after):
    table = ragged_table(60)
    table["y"] = table.y.astype(str)
    table.loc[700, "y"] = "oops"
    save(table, tmp_path / "t.csv")
    out = tmp_path / "fits.parquet"
    command = KILLED.format(tests=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", command, str(tmp_path / "t.csv"), str(out), moment, str(after)])
    assert done.returncode == -signal.SIGKILL
    finished = {path.name for path in tmp_path.glob("fits.parquet.parts/*.arrow")}
    refitted = []
    with pytest.warns(UserWarning, match="malformed rows: 1"):
        fit_table(
            HYPERBOLIC,
            tmp_path / "t.csv",
            out,
            shard_bytes=4000,
            progress=lambda share, count: refitted.append(share),
        )
    with pytest.warns(UserWarning, match="malformed rows: 1"):
        fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "whole.parquet", shard_bytes=4000)
    count = len(open_source(tmp_path / "t.csv").shards(4000))
    assert len(refitted) == 1 + count - len(finished)  # one call more, before the first shard
    if moment != "fsync" or after > 5:
        assert finished
    assert pyarrow.parquet.read_table(out).equals(pyarrow.parquet.read_table(tmp_path / "whole.parquet"))
    assert (tmp_path / "fits.parquet.errors.csv").read_text() == (tmp_path / "whole.parquet.errors.csv").read_text()
    assert not (tmp_path / "fits.parquet.parts").exists()


@pytest.fixture
def interrupted(tmp_path, quick, monkeypatch):
    """A call that ended early, by Ctrl-C in the third of seven shards."""
    np.save(tmp_path / "c.npy", curves(50))

    def until_third(law, y, **options):
        if y[0, 0] >= curves(50)[16, 0] - 1e-9 and y[0, 0] <= curves(50)[16, 0] + 1e-9:
            raise KeyboardInterrupt
        return moments(law, y, **options)

    monkeypatch.setattr(worker, "fit_rows", until_third)
    with pytest.raises(KeyboardInterrupt):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.parquet", shard_bytes=2048)
    monkeypatch.setattr(worker, "fit_rows", moments)
    assert len(list((tmp_path / "o.parquet.parts").glob("*.arrow"))) == 2
    return tmp_path


def test_what_ctrl_c_leaves_is_continued(interrupted):
    seen = []
    fit_table(
        HYPERBOLIC,
        interrupted / "c.npy",
        interrupted / "o.parquet",
        shard_bytes=2048,
        progress=lambda share, count: seen.append((round(share, 2), count)),
    )
    assert seen[0] == (0.32, 0)
    assert seen[-1] == (1.0, 34)
    assert pd.read_parquet(interrupted / "o.parquet").curve.tolist() == list(range(50))


def test_ctrl_c_on_the_command_line_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def ctrl_c(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "fit_rows", ctrl_c)
    np.save(tmp_path / "c.npy", curves(3))
    assert cli.run_verb("fit", [str(tmp_path / "c.npy"), "--out", str(tmp_path / "o.csv")], debug=False) == 130
    output = capsys.readouterr()
    assert "c.npy: 3 curves of 32 points, float64, 768 bytes" in output.out
    assert "repeat the command" in output.err


def test_shards_of_another_request_are_never_mixed_in(interrupted):
    source, out = interrupted / "c.npy", interrupted / "o.parquet"
    with pytest.raises(ValueError, match=r"dtype is 'float64' there, 'float32' here\).* remove the folder, or give"):
        fit_table(HYPERBOLIC, source, out, dtype="float32", shard_bytes=2048)
    with pytest.raises(ValueError, match="another request"):
        fit_table(laws.POSITION_POWER, source, out, shard_bytes=2048)
    changed = np.load(source)
    changed[3] += 1
    times = source.stat()
    np.save(source, changed)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match="digest is"):
        fit_table(HYPERBOLIC, source, out, shard_bytes=2048)
    assert len(list((interrupted / "o.parquet.parts").glob("*.arrow"))) == 2


def test_damaged_or_missing_manifests_are_refused(interrupted):
    source, out = interrupted / "c.npy", interrupted / "o.parquet"
    manifest = interrupted / "o.parquet.parts" / "manifest.json"
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(stored)[:-20])
    with pytest.raises(ValueError, match="is damaged; remove"):
        fit_table(HYPERBOLIC, source, out, shard_bytes=2048)
    manifest.unlink()
    with pytest.raises(ValueError, match=r"holds no manifest\.json of finished shards"):
        fit_table(HYPERBOLIC, source, out, shard_bytes=2048)


def test_two_calls_do_not_write_one_table(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(3))
    first = shards.ShardStore(tmp_path / "o.csv", {"any": 1})
    with pytest.raises(ValueError, match="another call is writing"):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv")
    first.close()
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv")


@pytest.mark.parametrize("synced", [3, 8])
def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path, quick, monkeypatch, synced):
    np.save(tmp_path / "c.npy", curves(50))
    count = iter(range(100))

    def full(handle):
        if next(count) >= synced:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="finished shards are kept: free some space and repeat") as raised:
            fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", shard_bytes=2048)
    assert raised.value.filename == str(tmp_path / "o.csv.parts")
    assert not (tmp_path / "o.csv").exists()
    assert list((tmp_path / "o.csv.parts").glob("*.arrow"))
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", shard_bytes=2048)
    assert len(pd.read_csv(tmp_path / "o.csv")) == 50


class Unreliable(Executor):
    """Runs a call at once; the first `failures` calls of each shard fail. Counts the calls."""

    def __init__(self, failures: int, only: int | None = None) -> None:
        self.failures, self.only, self.calls = failures, only, []

    def submit(self, fn, /, *arguments, **options):
        future: Future = Future()
        shard = arguments[0].number
        self.calls.append(shard)
        if self.calls.count(shard) <= self.failures and self.only in (None, shard):
            future.set_exception(ConnectionError("the machine went away"))
        else:
            future.set_result(fn(*arguments, **options))
        return future


def test_a_shard_that_fails_is_tried_again(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(50))
    executor = Unreliable(2)
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", executor=executor, shard_bytes=2048)
    assert sorted(executor.calls) == sorted(list(range(7)) * 3)
    assert pd.read_csv(tmp_path / "o.csv").curve.tolist() == list(range(50))


def test_a_shard_that_fails_for_good_is_reported_and_the_others_are_kept(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(50))
    executor = Unreliable(3, only=4)
    with pytest.raises(ShardsFailed, match=r"1 shards failed 3 times each.*shard 4 \(32 to 40\) with ConnectionError"):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", executor=executor, shard_bytes=2048)
    assert sorted(executor.calls) == [0, 1, 2, 3, 4, 4, 4, 5, 6]
    assert not (tmp_path / "o.csv").exists()
    second = Unreliable(0)
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", executor=second, shard_bytes=2048)
    assert second.calls == [4]
    assert pd.read_csv(tmp_path / "o.csv").curve.tolist() == list(range(50))


def test_an_executor_that_takes_no_more_work_is_reported(tmp_path, quick):
    class Broken(Executor):
        def submit(self, fn, /, *arguments, **options):
            raise BrokenProcessPool("a worker died")

    np.save(tmp_path / "c.npy", curves(3))
    with pytest.raises(ShardsFailed, match="BrokenProcessPool: a worker died"):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", executor=Broken())


def test_a_mistake_is_not_tried_again(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(50))
    np.save(tmp_path / "x.npy", np.arange(32.0))
    executor = Unreliable(0)
    with pytest.raises(ValueError, match="not finite at x = 0"):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", x=tmp_path / "x.npy", executor=executor)
    assert executor.calls == [0]
    assert not (tmp_path / "o.csv.parts").exists()


@pytest.mark.parametrize("name", ["c.npy", "t.csv"])
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"method": "guess"}, "method must be one of"),
        ({"dtype": "float16"}, "dtype must be 'float64' or 'float32', found 'float16'"),
        ({"law": laws.MOMENTUM_ANNEALING}, "reads a history of step and lr, not a value of each at every point"),
        ({"loss": "cubes"}, "loss must be one of squares, huber, log, log_huber, found 'cubes'"),
        ({"delta": 0.1}, "delta must be positive and goes with a Huber loss, found 0.1 with squares"),
        ({"starts": 0}, "starts must be 1 or more, found 0"),
        ({"law": "hyperbolic"}, "law must be a Law such as tsl.laws.HYPERBOLIC, found 'hyperbolic'"),
        ({"shard_bytes": 0}, "shard_bytes must be positive, found 0"),
    ],
)
def test_a_request_that_no_shard_could_answer_is_refused_before_any_work(tmp_path, name, wrong, sentence):
    """In a long table such a mistake was once taken for curves that cannot be fitted: all were `non_finite`."""
    np.save(tmp_path / "c.npy", curves(3))
    (tmp_path / "t.csv").write_text("curve,x,y\na,1,3\na,2,2\n")
    request = {"law": HYPERBOLIC, **wrong}
    with pytest.raises(ValueError, match=sentence):
        fit_table(source=tmp_path / name, out=tmp_path / "o.csv", **request)
    assert sorted(os.listdir(tmp_path)) == ["c.npy", "t.csv"]


def test_positions_are_not_taken_for_the_covariate_of_another_law(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(3))
    for law in (laws.KAPLAN_N, laws.BY_NAME["power"]):
        with pytest.raises(ValueError, match=rf"{law.name} is a law over {law.covariates[0]}, .* give x= \(--x\)"):
            fit_table(law, tmp_path / "c.npy", tmp_path / "o.csv")
    np.save(tmp_path / "x.npy", np.geomspace(1e6, 1e9, 32))
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", x=tmp_path / "x.npy")


def test_the_verb_refuses_a_law_that_a_run_has_no_covariate_for(tmp_path, capsys):
    np.save(tmp_path / "c.npy", curves(3))
    for source, law in ((tmp_path, "kaplan_n"), (tmp_path, "kaplan_nd"), (tmp_path / "c.npy", "kaplan_n")):
        arguments = [str(source), "--law", law, "--out", str(tmp_path / "o.csv")]
        assert cli.run_verb("fit", arguments, debug=False) == 2
        assert f"{law} is a law over n_params" in capsys.readouterr().err.replace("\n", " ")
    assert os.listdir(tmp_path) == ["c.npy"]


@pytest.mark.parametrize("source", ["t.csv", "o.csv.errors.csv"])
def test_a_table_is_never_written_over_its_own_source(tmp_path, quick, source):
    (tmp_path / source).write_text("curve,x,y\na,1,3\na,2,2\n")
    out = tmp_path / ("t.csv" if source == "t.csv" else "o.csv")
    with pytest.raises(ValueError, match=f"would overwrite .*{source}, which is read; give another --out"):
        fit_table(HYPERBOLIC, tmp_path / source, out)
    assert (tmp_path / source).read_text().startswith("curve,x,y")


def test_columns_of_one_name_are_refused_where_they_count(tmp_path, quick):
    (tmp_path / "t.csv").write_text("curve,x,y,y\na,1,3,4\n")
    with pytest.raises(ValueError, match="has several columns y"):
        fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv")
    (tmp_path / "t.csv").write_text("curve,x,y,note,note\na,1,3,4,5\n")
    assert fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv").curves == 1


@pytest.mark.parametrize("rows", [2, 9])
def test_a_name_that_pandas_writes_as_nan_is_missing(tmp_path, quick, rows):
    table = pd.DataFrame({"curve": [1.0, 1.0, np.nan, np.nan, 2.0], "x": np.arange(1.0, 6), "y": 1.0})
    arrow = pa.Table.from_pydict({name: pa.array(table[name].to_numpy()) for name in table})  # NaN, not null
    pyarrow.parquet.write_table(arrow, tmp_path / "t.parquet", row_group_size=rows)
    with pytest.warns(UserWarning, match=r"malformed rows: 2, the first in .*row 3 .*curve is missing"):
        fit_table(HYPERBOLIC, tmp_path / "t.parquet", tmp_path / "o.csv", shard_bytes=1)
    fits = pd.read_csv(tmp_path / "o.csv")
    assert fits.curve.tolist() == [1, 2]
    assert fits.status.tolist() == ["non_finite", "converged"]


def test_threads_and_processes_give_the_table_of_one_process(tmp_path):
    np.save(tmp_path / "c.npy", curves(40) + 1e-3 * np.sin(np.arange(32)))
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "here.parquet", shard_bytes=4096)
    truth = pyarrow.parquet.read_table(tmp_path / "here.parquet")
    spawn = multiprocessing.get_context("spawn")  # jax is not fork-safe
    for executor in (ThreadPoolExecutor(2), ProcessPoolExecutor(1, mp_context=spawn)):
        with executor:
            out = tmp_path / f"{type(executor).__name__}.parquet"
            fit_table(HYPERBOLIC, tmp_path / "c.npy", out, executor=executor, shard_bytes=4096)
        assert pyarrow.parquet.read_table(out).equals(truth)


def test_ray_gives_the_table_of_one_process(tmp_path):
    if not find_spec("ray"):  # not imported yet: where it listens is decided before
        pytest.skip("Ray is an extra: pip install 'tsl_jax[ray]'")
    np.save(tmp_path / "c.npy", curves(40))
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "here.parquet", shard_bytes=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        with RayExecutor() as executor:
            fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "ray.parquet", executor=executor, shard_bytes=4096)
    truth = pyarrow.parquet.read_table(tmp_path / "here.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "ray.parquet").equals(truth)


def test_without_ray_the_option_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    np.save(tmp_path / "c.npy", curves(3))
    arguments = [str(tmp_path / "c.npy"), "--out", str(tmp_path / "o.csv"), "--ray", "local"]
    assert cli.run_verb("fit", arguments, debug=False) == 2
    assert "pip install 'tsl_jax[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", "curve,x,y\n", "holds no rows"),
        ("t.csv", "", r"lacks the columns \['curve', 'x', 'y'\]"),
        ("t.csv", "curve,x\na,1\n", r"lacks the columns \['y'\]"),
        ("t.parquet", "not Parquet", "cannot be read as a table"),
        ("t.txt", "?", "cannot read t.txt; expected .npy"),
        ("t.npy", "?", "is not a .npy array"),
    ],
)
def test_a_file_that_holds_no_curves_is_refused_before_any_work(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        fit_table(HYPERBOLIC, tmp_path / name, tmp_path / "o.csv")
    assert os.listdir(tmp_path) == [name]


def test_an_x_that_does_not_fit_is_refused(tmp_path):
    np.save(tmp_path / "c.npy", curves(3))
    np.save(tmp_path / "e.npy", np.zeros((0, 5)))
    for x, sentence in (([1.0, 2.0], "expected x as 32 numbers"), ([np.nan] * 32, "NaN or infinity")):
        np.save(tmp_path / "x.npy", x)
        with pytest.raises(ValueError, match=sentence):
            fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", x=tmp_path / "x.npy")
    with pytest.raises(ValueError, match="holds no curves"):
        fit_table(HYPERBOLIC, tmp_path / "e.npy", tmp_path / "o.csv")


MEASURED = """
import sys
sys.path.insert(0, {tests!r})
import test_curve_tables as tests
tests.worker.fit_rows = tests.moments
tests.fit_table(tests.HYPERBOLIC, sys.argv[1], sys.argv[2], shard_bytes=1 << 20)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_curves(tmp_path):
    command = [sys.executable, "-c", MEASURED.format(tests=os.path.dirname(__file__))]
    peaks = []
    for n in (1 << 12, 1 << 17):
        np.lib.format.open_memmap(tmp_path / "c.npy", "w+", np.float32, (n, 256))[:] = 1.0
        done = subprocess.run([*command, tmp_path / "c.npy", tmp_path / "o.csv"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 40_000  # kB, where the file grew by 128 MB


def test_progress_and_time(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(50))
    seen: list[tuple[float, int]] = []
    begun = time.monotonic()
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", shard_bytes=2048, progress=lambda *a: seen.append(a))
    assert [count for _, count in seen] == [0, 8, 16, 24, 32, 40, 48, 50]
    assert seen[-1][0] == pytest.approx(1)
    assert time.monotonic() - begun < 10


def test_a_file_of_somebody_else_is_never_replaced(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(3))
    (tmp_path / "notes.csv").write_text("curve,thought\n1,keep me\n")
    (tmp_path / "o.csv.errors.csv").write_text("mine\n")
    (tmp_path / "p.csv.parts").mkdir()
    (tmp_path / "p.csv.parts" / "thesis.tex").write_text("keep me")
    for name in ("notes.csv", "o.csv"):
        with pytest.raises(ValueError, match=r"is there and was not written by a fit; move it away"):
            fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / name)
    with pytest.raises(ValueError, match=r"p.csv.parts is there and holds no manifest"):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "p.csv")
    assert (tmp_path / "notes.csv").read_text() == "curve,thought\n1,keep me\n"
    assert (tmp_path / "o.csv.errors.csv").read_text() == "mine\n"
    assert (tmp_path / "p.csv.parts" / "thesis.tex").read_text() == "keep me"
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "ours.csv")
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "ours.csv")


def test_a_source_under_another_name_is_never_replaced(tmp_path, quick):
    save(ragged_table(3), tmp_path / "t.csv")
    before = (tmp_path / "t.csv").read_bytes()
    os.link(tmp_path / "t.csv", tmp_path / "same.csv")
    (tmp_path / "link.csv").symlink_to("t.csv")
    for out in ("t.csv", "same.csv", "link.csv"):
        with pytest.raises(ValueError, match="the results would overwrite"):
            fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / out)
    assert (tmp_path / "t.csv").read_bytes() == before


def test_what_others_put_among_the_shards_stays(interrupted):
    (interrupted / "o.parquet.parts" / "mine.txt").write_text("keep me")
    fit_table(HYPERBOLIC, interrupted / "c.npy", interrupted / "o.parquet", shard_bytes=2048)
    assert [path.name for path in (interrupted / "o.parquet.parts").iterdir()] == ["mine.txt"]


def test_a_damaged_shard_is_fitted_again(interrupted):
    first = min((interrupted / "o.parquet.parts").glob("*.arrow"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{first.name} is damaged; its curves are fitted again"):
        fit_table(HYPERBOLIC, interrupted / "c.npy", interrupted / "o.parquet", shard_bytes=2048)
    fit_table(HYPERBOLIC, interrupted / "c.npy", interrupted / "whole.parquet", shard_bytes=2048)
    assert pd.read_parquet(interrupted / "o.parquet").equals(pd.read_parquet(interrupted / "whole.parquet"))


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, quick):
    np.save(tmp_path / "c.npy", curves(50))

    def rewrite(share, count):
        if share == 1.0:
            np.save(tmp_path / "c.npy", curves(50) + 1)

    with pytest.raises(ValueError, match="has changed while it was read"):
        fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", shard_bytes=2048, progress=rewrite)
    assert not (tmp_path / "o.csv").exists()
    fit_table(HYPERBOLIC, tmp_path / "c.npy", tmp_path / "o.csv", shard_bytes=2048)


def test_names_that_are_no_utf8_are_refused_and_never_merged(tmp_path, quick):
    rows = [f"{name},{x},{5 + 1 / x}\n" for name in ("café", "cafè") for x in range(1, 33)]
    (tmp_path / "t.csv").write_bytes("".join(["curve,x,y\n", *rows]).encode("latin1"))
    with pytest.raises(ValueError, match=r"not UTF-8 text, the first such line is b'caf\\xe9,1,.*iconv"):
        fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv")
    (tmp_path / "long.csv").write_bytes(b"curve,x,y," + b"z" * (1 << 20) + b"\na,1,2\n")
    with pytest.raises(ValueError, match=r"begins with a line of (more than|over)"):
        fit_table(HYPERBOLIC, tmp_path / "long.csv", tmp_path / "o.csv")


RENAMED = {"curve": "run", "x": "step", "y": "loss", "weight": "w"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_are_named_by_options_and_the_range_after_x(tmp_path, quick, suffix):
    table = ragged_table(30)
    save(table.rename(columns=RENAMED).assign(x="?", weight=-1), tmp_path / f"t.{suffix}")
    arguments = [part for role, name in RENAMED.items() for part in (f"--{role}", name)]
    out = tmp_path / "fits.csv"
    assert cli.run_verb("fit", [str(tmp_path / f"t.{suffix}"), "--out", str(out), *arguments], debug=False) == 0
    fits = pd.read_csv(out)
    assert list(fits) == [name.replace("position", "step") for name in COLUMNS]
    same(fits, expected(table))


def test_mistakes_in_names_of_columns_list_those_that_are_there(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("run,step,loss\na,1,3\na,2,2\n")
    np.save(tmp_path / "c.npy", curves(3))
    named = ["--curve", "run", "--x", "step"]
    for source, arguments, sentence in (
        ("t.csv", [*named, "--y", "los"], "lacks the columns ['los']; it has ['run', 'step', 'loss']"),
        ("t.csv", [*named, "--y", "loss", "--weight", "w"], "lacks the columns ['w']"),
        ("t.csv", [*named, "--y", "step"], "the column step of"),
        ("c.npy", ["--y", "loss"], "name columns of a .csv or .parquet; c.npy has none"),
        (".", ["--x", "step"], "--x names a column of a table, found the run or surface"),
    ):
        out = ["--out", str(tmp_path / "o.csv")]
        assert cli.run_verb("fit", [str(tmp_path / source), *out, *arguments], debug=False) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert sorted(os.listdir(tmp_path)) == ["c.npy", "t.csv"]


def test_a_malformed_cell_is_told_by_the_name_of_its_column(tmp_path, quick):
    (tmp_path / "t.csv").write_text("run,step,loss\na,1,oops\nb,inf,2\n")
    names = {"curve": "run", "x": "step", "y": "loss"}
    with pytest.warns(UserWarning, match="loss is 'oops'"):
        fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv", **names)
    problems = pd.read_csv(tmp_path / "o.csv.errors.csv").problem.tolist()
    assert problems == ["loss is 'oops', not a number", "step is inf, expected a finite number"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("shard_bytes", [40, 1 << 20])
def test_a_point_without_y_is_left_out_and_counted(tmp_path, quick, suffix, shard_bytes):
    cells = [
        ("a", 1, "3"),
        ("a", 2, ""),
        ("a", 3, "NaN"),
        ("b", 1, "3"),
        ("b", 2, "2"),
        ("c", 1, "null"),
        ("c", 2, "5"),
    ]
    table = pd.DataFrame(cells, columns=["curve", "x", "loss"])
    if suffix == "parquet":
        table["loss"] = pd.to_numeric(table.loss, errors="coerce")
    save(table, tmp_path / f"t.{suffix}", rows=3)
    summary = fit_table(HYPERBOLIC, tmp_path / f"t.{suffix}", tmp_path / "o.csv", y="loss", shard_bytes=shard_bytes)
    assert (summary.malformed_rows, summary.left_out) == (0, {"loss is missing": 3})
    fits = pd.read_csv(tmp_path / "o.csv")
    assert fits.a0.tolist() == [1, 2, 1]
    assert fits.a1.tolist() == [3, 5, 5]
    assert fits.position_low.tolist() == [1, 1, 2]
    assert fits.position_high.tolist() == [1, 2, 2]


def test_missing_points_are_said_and_the_curve_is_fitted_as_without_them(tmp_path, capsys, tolerance):
    table = pd.DataFrame({"curve": "a", "x": POSITION, "y": curves(1)[0] + 1e-3 * np.sin(np.arange(32))})
    save(table.drop([4, 9]), tmp_path / "without.csv")
    save(table.assign(y=table.y.mask(table.index.isin([4, 9]))), tmp_path / "t.csv")
    for name in ("t", "without"):
        arguments = [str(tmp_path / f"{name}.csv"), "--out", str(tmp_path / f"fits-{name}.csv")]
        assert cli.run_verb("fit", arguments, debug=False) == 0
        assert ("points left out: 2 where y is missing" in capsys.readouterr().out) == (name == "t")
    fits, truth = (pd.read_csv(tmp_path / f"fits-{name}.csv") for name in ("t", "without"))
    np.testing.assert_allclose(fits[["a0", "a1", "a2"]], truth[["a0", "a1", "a2"]], rtol=tolerance["solver"])


def noisy_table(n: int = 2) -> pd.DataFrame:
    y = curves(n) + 1e-3 * np.sin(np.arange(32))
    return pd.concat([pd.DataFrame({"curve": f"c{k}", "x": POSITION, "y": y[k]}) for k in range(n)], ignore_index=True)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_unsorted_rows_of_a_curve_give_the_bits_of_sorted_ones(tmp_path, suffix):
    table = noisy_table()
    mixed = table.sample(frac=1, random_state=3).sort_values("curve", kind="stable")
    assert (np.diff(mixed.x) < 0).sum() > 10
    for name, rows in (("sorted", table), ("mixed", mixed)):
        save(rows, tmp_path / f"{name}.{suffix}", rows=7)
        summary = fit_table(HYPERBOLIC, tmp_path / f"{name}.{suffix}", tmp_path / f"fits-{name}.parquet")
        assert summary.status == {"converged": 2}
    fits, truth = (pd.read_parquet(tmp_path / f"fits-{name}.parquet") for name in ("mixed", "sorted"))
    assert fits.equals(truth)


def test_two_points_at_one_x_are_two_points(tmp_path, tolerance):
    table = noisy_table(1)
    twice = pd.concat([table, table.assign(y=table.y + 0.01)]).sort_values("x", kind="stable")
    save(twice.sample(frac=1, random_state=0), tmp_path / "t.csv")
    fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv")
    direct = fit(HYPERBOLIC, twice.y.to_numpy(), x=twice.x.to_numpy())
    fits = pd.read_csv(tmp_path / "o.csv")
    np.testing.assert_allclose(fits.loc[0, ["a0", "a1", "a2"]].astype(float), direct.params, rtol=1e-5)
    np.testing.assert_allclose(fits.sse[0], direct.sse, rtol=tolerance["solver"])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a,1,inf\na,2,3\nb,1,inf\n", "non_finite: NaN or infinity in the data"),
        ("a,1,3\na,2,\nb,1,\n", "too_few_points: no more points than parameters"),
    ],
)
def test_a_table_none_of_whose_curves_could_be_fitted_is_a_failure(
    tmp_path, quick, capsys, monkeypatch, rows, sentence
):
    def few(law, y, x, weights=None, **options):
        fits = moments(law, y, x, weights)
        counted = fits.params[:, 0] <= 3
        return fits._replace(status=np.where(counted, Status.TOO_FEW_POINTS, fits.status).astype(np.int8))

    monkeypatch.setattr(worker, "fit_rows", few)
    (tmp_path / "t.csv").write_text("curve,x,y\n" + rows)
    arguments = [str(tmp_path / "t.csv"), "--out", str(tmp_path / "o.csv")]
    assert cli.run_verb("fit", arguments, debug=False) == 2
    assert f"t.csv could be fitted; {sentence}" in capsys.readouterr().err.replace("\n", " ")
    assert pd.read_csv(tmp_path / "o.csv").curve.tolist() == ["a", "b"]


def test_a_point_at_zero_where_the_law_has_no_value_is_left_out(tmp_path, capsys):
    y = 3 * np.arange(1.0, 41) ** -0.4 + 2 + 1e-3 * np.sin(np.arange(40))
    rows = [pd.DataFrame({"curve": c, "step": np.arange(1.0, 41), "y": y}) for c in "ab"]
    begun = pd.DataFrame({"curve": ["a", "c"], "step": 0.0, "y": 9.0})  # c has no other point
    save(pd.concat(rows), tmp_path / "without.csv")
    save(pd.concat([begun, *rows]).sort_values("curve", kind="stable"), tmp_path / "t.csv")
    for name in ("t", "without"):
        arguments = [str(tmp_path / f"{name}.csv"), "--out", str(tmp_path / f"fits-{name}.csv")]
        assert cli.run_verb("fit", [*arguments, "--law", "power", "--x", "step"], debug=False) == 0
        said = "points left out: 2 where step is 0 (the law power has no value there)" in capsys.readouterr().out
        assert said == (name == "t")
    fits, truth = (pd.read_csv(tmp_path / f"fits-{name}.csv") for name in ("t", "without"))
    pd.testing.assert_frame_equal(fits[:2], truth, check_dtype=False)
    assert fits.status[2] == "too_few_points"
    assert fits.iloc[2, 1:-1].isna().all()


def test_a_point_at_zero_is_fitted_where_the_law_has_a_value(tmp_path, quick, monkeypatch):
    def everywhere(law, y, x, weights=None, **options):
        return moments(law, y, x + 1, weights)

    monkeypatch.setattr(worker, "fit_rows", everywhere)
    (tmp_path / "t.csv").write_text("curve,x,y\na,0,3\na,1,2\n")
    summary = fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "o.csv")
    assert summary.left_out == {}
    assert pd.read_csv(tmp_path / "o.csv").a0.tolist() == [2]


MINE = """
import jax.numpy as jnp
from tsl_jax.laws import Law, families

def basis(shape, x):
    return jnp.stack([1 / (1 + shape[0] * x), jnp.ones_like(x)], axis=-1)

def broken(shape, x):
    return x.no_such_thing

LAW = Law(name="mine", formula="b0/(1 + b1 x) + b2", params=("b0", "b1", "b2"), shapes=("b1",), coefs=("b0", "b2"),
          basis=basis, bounds=families.rate, source="this test")
BROKEN = Law(**{**vars(LAW), "basis": broken})

def plain(x, c0, c1, c2):
    return c0 / (1 + c1 * x) + c2
NUMBER = 3
"""


def test_a_law_of_ones_own_is_named_on_the_command_line(tmp_path, quick, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    save(ragged_table(12), tmp_path / "t.csv")
    arguments = [str(tmp_path / "t.csv"), "--law", f"{tmp_path}/mine.py:LAW", "--out", str(tmp_path / "o.csv")]
    assert cli.run_verb("fit", arguments, debug=False) == 0
    fits = pd.read_csv(tmp_path / "o.csv")
    assert list(fits)[:4] == ["curve", "b0", "b1", "b2"]
    assert "b0/(1 + b1 x) + b2: 12 curves" in capsys.readouterr().out
    arguments[2] = f"{tmp_path}/mine.py:plain"
    assert cli.run_verb("fit", arguments, debug=False) == 0
    assert list(pd.read_csv(tmp_path / "o.csv"))[:4] == ["curve", "c0", "c1", "c2"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mine.py:NONE", "expected NONE = tsl_jax.laws.Law(...) or def NONE.* in .*mine.py, found nothing"),
        ("mine.py:NUMBER", "found a int"),
        ("gone.py:LAW", "gone.py cannot be imported"),
        ("wrong.py:LAW", r"wrong.py cannot be imported \(ZeroDivisionError"),
        ("mine.py:BROKEN", "the law mine cannot be evaluated at x = 1 to 32 .*no_such_thing"),
        ("mine.py", "is unknown; expected one of hyperbolic, .* or a law of your own as ./file.py:NAME"),
    ],
)
def test_a_mistake_in_a_file_with_a_law_is_one_sentence(tmp_path, capsys, name, sentence):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "wrong.py").write_text("LAW = 1 / 0")
    (tmp_path / "t.csv").write_text("curve,x,y\na,1,3\na,2,2\n")
    arguments = [str(tmp_path / "t.csv"), "--law", f"{tmp_path}/{name}", "--out", str(tmp_path / "o.csv")]
    assert cli.run_verb("fit", arguments, debug=False) == 2
    assert re.search(sentence.replace("(...)", r"\(\.\.\.\)"), capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "o.csv").exists()


def test_a_law_that_a_file_of_options_names_does_not_run_by_itself(tmp_path, quick, capsys):
    (tmp_path / "mine.py").write_text(MINE + f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    save(ragged_table(3), tmp_path / "t.csv")
    law = f"{tmp_path}/mine.py:LAW"
    (tmp_path / "c.yaml").write_text(f"law: {law}\n")
    arguments = [str(tmp_path / "t.csv"), "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "o.csv")]
    assert cli.run_verb("fit", arguments, debug=False) == 2
    assert "which is Python that would run" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "ran").exists()
    assert cli.run_verb("fit", [*arguments, "--law", law], debug=False) == 0
    assert (tmp_path / "ran").exists()


def test_coefficients_are_kept_within_the_limits_of_the_command_line(tmp_path, tolerance):
    table = noisy_table(1)
    save(table, tmp_path / "t.csv")
    limits = ["--coef-limits", "a2=:3.9", "--coef-limits", "a0=0:"]
    arguments = [str(tmp_path / "t.csv"), "--out", str(tmp_path / "o.csv"), *limits]
    assert cli.run_verb("fit", arguments, debug=False) == 0
    direct = fit(HYPERBOLIC, table.y.to_numpy(), x=POSITION, coef_limits={"a2": (None, 3.9), "a0": (0, None)})
    fits = pd.read_csv(tmp_path / "o.csv")
    assert fits.a2[0] == 3.9
    np.testing.assert_allclose(fits.loc[0, ["a0", "a1", "a2"]].astype(float), direct.params, rtol=tolerance["solver"])


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (["a2"], "expected COEF=LOW:HIGH such as a2=0: or a2=1.6:1.6, found 'a2'"),
        (["a2=0:1:2"], "expected COEF=LOW:HIGH"),
        (["a2=low:"], "found 'a2=low:'"),
        (["a1=0:"], "limits are for coefficients ('a0', 'a2') of hyperbolic, found 'a1'"),
        (["a2=2:1"], "must be (low, high) with low <= high"),
        (["a2=0:", "a2=:1"], "names a2 twice"),
        (["a0=1:"], "the limit 1.0 of a0 would depend on the shape of hyperbolic"),
    ],
)
def test_limits_that_make_no_sense_are_refused_before_any_work(tmp_path, quick, capsys, limits, sentence):
    (tmp_path / "t.csv").write_text("curve,x,y\na,1,3\na,2,2\n")
    options = [part for limit in limits for part in ("--coef-limits", limit)]
    arguments = [str(tmp_path / "t.csv"), "--out", str(tmp_path / "o.csv"), *options]
    assert cli.run_verb("fit", arguments, debug=False) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert os.listdir(tmp_path) == ["t.csv"]
