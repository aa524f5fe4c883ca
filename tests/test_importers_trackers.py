"""Logs that trackers wrote: kept files of TensorBoard, Weights & Biases, the Trainer and Lightning, and, where one is
installed, the library itself writes one here and now."""

import datetime
import json
import os
import shutil
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
from importers_material import EVALS, STEPS, loss, lr, val, wandb_chart
from test_importers_pathologies import codes, losses, one, read

import tsl_jax as tsl

LOGS = Path(__file__).parent / "data" / "logs"


def rows():
    for s in STEPS:
        yield s, {"train/loss": loss(s), "train/lr": lr(s)}
        if s in EVALS:
            yield s, {"eval/loss": val(s)}


def check(surface, digits: float = 1e-4) -> None:
    """The losses, evaluations and rates of `rows`."""
    assert losses(surface, "train/loss") == {s: pytest.approx(loss(s), abs=digits) for s in STEPS}
    assert losses(surface, "eval/loss") == {s: pytest.approx(val(s), abs=digits) for s in EVALS}
    np.testing.assert_allclose(surface.lr, [lr(s) for s in STEPS], rtol=1e-5)


KEPT = {"tensorboard": "tensorboard", "tensorboard_tensors": "tensorboard_tensors", "run-brisk.wandb": "brisk-pond-1"}


@pytest.mark.parametrize("name", KEPT)
def test_kept_logs_of_trackers_are_read_whole(name: str) -> None:
    result = tsl.read_log(LOGS / name)
    assert list(result.surfaces) == [KEPT[name]]
    check(one(result), 1e-5)
    assert codes(result) == {"clock_is_steps"} | ({"nan_loss"} if name.endswith("wandb") else set())


def test_kept_logs_of_trainers_are_read_whole() -> None:
    state = json.loads((LOGS / "trainer_state.json").read_text())["log_history"]
    expected = {row["num_input_tokens_seen"]: row["loss"] for row in state if "loss" in row}
    surface = one(tsl.read_log(LOGS / "trainer_state.json"))
    assert losses(surface, "loss") == expected
    assert len(losses(surface, "eval_loss")) == 2
    text = one(tsl.read_log(LOGS / "trainer_stdout.txt"))
    assert losses(text, "train_loss") == {tokens: pytest.approx(v, abs=1e-3) for tokens, v in expected.items()}
    assert text.step.values.tolist() == surface.step.values.tolist() == list(range(4, 41, 4))
    result = tsl.read_log(LOGS / "lightning_metrics.csv")
    assert one(result).split.values.tolist() == ["train_loss_step", "val_loss"]
    assert not result.warnings


def test_cut_records_are_left_out_and_said(tmp_path: Path) -> None:
    for name in ("tensorboard/events.out.tfevents.1795915659.host.1.0", "run-brisk.wandb"):
        data = (LOGS / name).read_bytes()
        file = tmp_path / Path(name).name
        for cut in (5, 40, len(data) // 3):
            file.write_bytes(data[:-cut])
            result = tsl.read_log(file)
            assert 0 < one(result).sizes["tokens"] <= len(STEPS)
            assert cut != 5 or "cut_record" in codes(result)


def test_a_restart_in_a_second_event_file_is_stitched(tmp_path: Path) -> None:
    def event(step: int, value: float) -> bytes:
        tag = b"train/loss"
        entry = b"\x0a" + bytes([len(tag)]) + tag + b"\x15" + struct.pack("<f", value)
        summary = b"\x0a" + bytes([len(entry)]) + entry
        data = b"\x10" + bytes([step]) + b"\x2a" + bytes([len(summary)]) + summary
        return struct.pack("<Q", len(data)) + b"0000" + data + b"0000"

    for second, steps, add in ((1, range(1, 11), 0.0), (2, range(8, 20), 1.0)):
        name = f"events.out.tfevents.{second}.host.1.0"
        (tmp_path / name).write_bytes(b"".join(event(k, 5 / k + add) for k in steps))
    result = tsl.read_log(tmp_path)
    assert losses(one(result)) == {k: pytest.approx(5 / k + (k > 7)) for k in range(1, 20)}
    assert "restart" in codes(result)


def mlflow_run(folder: Path, line=lambda time, value, step: f"{time} {value} {step}") -> Path:
    for k, (s, metrics) in enumerate(rows()):
        for name, value in metrics.items():
            file = folder / "metrics" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "a") as out:
                out.write(line(1_700_000_000_000 + 1000 * k, value, s) + "\n")
    (folder / "meta.yaml").write_text("run_name: calm-sea\n")
    return folder


def test_mlflow_folders_are_read_and_steps_of_zero_are_counted(tmp_path: Path) -> None:
    run = mlflow_run(tmp_path / "mlruns" / "0" / "abc")
    for given in (run, tmp_path / "mlruns", tmp_path):
        result = tsl.read_log(given)
        assert list(result.surfaces) == ["calm-sea"]
        check(one(result))
    for k, line in enumerate((lambda time, value, _: f"{time} {value} 0", lambda time, value, _: f"{time} {value}")):
        result = tsl.read_log(mlflow_run(tmp_path / f"old{k}", line))
        assert "step_inferred" in codes(result)
        assert losses(one(result), "train/loss") == {k: loss(s) for k, s in enumerate(STEPS)}


def test_databases_of_trackio_and_mlflow_are_read(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "p.db") as database:
        database.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, "
            "metrics TEXT)"
        )
        for run in ("a", "b"):
            for s, metrics in (*rows(), (1000, {"train/loss": "NaN"}), (1050, {"train/loss": "Infinity"})):
                values = (run * 8, "2026", run, s, json.dumps(metrics))
                database.execute(
                    "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)", values
                )
    database.close()
    result = tsl.read_log(tmp_path / "p.db")
    assert list(result.surfaces) == ["a", "b"]
    for surface in result.surfaces.values():
        check(surface)
    assert {"nan_loss", "inf_loss"} <= codes(result)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute(
            "CREATE TABLE metrics (key TEXT, value REAL, timestamp INTEGER, run_uuid TEXT, step INTEGER, is_nan INT)"
        )
        for k, (s, metrics) in enumerate(rows()):
            for name, value in metrics.items():
                database.execute("INSERT INTO metrics VALUES (?, ?, ?, 'abc', ?, 0)", (name, value, k, s))
    database.close()
    check(one(tsl.read_log(tmp_path / "mlflow.db")))


def test_charts_have_a_run_a_column(tmp_path: Path) -> None:
    result = read(tmp_path, wandb_chart(), "chart.csv")
    assert list(result.surfaces) == ["brisk-pond-1", "calm-sea-2"]
    assert losses(result.surfaces["brisk-pond-1"]) == {s: loss(s) for s in STEPS}
    assert losses(result.surfaces["calm-sea-2"]) == {s: val(s) for s in STEPS if s <= 500}
    assert not result.warnings
    text = wandb_chart().replace('"Step"', '"Relative Time (Process)"').replace("brisk", "Group: brisk")
    result = read(tmp_path, text, "chart.csv")
    assert list(result.surfaces) == ["brisk-pond-1", "calm-sea-2"]
    assert "axis_is_time" in codes(result)


def test_tensorboards_own_export_is_read(tmp_path: Path) -> None:
    text = "Wall time,Step,Value\n" + "".join(f"{1.7e9 + s},{s},{loss(s)}\n" for s in STEPS)
    assert losses(one(read(tmp_path, text, "run-tag-loss.csv"))) == {s: loss(s) for s in STEPS}
    text = json.dumps([[1.7e9 + s, s, loss(s)] for s in STEPS])
    assert losses(one(read(tmp_path, text, "run-tag-loss.json"))) == {s: loss(s) for s in STEPS}


# ------------------------------------------------------------------------------------ by the libraries themselves


@pytest.mark.filterwarnings("ignore")
def test_what_tensorboard_x_writes_is_read(tmp_path: Path) -> None:
    writer = pytest.importorskip("tensorboardX").SummaryWriter(str(tmp_path / "tb"))
    for s, metrics in rows():
        for name, value in metrics.items():
            writer.add_scalar(name, value, s)
    writer.close()
    check(one(tsl.read_log(tmp_path / "tb")), 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_wandb_writes_offline_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = wandb.init(project="p", name="brisk", dir=str(tmp_path))
    for s, metrics in rows():
        run.log(metrics, step=s)
    run.finish()
    check(one(tsl.read_log(tmp_path)))


@pytest.mark.filterwarnings("ignore")
def test_what_mlflow_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run(run_name="calm"):
        for s, metrics in rows():
            for name, value in metrics.items():
                mlflow.log_metric(name, value, step=s)
    check(one(tsl.read_log(tmp_path / "mlruns")))


@pytest.mark.filterwarnings("ignore")
def test_what_trackio_writes_is_read(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    script = (
        "import sys, trackio; sys.path.insert(0, sys.argv[1]); from test_importers_trackers import rows\n"
        "trackio.init(project='p', name='a'); [trackio.log(m, step=s) for s, m in rows()]; trackio.finish()"
    )
    import subprocess
    import sys

    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], env=environment, check=True, timeout=120)
    shutil.rmtree(tmp_path / "media", ignore_errors=True)
    check(one(tsl.read_log(tmp_path)))


def test_a_few_times_of_a_log_are_kept(tmp_path: Path) -> None:
    """A step of 1,024 tokens a second, in lines, in a table of dates or of seconds, in event files."""
    start = datetime.datetime(2025, 6, 4, 23, 59, 0, tzinfo=datetime.UTC)
    when = [start + datetime.timedelta(seconds=k) for k in range(100)]
    loss = [4 - k / 100 for k in range(100)]
    rows = list(zip(range(100), when, loss, strict=True))
    lines = {
        "run.log": [f"[{t:%Y-%m-%d %H:%M:%S},123] INFO step={k} loss={x:.4f}" for k, t, x in rows],
        "dates.csv": ["step,loss,time", *(f"{k},{x:.4f},{t.isoformat()}" for k, t, x in rows)],
        "seconds.csv": ["_step,_timestamp,loss", *(f"{k},{t.timestamp()},{x:.4f}" for k, t, x in rows)],
    }
    for name, rows in lines.items():
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        (surface,) = tsl.read_log(tmp_path / name, tokens_per_step=1024).surfaces.values()
        times = surface.attrs["times"]
        np.testing.assert_allclose(np.diff(times["tokens"]) / np.diff(times["seconds"]), 1024)
        assert 3 <= len(times["tokens"]) <= 32
        assert times["clock"] == ("UTC" if name == "seconds.csv" else "log")
        assert times["seconds"][-1] == when[-1].timestamp()
        assert surface.split.values.tolist() == ["loss"], "the number of the step is no part of a loss's name"
        tsl.save_surface(surface, tmp_path / "kept.npz")
        assert tsl.load_surface(tmp_path / "kept.npz").attrs["times"] == times
    (tensorboard,) = tsl.read_log(LOGS / "tensorboard").surfaces.values()
    assert tensorboard.attrs["times"]["clock"] == "UTC"
