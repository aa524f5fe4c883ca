"""Everything odd that logs hold is named, with the right losses read; `strict` refuses it instead."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from importers_material import FORMATS, STEPS, llm_c, loss, nanogpt, torchtitan, trainer_text, val
from test_cli import tsl_command

import tsl_jax as tsl

RNG = np.random.default_rng(0)


def csv(*rows: str, header: str = "step,tokens,loss,lr") -> str:
    return "\n".join([header, *rows]) + "\n"


def curve(n: int = 20) -> list[str]:
    return [f"{k * 100},{k * 10**6},{5 / k**0.1:.4f},3e-4" for k in range(1, n + 1)]


def read(folder: Path, text: str | bytes, name: str = "log.csv", **options):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tsl.read_log(file, **options)


def one(result):
    (surface,) = result.surfaces.values()
    return surface


def losses(surface, split: str | None = None) -> dict[int, float]:
    split = split or str(surface.split.values[0])
    values = surface.loss.sel(split=split).values[:, 0]
    return {int(t): float(v) for t, v in zip(surface.tokens.values, values, strict=True) if v == v}


def codes(result) -> set[str]:
    return {finding.code for _, finding in result.findings}


# ------------------------------------------------------------------------------------------- restarts and runs

RESUMED = [*curve(9), *(row.replace(",3e-4", "") + ",3e-4" for row in curve(9)[6:]), *curve(14)[9:]]


def resumed() -> str:
    again = [f"{k * 100},{k * 10**6},{5 / k**0.1 + 0.01:.4f},3e-4" for k in range(7, 15)]
    return csv(*curve(9), *again)


@pytest.mark.parametrize(("repeated", "at_8"), [("last", 0.01), ("first", 0.0), ("mean", 0.005), ("apart", 0.01)])
def test_a_resumed_run_is_stitched_by_the_attempt_that_is_asked_for(repeated: str, at_8: float, tmp_path: Path) -> None:
    result = read(tmp_path, resumed(), repeated=repeated)
    surface = result.surfaces["log"]
    assert surface.sizes["tokens"] == 14
    assert losses(surface)[8_000_000] == pytest.approx(5 / 8**0.1 + at_8, abs=1e-4)
    assert "3 rows of an earlier attempt, steps 700 to 900" in str(result)
    assert "line 11: 700,7000000" in str(result)
    assert list(result.surfaces) == (["log", "log-abandoned-1"] if repeated == "apart" else ["log"])
    if repeated == "apart":
        assert losses(result.surfaces["log-abandoned-1"])[8_000_000] == pytest.approx(5 / 8**0.1, abs=1e-4)


def test_a_rollback_on_another_grid_leaves_the_abandoned_branch_out(tmp_path: Path) -> None:
    rows = [f"{k},{5 / k**0.1:.4f}" for k in (*range(100, 1001, 100), 1100, 1200, 950, *range(1050, 2000, 100))]
    rows[9:12] = ["1000,5.7", "1100,5.7", "1200,5.6"]
    result = read(tmp_path, csv(*rows, header="step,loss"), tokens_per_step=10_000)
    assert one(result).sizes["tokens"] == 20
    assert max(losses(one(result)).values()) < 5
    assert "rollback" in codes(result)
    assert "left out: --repeated first keeps them" in str(result)


APPENDED = [
    name for name in FORMATS if name not in ("trainer_state.json", "Megatron golden", "Lightning", "W&B history")
]


@pytest.mark.parametrize("name", APPENDED)
def test_every_log_that_is_appended_to_is_stitched(name: str, tmp_path: Path) -> None:
    file, write, train, _, _ = FORMATS[name]
    whole = one(read(tmp_path, write(), file))
    result = read(tmp_path, write(STEPS[:13]) + write(STEPS[9:]), file)
    assert codes(result) & {"restart"}, str(result)
    np.testing.assert_array_equal(one(result).loss.sel(split=train), whole.loss.sel(split=train))


@pytest.mark.parametrize("name", [name for name in APPENDED if name not in ("nanotron",)])
def test_several_runs_in_one_file_are_told_apart(name: str, tmp_path: Path) -> None:
    file, write, *_ = FORMATS[name]
    result = read(tmp_path, write() + write(), file)
    first, second = result.surfaces.values()
    np.testing.assert_array_equal(first.loss, second.loss)
    assert "several_runs" in codes(result)
    assert "restart" not in codes(result)


def test_one_run_in_several_files_and_several_runs_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "slurm-1.out").write_text(torchtitan(STEPS[:12]))
    (tmp_path / "slurm-2.out").write_text(torchtitan(STEPS[10:]))
    for given in (tmp_path, tmp_path / "*.out"):
        result = tsl.read_log(given)
        assert one(result).sizes["tokens"] == len(STEPS)
        assert "slurm-2.out continues slurm-1.out" in str(result)
    (tmp_path / "slurm-2.out").write_text(torchtitan())
    (tmp_path / "notes.txt").write_text("nothing here\n")
    result = tsl.read_log(tmp_path)
    assert list(result.surfaces) == ["slurm-1", "slurm-2"]
    assert "passed over" in str(result)


def test_rows_in_no_order_are_sorted_and_no_restart(tmp_path: Path) -> None:
    rows = curve(40)
    for order in (RNG.permutation(40), np.arange(40)[::-1]):
        result = read(tmp_path, csv(*(rows[k] for k in order)))
        assert not result.warnings
        assert list(losses(one(result)).values()) == [float(row.split(",")[2]) for row in rows]


def test_the_step_may_go_back_while_tokens_rise_and_tokens_may_be_counted_anew(tmp_path: Path) -> None:
    rows = [f"{k * 100 if k < 11 else (k - 5) * 100},{k * 10**6},{5 / k**0.1:.4f}" for k in range(1, 21)]
    result = read(tmp_path, csv(*rows, header="step,tokens,loss"))
    assert codes(result) == {"step_back"}
    assert one(result).sizes["tokens"] == 20
    rows = [f"{k * 100},{(k if k < 11 else k - 10) * 10**6},{5 / k**0.1:.4f}" for k in range(1, 21)]
    result = read(tmp_path, csv(*rows, header="step,tokens,loss"))
    assert codes(result) == {"tokens_counted_anew"}
    assert one(result).tokens.values.tolist() == [k * 10**6 for k in range(1, 21)]


def test_rows_logged_by_several_ranks_are_one(tmp_path: Path) -> None:
    lines = llm_c().splitlines()
    result = read(tmp_path, "".join(f"{line}\n{line}\n" for line in lines), "main.log")
    assert losses(one(result), "train_loss") == {s: loss(s) for s in STEPS}
    assert not result.warnings


def test_different_losses_of_one_step_are_named(tmp_path: Path) -> None:
    result = read(
        tmp_path, csv("100,1000,5.0", "200,2000,4.5", "200,2000,4.4", "300,3000,4.2", header="step,tokens,loss")
    )
    assert losses(one(result)) == {1000: 5.0, 2000: 4.4, 3000: 4.2}
    assert "repeated" in codes(result)


# ---------------------------------------------------------------------------------------------- bad losses

BAD = {
    "nan_loss": ("nan", "NaN", "NAN", "-nan"),
    "inf_loss": ("inf", "Infinity"),
    "zero_loss": ("0.0", "0", "0.0000"),
    "negative_loss": ("-1.5",),
}


@pytest.mark.parametrize(("code", "cell"), [(code, cell) for code, cells in BAD.items() for cell in cells])
def test_a_loss_that_is_none_is_missing_and_named(code: str, cell: str, tmp_path: Path) -> None:
    rows = [*curve(17), *(f"{k * 100},{k * 10**6},{cell},3e-4" for k in (18, 19, 20))]
    result = read(tmp_path, csv(*rows))
    assert codes(result) == {code}
    assert one(result).sizes["tokens"] == 17
    assert "from token 18,000,000 on" in str(result)
    assert "line 19" in str(result)
    with pytest.raises(ValueError, match=r"log\.csv: 3 losses are"):
        tsl.read_log(tmp_path / "log.csv", strict=True)


def test_a_bare_nan_in_json_and_a_field_that_disappears_are_named(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"step": k, "loss": 5 / k if k < 8 else float("nan")}) + "\n" for k in range(1, 10))
    assert "nan_loss" in codes(read(tmp_path, rows, "log.jsonl"))
    file, write, *_ = FORMATS["Megatron-LM"]
    text = write().replace(f"lm loss: {loss(600):.6E} | ", "")
    result = read(tmp_path, text, file)
    assert "1 loss is NaN (train_loss)" in str(result)
    assert 600 not in one(result).step.values[np.isfinite(one(result).loss.sel(split="train_loss").values[:, 0])]


def test_a_table_with_nothing_but_bad_losses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no loss is left"):
        read(tmp_path, csv("1,10,nan,1", "2,20,0,1"))


# --------------------------------------------------------------------------------------------------- units


def test_perplexities_become_losses_and_capped_ones_are_missing(tmp_path: Path) -> None:
    rows = [f"{k},{np.exp(5 / k**0.1):.6f}" for k in range(1, 9)]
    result = read(tmp_path, csv(*rows, f"9,{np.exp(20):.6f}", header="step,val_ppl"))
    assert codes(result) >= {"perplexity", "capped_perplexity"}
    assert losses(one(result))[4] == pytest.approx(5 / 4**0.1, abs=1e-5)
    assert 9 not in losses(one(result))
    result = read(tmp_path, csv(*rows, header="step,loss"))
    assert "too_high" in codes(result)
    result = read(tmp_path, csv(*rows, header="step,loss"), loss_unit="perplexity")
    assert losses(one(result))[4] == pytest.approx(5 / 4**0.1, abs=1e-5)
    result = read(tmp_path, csv(*(f"{row},{4 / k}" for k, row in enumerate(rows, 1)), header="step,val_ppl,val_loss"))
    assert one(result).split.values.tolist() == ["val_loss"]


@pytest.mark.parametrize("name", ["val_bpb", "bits_per_byte", "eval/bpb"])
def test_bits_per_byte_are_no_nats_per_token(name: str, tmp_path: Path) -> None:
    text = csv("1,1.0", "2,0.9", "3,0.8", header=f"step,{name}")
    result = read(tmp_path, text)
    assert "bits_per_byte" in codes(result)
    assert losses(one(result))[2] == pytest.approx(0.9 * np.log(2))
    assert one(result).attrs["split_units"] == {name: "nats/byte"}
    assert losses(one(read(tmp_path, text, bytes_per_token=4)))[2] == pytest.approx(3.6 * np.log(2))
    assert losses(one(read(tmp_path, text.replace(name, "loss"), loss_unit="bits/token")))[2] == pytest.approx(
        0.9 * np.log(2)
    )


@pytest.mark.parametrize("name", ["tokens_B", "tokens (B)", "tokens_in_billions", "billion_tokens", "tokens"])
def test_tokens_in_billions_are_named(name: str, tmp_path: Path) -> None:
    rows = [f"{k * 1000},{k * 0.5},{5 / k**0.1:.4f}" for k in range(1, 21)]
    result = read(tmp_path, csv(*rows, header=f"step,{name},loss"))
    assert "tokens_unit" in codes(result)
    assert one(result).tokens.values[[0, -1]].tolist() == [500_000_000, 10_000_000_000]
    whole = read(tmp_path, csv("1000,1,5.0", "2000,2,4.8", header="step,tokens,loss"), tokens_unit=1e9)
    assert one(whole).tokens.values.tolist() == [10**9, 2 * 10**9]
    result = tsl.read_log(tmp_path / "log.csv")
    assert "tokens_unit_doubtful" in codes(result)


def test_a_ramp_is_a_list_and_the_verb_takes_it(tmp_path: Path, capsys) -> None:
    (tmp_path / "log.csv").write_text(csv("10,5", "20,4.5", "30,4.2", header="step,loss"))
    assert one(tsl.read_log(tmp_path / "log.csv", tokens_per_step=[(0, 100), (15, 200)])).tokens.values.tolist() == [
        *(1000, 1500 + 5 * 200, 1500 + 15 * 200)
    ]
    out = tmp_path / "a.npz"
    assert tsl_command("import", tmp_path / "log.csv", "--out", out, "--tokens-per-step", "0:100,15:200") == 0
    assert tsl.load_surface(out).tokens.values.tolist() == [1000, 2500, 4500]
    assert tsl_command("import", tmp_path / "log.csv", "--out", out, "--tokens-per-step", "many") == 2
    assert "0:262144,1000:524288 of a ramp" in capsys.readouterr().err.replace("\n", " ")


# ------------------------------------------------------------------------------------------ damaged tables


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss; rename or remove all but one: it stands twice in the header"):
        read(tmp_path, csv("1000,5.0,9.0", "2000,4.5,8.0", header="tokens,loss,loss"))
    assert one(read(tmp_path, csv("1000,5.0,9,9", "2000,4.5,8,8", header="tokens,loss,x,x"))).sizes["tokens"] == 2


CUT = {
    "log.csv": (csv(*curve(5)), "600,6000000,4.1", 5),
    "log.tsv": (csv(*curve(5)).replace(",", "\t"), "600\t6000000\t4.1", 5),
    "main.log": ("s:1 trl:4.6100 lr:0.1\ns:2 trl:4.5500 lr:0.1\ns:3 trl:4.5200 lr:0.1\n", "s:4 trl:4", 3),
    "log.jsonl": ('{"tokens":1000,"loss":4.61}\n{"tokens":2000,"loss":4.55}\n', '{"tokens":3000,"lo', 2),
}


@pytest.mark.parametrize("name", CUT)
def test_a_last_line_that_is_cut_is_left_out_wherever_it_is_cut(name: str, tmp_path: Path) -> None:
    whole, last, count = CUT[name]
    for length in range(1, len(last) + 1):
        result = read(tmp_path, whole + last[:length], name)
        assert one(result).sizes["tokens"] == count, last[:length]
        assert "cut_last_line" in codes(result), last[:length]


def test_a_whole_last_line_that_lost_its_end_is_kept(tmp_path: Path) -> None:
    result = read(tmp_path, csv("100,4.61", "200,4.55", "300,4.52", "400,4.48", header="step,loss")[:-1])
    assert not result.warnings
    assert losses(one(result))[400] == 4.48
    assert not read(tmp_path, llm_c()[:-1], "main.log").warnings


def test_a_header_that_stands_again_is_skipped_and_other_columns_below_it_are_read(tmp_path: Path) -> None:
    rows = curve(20)
    result = read(tmp_path, csv(*rows[:10], "step,tokens,loss,lr", *rows[10:]))
    assert codes(result) == {"header_again"}
    assert one(result).sizes["tokens"] == 20
    other = [f"{k * 100},{5 / k**0.1:.4f},{k * 10**6},0.5,3e-4" for k in range(11, 21)]
    result = read(tmp_path, csv(*rows[:10], "step,loss,tokens,grad_norm,lr", *other))
    assert losses(one(result)) == losses(one(read(tmp_path, csv(*rows))))


EUROPEAN = {
    "semicolons": "step;tokens;loss\n1;1000;5,0\n2;2000;4,5\n",
    "semicolons and points": "step;tokens;loss\n1;1000;5.0\n2;2000;4.5\n",
    "thousands": "step;tokens;loss\n1;1.000;5,0\n2;2.000;4,5\n",
    "tabs": "step\ttokens\tloss\n1\t1000\t5.0\n2\t2000\t4.5\n",
    "tabs and commas": "step\ttokens\tloss\n1\t1000\t5,0\n2\t2000\t4,5\n",
    "blanks after commas": "step, tokens, loss\n1, 1000, 5.0\n2, 2000, 4.5\n",
    "aligned": "step tokens loss\n1   1000   5.0\n2   2000   4.5\n",
    "quoted": '"step","tokens","loss"\n"1","1,000","5.0"\n"2","2,000","4.5"\n',
    "a mark": "\ufeffstep,tokens,loss\n1,1000,5.0\n2,2000,4.5\n",
    "blank lines": "step,tokens,loss\n\n1,1000,5.0\n\n2,2000,4.5\n\n",
    "a comment": "# run 3\nstep,tokens,loss\n1,1000,5.0\n2,2000,4.5\n",
    "windows": "step,tokens,loss\r\n1,1000,5.0\r\n2,2000,4.5\r\n",
    "pipes": "step|tokens|loss\n1|1000|5.0\n2|2000|4.5\n",
}


@pytest.mark.parametrize("name", EUROPEAN)
def test_tables_with_other_signs_are_read(name: str, tmp_path: Path) -> None:
    result = read(tmp_path, EUROPEAN[name])
    assert losses(one(result)) == {1000: 5.0, 2000: 4.5}
    assert not result.warnings


def test_packed_files_utf16_colours_and_progress_bars_are_read(tmp_path: Path) -> None:
    expected = losses(one(read(tmp_path, nanogpt(), "a.log")), "iter_loss")
    for name, data in (
        ("b.log.gz", gzip.compress(nanogpt().encode())),
        ("c.log", nanogpt().encode("utf-16")),
        ("d.log", nanogpt().replace("\n", "\r\n").encode()),
        ("e.log", nanogpt().replace("\n", "\x1b[0m\n").encode()),
    ):
        assert losses(one(read(tmp_path, data, name)), "iter_loss") == expected, name
    result = read(tmp_path, trainer_text(), "out.txt")
    assert losses(one(result), "train_loss") == {s: loss(s) for s in STEPS}


# ----------------------------------------------------------------------------------------- doubtful curves


def noisy(n: int = 3000, weight: float = 0.0, decimals: int = 4) -> str:
    rng = np.random.default_rng(1)
    clean = 3 + 8 / (1 + np.arange(n) / 40) ** 0.7
    noise, value = rng.normal(0, 0.05, n), 0.0
    rows = []
    for k in range(n):
        value = weight * value + (1 - weight) * noise[k]
        rows.append(f"{k},{clean[k] + value:.{decimals}f}")
    return csv(*rows, header="step,train_loss")


def test_a_smoothed_or_coarse_training_loss_is_named_and_a_plain_one_is_not(tmp_path: Path) -> None:
    assert not read(tmp_path, noisy()).warnings
    assert codes(read(tmp_path, noisy(weight=0.95))) == {"smoothed", "clock_is_steps"}
    assert codes(read(tmp_path, noisy(decimals=2))) == {"coarse", "clock_is_steps"}
    assert not read(tmp_path, noisy(decimals=3)).warnings
    result = read(tmp_path, csv("1,5.0", "2,4.9", header="step,train_loss_ema"))
    assert "smoothed" in codes(result)


def test_a_sampled_export_is_named(tmp_path: Path) -> None:
    rows = noisy().splitlines()[1:]
    kept = np.sort(np.random.default_rng(2).choice(3000, 500, replace=False))
    result = read(tmp_path, csv(*(rows[k] for k in kept), header="step,train_loss"))
    assert "sampled" in codes(result)
    assert not read(tmp_path, csv(*rows[::6], header="step,train_loss")).warnings


def test_evaluations_that_are_carried_along_stand_once(tmp_path: Path) -> None:
    rows = [f"{s},{loss(s)},{val(s - s % 250)}" for s in STEPS]
    result = read(tmp_path, csv(*rows, header="step,train/loss,eval/loss"))
    assert losses(one(result), "eval/loss") == {s: val(s) for s in (0, 250, 500, 750)}
    assert "carried_along" in codes(result)
    for s in STEPS:
        metrics = {"train/CE loss": loss(s), "eval/c4/CE loss": val(s - s % 250)}
        (tmp_path / "olmo").mkdir(exist_ok=True)
        (tmp_path / "olmo" / f"metrics_step{s}.json").write_text(json.dumps(metrics))
    result = tsl.read_log(tmp_path / "olmo")
    assert losses(one(result), "train/CE loss") == {s: loss(s) for s in STEPS}
    assert losses(one(result), "eval/c4/CE loss") == {s: val(s) for s in (0, 250, 500, 750)}


def test_rates_that_evaluations_lack_are_interpolated_and_said(tmp_path: Path) -> None:
    rows = ("10,5.0,,1e-4", "20,4.5,4.6,2e-4", "25,,4.4,", "30,4.2,,3e-4", "40,4.0,4.1,3e-4", "41,,4.0,")
    result = read(tmp_path, csv(*rows, header="step,train_loss,val_loss,lr"))
    rates = dict(zip(one(result).step.values.tolist(), one(result).lr.values.tolist(), strict=True))
    assert rates == {10: 1e-4, 20: 2e-4, 25: pytest.approx(2.5e-4), 30: 3e-4, 40: 3e-4, 41: 3e-4}
    assert "lr_interpolated" in codes(result)
    assert "line 4" in str(result)


def test_rows_without_a_step_are_left_out_and_a_log_without_steps_is_counted(tmp_path: Path) -> None:
    rows = [json.dumps({"step": k, "loss": 5 / k}) for k in range(1, 6)]
    result = read(tmp_path, "\n".join([*rows, json.dumps({"loss": 1.0})]) + "\n", "log.jsonl")
    assert one(result).sizes["tokens"] == 5
    assert "no_step" in codes(result)
    result = read(tmp_path, csv("5.0", "4.5", "4.2", header="loss"))
    assert losses(one(result)) == {1: 5.0, 2: 4.5, 3: 4.2}
    assert "step_inferred" in codes(result)
    assert losses(one(read(tmp_path, csv("5.0", "4.5", header="loss"), logging_steps=50))) == {50: 5.0, 100: 4.5}


def test_batches_that_are_counted_by_epoch_are_one_run(tmp_path: Path) -> None:
    rows = [f"{e},{b},{5 - e / 2 - b / 70:.4f}" for e in range(3) for b in range(10)]
    result = read(tmp_path, csv(*rows, header="epoch,batch,loss"))
    assert list(losses(one(result))) == list(range(30))
    assert codes(result) == {"epochs_joined", "clock_is_steps"}


REFUSED = {
    "runs.csv": ("Name,State,train/loss\na,finished,2.1\nb,crashed,2.2\n", "a table of runs, one row a run"),
    "tracker_metrics.jsonl": ('{"config":{},"summary":{"train/loss":2}}\n', "only the last value of each metric"),
    "text.log": ("all is well\nit goes on\n", "no line with a step and a loss"),
    "empty.log": ("", "no rows"),
    "noloss.csv": ("step,accuracy\n1,0.5\n2,0.6\n", "no column of losses among step, accuracy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_curve_is_refused_with_the_reason(name: str, tmp_path: Path, capsys) -> None:
    text, sentence = REFUSED[name]
    (tmp_path / name).write_text(text)
    assert tsl_command("import", tmp_path / name, "--out", tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------- close relatives of known logs

AT = np.arange(20, 1001, 20)
TRAIN, VALID = np.round(2 + 8 / AT**0.3, 4), np.round(2.1 + 8 / AT**0.3, 4)
BOTH = list(zip(AT.tolist(), TRAIN.tolist(), VALID.tolist(), strict=True))


def test_numbers_of_odd_shapes_in_lines_are_read_whole(tmp_path: Path) -> None:
    """Twelve places for samples, as Megatron-LM has, a Fortran exponent, an exponent with a suffix."""
    line = " iteration {:8d}/ 5000 | consumed samples: {:12d} | learning rate: 6.00D-04 | lm loss: {:.6E} |\n"
    text = "".join(line.format(s, s * (8 if s < 500 else 16), a) for s, a, _ in BOTH)
    found = one(read(tmp_path, text, "slurm.out", sequence_length=2))
    assert found.tokens.values.tolist() == [s * (16 if s < 500 else 32) for s in AT.tolist()]  # none is interpolated
    assert found.lr.values == pytest.approx(6e-4)
    words = "".join(f"step {s} tokens {s / 100:.3e}M loss {a}\n" for s, a, _ in BOTH)
    assert one(read(tmp_path, words, "words.log")).tokens.values.tolist() == [s * 10_000 for s in AT.tolist()]
    table = csv(*(f"{s},{a:.4E},3.0D-04" for s, a, _ in BOTH), header="step,loss,lr").replace("E", "D")
    surface = one(read(tmp_path, table))
    assert losses(surface) == pytest.approx(dict(zip(AT.tolist(), TRAIN, strict=True)))
    assert surface.lr.values == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        *((name, np.log(2)) for name in ("loss_log2", "loss (bits)", "loss_bits_per_token", "loss_base2")),
        *(("loss_4_bits", 1.0), ("loss (nats/token)", 1.0)),
    ],
)
def test_losses_in_bits_by_their_name_become_nats(name: str, factor: float, tmp_path: Path) -> None:
    result = read(tmp_path, csv(*(f"{s},{a}" for s, a, _ in BOTH), header=f"step,{name}"))
    assert list(losses(one(result)).values()) == pytest.approx(TRAIN * factor)
    assert ("bits" in codes(result)) == (factor != 1)


def test_a_perplexity_of_base_two_shows_that_the_loss_is_in_bits(tmp_path: Path) -> None:
    """As fairseq's JSON lines have it: {"loss": "9.508", "ppl": "728.02", "num_updates": "20"}."""
    rows = [{"loss": f"{a:.4f}", "ppl": f"{2**a:.2f}", "num_updates": str(s)} for s, a, _ in BOTH]
    result = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "log.jsonl")
    assert list(losses(one(result)).values()) == pytest.approx(TRAIN * np.log(2))
    assert {"log2_loss", "bits"} <= codes(result)
    plain = read(tmp_path, csv(*(f"{s},{a},{np.exp(a):.2f}" for s, a, _ in BOTH), header="step,loss,ppl"))
    assert "log2_loss" not in codes(plain)
    assert list(losses(one(plain)).values()) == pytest.approx(TRAIN)


def test_a_perplexity_is_read_where_evaluations_have_nothing_else(tmp_path: Path) -> None:
    found = one(
        read(tmp_path, csv(*(f"{s},{a},{np.exp(b):.4f}" for s, a, b in BOTH), header="step,train_loss,val_ppl"))
    )
    assert list(losses(found, "val_ppl").values()) == pytest.approx(VALID, rel=1e-4)


@pytest.mark.parametrize("other", ["train/loss_smooth_0.9", "loss_sum", "total_loss"])
def test_columns_that_are_no_second_loss_are_left_out(other: str, tmp_path: Path) -> None:
    header = f"step,{'lm_loss' if other == 'total_loss' else 'train/loss'},{other}"
    found = one(read(tmp_path, csv(*(f"{s},{a},{a + 1}" for s, a, _ in BOTH), header=header)))
    assert found.split.values.tolist() == [header.split(",")[1]]


@pytest.mark.parametrize("sign", ["\t", ",", ";"])
def test_decimal_commas_of_three_digits_are_no_thousands(sign: str, tmp_path: Path) -> None:
    rows = (f'{s}{sign}"{a:.3f}"'.replace(".", ",") for s, a, _ in BOTH)
    found = one(read(tmp_path, csv(*rows, header=f"step{sign}loss")))
    assert list(losses(found).values()) == pytest.approx(TRAIN, abs=6e-4)  # and not 5257
    thousands = (f'"{s * 50:,}"{sign}"{s * 1000:,}"{sign}{a}' for s, a, _ in BOTH)  # commas beside points
    if sign != ";":
        found = one(read(tmp_path, csv(*thousands, header=f"step{sign}tokens{sign}loss")))
        assert found.tokens.values.tolist() == (AT * 1000).tolist()


def test_what_tensorboard_exports_is_a_loss_by_its_tag_alone(tmp_path: Path) -> None:
    text = csv(*(f"{1.7e9 + s},{s},{a}" for s, a, _ in BOTH), header="Wall time,Step,Value")
    for tag in ("eval_accuracy", "train_learning_rate"):
        with pytest.raises(ValueError, match=rf"no column of losses .*{tag}"):
            read(tmp_path, text, f"run-.-tag-{tag}.csv")
    assert losses(one(read(tmp_path, text, "run-.-tag-eval_accuracy.csv", loss="eval_accuracy")))  # as the user says
    perplexity = one(read(tmp_path, text, "run-.-tag-eval_perplexity.csv"))
    assert list(losses(perplexity, "eval_perplexity").values()) == pytest.approx(np.log(TRAIN))


@pytest.mark.parametrize(("axis", "unit"), [("tokens_seen", 1), ("train/tokens (B)", 1e9), ("iteration", 1)])
def test_a_chart_over_tokens_has_a_run_a_column(axis: str, unit: float, tmp_path: Path) -> None:
    parts = [f'"{run} - loss{part}"' for run in ("a", "b") for part in ("", "__MIN", "__MAX")]
    rows = (f"{s * 1e6 / unit:.6f},{a},{a},{a},{b},{b},{b}" for s, a, b in BOTH)
    result = read(tmp_path, csv(*rows, header=",".join([f'"{axis}"', *parts])))
    assert set(result.surfaces) == {"a", "b"}
    assert losses(result.surfaces["b"]) == pytest.approx(dict(zip((AT * 10**6).tolist(), VALID, strict=True)))


LONG = {
    "mlflow.csv": csv(
        *(f"r1,{key},{v},{s}" for s, a, b in BOTH for key, v in (("train/loss", a), ("valid/loss", b), ("mfu", 0.4))),
        header="Run ID,key,value,step",
    ),
    "values.jsonl": "".join(
        json.dumps({"step": s, "name": name, "value": v}) + "\n"
        for s, a, b in BOTH
        for name, v in (("train/loss", a), ("valid/loss", b))
    ),
    "split.csv": csv(
        *(f"{s},{split},{v}" for s, a, b in BOTH for split, v in (("train", a), ("valid", b))), header="step,split,loss"
    ),
    "type.jsonl": "".join(
        json.dumps({"type": split, "step": s, "loss": v}) + "\n"
        for s, a, b in BOTH
        for split, v in (("train", a), ("valid", b))
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_rows_of_a_metric_or_a_split_each_become_splits(name: str, tmp_path: Path) -> None:
    """Never one curve with losses of training and of evaluation in it."""
    found = one(read(tmp_path, LONG[name], name))
    assert set(found.split.values.tolist()) == {"train/loss", "valid/loss"}
    for split, values in (("train/loss", TRAIN), ("valid/loss", VALID)):
        assert losses(found, split) == pytest.approx(dict(zip(AT.tolist(), values, strict=True)))


def test_seeds_in_one_log_are_runs(tmp_path: Path) -> None:
    rows = (f"{s},{seed},{v}" for s, a, b in BOTH for seed, v in ((1, a), (2, b)))
    found = read(tmp_path, csv(*rows, header="step,seed,loss")).surfaces
    assert [list(losses(surface).values()) for surface in found.values()] == [
        pytest.approx(TRAIN),
        pytest.approx(VALID),
    ]


LINES = {
    "[rank0]: {}": ("iter {s}: loss {a}, time 9.5ms, mfu 1%", "step {s}: train loss {a}, val loss {b}", "nanoGPT text"),
    "2025-03-04 10:00:00,123 INFO {}": ("s:{s} trl:{a} lr:0.1 norm:1", "s:{s} tel:{b}", "llm.c main.log"),
    "0: {}": ("step:{s}/1000 train_loss:{a} train_time:9ms", "step:{s}/1000 val_loss:{b} train_time:9ms", "modded"),
    "| INFO | {}": ("train | step={s} loss={a} ppl=9", "valid | step={s} loss={b} ppl=9", "a step and a loss"),
    "run x, {}": ("[train] iteration: {s} loss: {a}", "[val] step {s} loss: {b}", "a step and a loss"),
    " 9%|#| {s}/1000 [01:02<03:04, 5.1it/s, {}]\r": ("loss={a}", "eval_loss={b}", "the step of a progress bar"),
    "Epoch {s}/1000 - {}": ("loss: {a}", "val_loss: {b}", "an epoch"),
    "step {s}: {}": ("loss = tensor({a}, device='cuda:0')", "val_loss = tensor({b}, device='cuda:0')", "a step"),
}


@pytest.mark.parametrize("around", LINES)
def test_lines_behind_a_logger_or_of_another_shape_are_read(around: str, tmp_path: Path) -> None:
    """All of them, with losses of training and of evaluation apart."""
    train, valid, form = LINES[around]
    text = ""
    for s, a, b in BOTH:
        of = f"{train} {valid}" if "Epoch" in around else None
        text += around.replace("{}", of or train).format(s=s, a=a, b=b) + "\n"
        if s % 100 == 0 and of is None:
            text += around.replace("{}", valid).format(s=s, a=a, b=b) + "\n"
    result = read(tmp_path, text, "train.log")
    found = one(result)
    assert form in result.formats["train.log"]
    at_eval = AT % 100 == 0 if "Epoch" not in around else AT > 0
    curves = [losses(found, split) for split in found.split.values.tolist()]
    for values, at in ((TRAIN, AT > 0), (VALID, at_eval)):
        wanted = pytest.approx(dict(zip(AT[at].tolist(), values[at], strict=True)))
        assert any(curve == wanted for curve in curves), (around, found.split.values)


@pytest.mark.parametrize(
    ("shape", "factor"),
    [("step {k}k loss {a}", 1), ("step {s} tokens: {m} M loss {a}", 1e6), ("step {s} tokens={m}b loss {a}", 1e9)],
)
def test_units_behind_numbers_of_lines_count(shape: str, factor: float, tmp_path: Path) -> None:
    text = "".join(shape.format(s=s, k=f"{s / 1000:.2f}", m=s * 5, a=a) + "\n" for s, a, _ in BOTH)
    wanted = AT if "k}k" in shape else AT * 5 * factor
    assert one(read(tmp_path, text, "train.log")).tokens.values.tolist() == wanted.tolist()


def test_a_table_of_steps_in_thousands_is_read(tmp_path: Path) -> None:
    rows = (f"{s / 1000:g}k,{a}" for s, a, _ in BOTH)
    assert one(read(tmp_path, csv(*rows, header="step,loss"))).tokens.values.tolist() == AT.tolist()


def test_a_cross_entropy_whose_words_are_one_is_a_loss(tmp_path: Path) -> None:
    """Composer's names; a perplexity beside it is not read in its place."""
    header = "step,metrics/eval/LanguageCrossEntropy,metrics/eval/LanguagePerplexity"
    found = one(read(tmp_path, csv(*(f"{s},{b},{np.exp(b):.3f}" for s, _, b in BOTH), header=header)))
    assert found.split.values.tolist() == ["metrics/eval/LanguageCrossEntropy"]


def test_documents_by_step_are_rows_and_lists_of_other_lengths_are_named(tmp_path: Path) -> None:
    by_step = read(tmp_path, json.dumps({str(s): {"loss": a} for s, a, _ in BOTH}), "by_step.json")
    assert losses(one(by_step)) == pytest.approx(dict(zip(AT.tolist(), TRAIN, strict=True)))
    lists = {"step": AT.tolist(), "loss": TRAIN.tolist(), "val_step": [20, 40], "val_loss": [3.0, 2.9]}
    result = read(tmp_path, json.dumps(lists), "lists.json")
    assert losses(one(result)) == pytest.approx(dict(zip(AT.tolist(), TRAIN, strict=True)))
    assert any("val_step, val_loss: of another length than step, left out" in str(f) for f in result.warnings)


def test_a_run_without_a_loss_is_passed_over_among_others(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("step,loss\n1,nan\n2,nan\n")
    (tmp_path / "worse.csv").write_text("step,loss\n1,-3\n2,-4\n")
    with pytest.raises(ValueError, match="and 1 more: no loss is left"):
        tsl.read_log(tmp_path)
    (tmp_path / "good.csv").write_text(csv(*(f"{s},{a}" for s, a, _ in BOTH), header="step,loss"))
    result = tsl.read_log(tmp_path)
    assert list(result.surfaces) == ["good"]
    assert sum("no loss is left" in str(finding) for finding in result.warnings) == 2
    with pytest.raises(ValueError, match="--strict refuses this"):
        tsl.read_log(tmp_path, strict=True)
