"""Logs that were read wrongly, or refused, before logs were stitched: each with the value that is right."""

from pathlib import Path

import pytest
from test_cli import tsl_command

import tsl_jax as tsl

RESUMED = "step,tokens,loss,lr\n" + "".join(
    f"{k * 100},{k}000000,{loss},3e-4\n"
    for k, loss in (
        *enumerate((7.0, 5.8284, 5.3094, 5.0, 4.7889, 4.633, 4.5119, 4.4142, 4.3333), 1),
        *enumerate((4.5219, 4.4242, 4.3433, 4.2749, 4.216, 4.1647, 4.1194, 4.079), 7),
    )
)
TRAINER = """{"step": 10, "loss": 5.0, "learning_rate": 0.0001}
{"step": 20, "loss": 4.5, "learning_rate": 0.0002}
{"step": 20, "eval_loss": 4.6}
{"step": 30, "loss": 4.2, "learning_rate": 0.0003}
{"step": 40, "loss": 4.0, "learning_rate": 0.0003}
{"step": 40, "eval_loss": 4.1}
{"step": 40, "train_loss": 4.4}
{"epoch": 1.0}
"""
GAPS = "tokens,train_loss,val_loss\n" + "".join(
    f"{k}00000000,{4.9 - k / 20:.4f},{f'{3.9944 - k / 50:.4f}' if k in (5, 10, 15, 20) else ''}\n" for k in range(1, 25)
)


def imported(folder: Path, name: str, text: str, *options: object):
    (folder / name).write_text(text)
    assert tsl_command("import", folder / name, "--out", folder / "a.npz", *options) == 0
    return tsl.load_surface(folder / "a.npz")


@pytest.mark.parametrize(("option", "loss"), [("last", 4.5219), ("first", 4.5119), ("mean", 4.5169)])
def test_a_resumed_run_and_its_option(option: str, loss: float, tmp_path: Path, capsys) -> None:
    surface = imported(tmp_path, "log.csv", RESUMED, "--repeated", option)
    assert surface.sizes["tokens"] == 14
    assert surface.loss.sel(tokens=7_000_000).item() == pytest.approx(loss)
    assert "3 rows of an earlier attempt, steps 700 to 900" in capsys.readouterr().out
    assert tsl_command("import", tmp_path / "log.csv", "--out", tmp_path / "b.npz", "--strict") == 2
    assert "--repeated first keeps them" in capsys.readouterr().err.replace("\n", " ")


def test_losses_and_evaluations_of_one_step_are_one_checkpoint(tmp_path: Path) -> None:
    options = ("--loss", "loss", "eval_loss", "--lr", "learning_rate", "--tokens-per-step", "1000", "--allow-missing")
    for k, given in enumerate((options, ("--tokens-per-step", "1000"))):
        (tmp_path / str(k)).mkdir()
        surface = imported(tmp_path / str(k), "log.jsonl", TRAINER, *given)
        assert surface.tokens.values.tolist() == [10_000, 20_000, 30_000, 40_000]
        evals = surface.loss.sel(split="eval_loss").dropna("tokens")
        assert evals.tokens.values.tolist() == [20_000, 40_000]
        assert evals.values.ravel().tolist() == [4.6, 4.1]
        assert float(surface.lr.sel(tokens=20_000)) == 2e-4


def test_the_last_loss_of_a_split_is_the_last_that_is_known(tmp_path: Path, capsys) -> None:
    imported(tmp_path, "log.csv", GAPS, "--loss", "train_loss", "val_loss", "--allow-missing")
    assert "train_loss 4.850 to 3.700, val_loss 3.894 to 3.594" in capsys.readouterr().out


def test_plain_tables_are_read_strictly_from_python(tmp_path: Path) -> None:
    (tmp_path / "zero.csv").write_text("tokens,loss\n100,4.2\n200,4.1\n300,0.0000\n")
    with pytest.raises(ValueError, match="row 3: loss is 0, expected a loss"):
        tsl.read_table(tmp_path / "zero.csv")
    assert tsl.read_table(tmp_path / "zero.csv", allow_missing=True)["zero"].tokens.values.tolist() == [100, 200]
    rows = "10,5.0,,1e-4\n20,4.5,4.6,2e-4\n25,,4.4,\n30,4.2,,3e-4\n40,4.0,4.1,3e-4\n41,,4.0,\n"
    (tmp_path / "lr.csv").write_text("tokens,train_loss,val_loss,lr\n" + rows)
    surface = tsl.read_table(tmp_path / "lr.csv", loss=["train_loss", "val_loss"], allow_missing=True)["lr"]
    assert surface.lr.values.tolist() == pytest.approx([1e-4, 2e-4, 2.5e-4, 3e-4, 3e-4, 3e-4])
    (tmp_path / "semicolons.csv").write_text("step;tokens;loss\n1;1000;5,0\n2;2000;4,5\n")
    with pytest.raises(ValueError, match=r"cells seem to be parted by ';'.*tsl\.read_log"):
        tsl.read_table(tmp_path / "semicolons.csv")
    (tmp_path / "blanks.csv").write_text("step, tokens, loss\n1, 1000, 5.0\n2, 2000, 4.5\n")
    assert tsl.read_table(tmp_path / "blanks.csv")["blanks"].loss.values.ravel().tolist() == [5.0, 4.5]
    (tmp_path / "twice.csv").write_text(RESUMED)
    with pytest.raises(ValueError, match=r"tsl import stitches a run that was started again, --repeated last"):
        tsl.read_table(tmp_path / "twice.csv")
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 2}]}')
    with pytest.raises(ValueError, match=r"tsl\.read_log and tsl import read other logs"):
        tsl.read_table(tmp_path / "trainer_state.json")
