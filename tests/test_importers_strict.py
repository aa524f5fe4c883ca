"""`strict` refuses every oddity that an account names, whatever its kind, and no healthy log of any format."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from importers_material import EVALS, FORMATS, STEPS, loss, lr, maxtext_json, val
from test_cli import tsl_command
from test_importers_pathologies import csv, curve, noisy, resumed

import tsl_jax as tsl

HEADER = "step,tokens,loss"


def rollback() -> str:
    steps = (*range(100, 1001, 100), 1100, 1200, 950, *range(1050, 2000, 100))
    return csv(*(f"{k},{5 / k**0.1:.4f}" for k in steps), header="step,loss")


def sampled() -> str:
    rows = noisy().splitlines()[1:]
    kept = np.sort(np.random.default_rng(2).choice(3000, 500, replace=False))
    return csv(*(rows[k] for k in kept), header="step,train_loss")


def two_lines() -> str:
    rows = [f"{s},{loss(s)},,{lr(s)}" for s in STEPS] + [f"{s},,{val(s)},{lr(s)}" for s in EVALS]
    return csv(*sorted(rows, key=lambda row: int(row.split(",")[0])), header="step,train_loss,val_loss,lr")


def rates_missing() -> str:
    rows = [f"{s},{loss(s)},,{lr(s)}" for s in STEPS] + [f"{s + 25},,{val(s)}," for s in EVALS]
    return csv(*sorted(rows, key=lambda row: int(row.split(",")[0])), header="step,train_loss,val_loss,lr")


def objects(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# kind -> (code, file, text): one of each oddity that logs have
ODD: dict[str, tuple[str, str, str]] = {
    "restart": ("restart", "log.csv", resumed()),
    "rollback": ("rollback", "log.csv", rollback()),
    "step back": (
        "step_back",
        "log.csv",
        csv(*(f"{k if k < 11 else k - 5}00,{k}000000,{5 / k**0.1:.4f}" for k in range(1, 21)), header=HEADER),
    ),
    "tokens counted anew": (
        "tokens_counted_anew",
        "log.csv",
        csv(*(f"{k}00,{k if k < 11 else k - 10}000000,{5 / k**0.1:.4f}" for k in range(1, 21)), header=HEADER),
    ),
    "column twice": ("stands twice", "log.csv", csv("1000,5.0,9.0", "2000,4.5,8.0", header="tokens,loss,loss")),
    "zero after NaN": ("zero_loss", "log.csv", csv(*curve(8), "900,9000000,nan,3e-4", "1000,10000000,0.0,3e-4")),
    "NaN": ("nan_loss", "log.csv", csv(*curve(8), "900,9000000,nan,3e-4")),
    "NaN in JSON": (
        "nan_loss",
        "log.jsonl",
        objects([{"step": k, "loss": 5 / k if k < 9 else float("nan")} for k in range(1, 10)]),
    ),
    "NaN in many cells": (
        "nan_cells",
        "log.csv",
        csv(*(f"{k},{5 / k if k % 2 else 'nan'},{4 / k}" for k in range(1, 10)), header="step,train_loss,val_loss"),
    ),
    "infinite": ("inf_loss", "log.csv", csv(*curve(8), "900,9000000,inf,3e-4")),
    "negative": ("negative_loss", "log.csv", csv(*curve(8), "900,9000000,-1.0,3e-4")),
    "header again": ("header_again", "log.csv", csv(*curve(10), "step,tokens,loss,lr", *curve(20)[10:])),
    "cut last line": ("cut_last_line", "log.csv", csv(*curve(10)) + "1100,110"),
    "perplexity": ("perplexity", "log.csv", csv("1,148.4", "2,90.0", "3,60.3", header="step,val_ppl")),
    "capped perplexity": (
        "capped_perplexity",
        "log.csv",
        csv("1,148.4", "2,90.0", f"3,{np.exp(20):.6f}", header="step,val_ppl"),
    ),
    "sum or perplexity": ("too_high", "log.csv", csv("1,148.4", "2,90.0", "3,60.3", header="step,loss")),
    "bits per byte": ("bits_per_byte", "log.csv", csv("1,1.0", "2,0.9", "3,0.8", header="step,val_bpb")),
    "billions": (
        "tokens_unit",
        "log.csv",
        csv(*(f"{k * 1000},{k * 0.5},{5 / k**0.1:.4f}" for k in range(1, 21)), header="step,tokens_B,loss"),
    ),
    "smoothed": ("smoothed", "log.csv", noisy(weight=0.95)),
    "coarse": ("coarse", "log.csv", noisy(decimals=2)),
    "sampled": ("sampled", "log.csv", sampled()),
    "carried along": (
        "carried_along",
        "log.csv",
        csv(*(f"{s},{loss(s)},{val(s - s % 250)}" for s in STEPS), header="step,train/loss,eval/loss"),
    ),
    "checkpoint in two lines": ("several_lines", "log.csv", two_lines()),
    "rates missing": ("lr_interpolated", "log.csv", rates_missing()),
    "different losses of a step": ("repeated", "log.csv", csv("1,10,5", "2,20,4.5", "2,20,4.4", header=HEADER)),
    "rows without a step": ("no_step", "log.jsonl", objects([{"step": 1, "loss": 5}, {"loss": 3}])),
    "no step": ("step_inferred", "log.csv", csv("5.0", "4.5", "4.2", header="loss")),
    "steps by epoch": (
        "epochs_joined",
        "log.csv",
        csv(*(f"{e},{b},{5 - e / 2 - b / 70:.4f}" for e in range(3) for b in range(10)), header="epoch,batch,loss"),
    ),
    "fractions": ("fractions", "log.csv", csv("0.5,5.0", "1.0,4.5", "1.5,4.2", header="step,loss")),
    "micro-batches": (
        "micro_batches",
        "metrics.jsonl",
        objects([{"global_step": s, "acc_step": k, "loss/out": loss(s) + k / 9} for s in STEPS for k in (0, 1)]),
    ),
    "several runs": ("several_runs", "log.csv", csv(*curve(10)) + "\n".join(curve(10)) + "\n"),
    "no order": ("sorted", "log.csv", csv(*curve(10)[::-1])),
    "rounded tokens": ("tokens_rounded", "log.txt", FORMATS["nanotron"][1]()),
    "auxiliary losses": (
        "auxiliary",
        "metrics.jsonl",
        objects([{"learning/loss": loss(s), "step": float(s), "run_name": "base"} for s in STEPS]),
    ),
    "smoothed by its trainer": ("smoothed", "run.out", FORMATS["nanochat"][1]()),
    "no known format": ("format_by_words", "out.txt", "".join(f"[ours] step={s} loss={loss(s)}\n" for s in STEPS)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_strict_refuses_what_an_account_names(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, name, text = ODD[kind]
    (tmp_path / name).write_text(text)
    if code != "stands twice":  # that is refused always
        account = tsl.read_log(tmp_path / name)
        assert code in {finding.code for _, finding in account.findings}, str(account)
    with pytest.raises(ValueError, match=code):
        tsl.read_log(tmp_path / name, strict=True)
    assert tsl_command("import", tmp_path / name, "--out", tmp_path / "out", "--strict") == 2
    assert "import: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_strict_names_each_kind_once_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(csv(*curve(8), "900,9000000,nan,3e-4", "1000,10000000,0.0,3e-4"))
    with pytest.raises(ValueError, match=r"1 loss is NaN.*nan_loss.*zero_loss.*without it the log is read"):
        tsl.read_log(tmp_path / "log.csv", strict=True)


def test_strict_refuses_a_run_in_several_files_and_files_that_are_passed_over(tmp_path: Path) -> None:
    write: Callable[..., str] = FORMATS["torchtitan"][1]
    (tmp_path / "slurm-1.out").write_text(write(STEPS[:12]))
    (tmp_path / "slurm-2.out").write_text(write(STEPS[12:]))
    with pytest.raises(ValueError, match=r"slurm-2\.out continues slurm-1\.out"):
        tsl.read_log(tmp_path, strict=True)
    (tmp_path / "slurm-2.out").write_text("nothing here\n")
    with pytest.raises(ValueError, match="1 other files hold no losses"):
        tsl.read_log(tmp_path, strict=True)


def test_strict_refuses_damaged_losses_by_position(tmp_path: Path) -> None:
    losses = tsl.importers.PositionLosses(tmp_path / "losses.jsonl")
    losses.add(np.full((2, 4), 3.0))
    losses.write(step=1, tokens=10)
    assert tsl.read_log(tmp_path / "losses.jsonl", strict=True).surfaces
    with open(tmp_path / "losses.jsonl", "a") as file:
        file.write('{"step": 2, "tok')
    with pytest.raises(ValueError, match="cut_record"):
        tsl.read_log(tmp_path / "losses.jsonl", strict=True)


# These are odd in themselves: averages, rounding, micro-batches, steps that are counted.
NEVER = {"nanochat", "nanotron", "lingua", "Trainer text 5", "Megatron golden"}


@pytest.mark.parametrize("name", sorted(set(FORMATS) - NEVER))
def test_strict_reads_a_healthy_log_of_each_format(name: str, tmp_path: Path) -> None:
    file, write, *_ = FORMATS[name]
    (tmp_path / file).write_text(write())
    assert tsl.read_log(tmp_path / file, strict=True).surfaces


def test_a_column_that_is_named_is_no_longer_doubtful(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(maxtext_json().replace('"learning/lm_loss"', '"learning/total_weights"'))
    assert tsl.read_log(tmp_path / "m.jsonl", strict=True, loss=["learning/loss", "eval/avg_loss"]).surfaces
