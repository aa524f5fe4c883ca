"""How many parameters a log's model has: by the user, by what the log states, and the way into `tsl scale`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from importers_material import FORMATS, STEPS, nanogpt
from test_importers_trackers import LOGS

import tsl_jax as tsl
from tsl_jax.cli import run_verb
from tsl_jax.laws import CHINCHILLA

WITH = {"n_params_is": "with embeddings"}


def of(file: Path, text: str | bytes, **options: Any) -> tuple[dict[str, Any], str]:
    """The attributes of the one run of a log that say its size, and the account."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    account = tsl.read_log(file, **options)
    (surface,) = account.surfaces.values()
    return {name: surface.attrs[name] for name in ("n_params", "n_params_is") if name in surface.attrs}, str(account)


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("nanoGPT", "number of parameters: 123.59M", {"n_params": 123_590_000, **WITH}),
        ("nanochat", "Number of parameters: 560,988,160 (scaling: 1,2)", {"n_params": 560_988_160, **WITH}),
        (
            "Megatron-LM",
            "Number of parameters in transformer layers in billions:  6.44\n"
            "Total number of parameters in billions: 6.85",
            {"n_params": 6_440_000_000},
        ),
        (
            "Megatron-LM",
            " > number of parameters on (tensor, pipeline) model parallel rank (0, 0): 345714688\n"
            "  tensor_model_parallel_size ...................... 1\n"
            "  pipeline_model_parallel_size .................... 1",
            {"n_params": 345_714_688, **WITH},
        ),
        (
            "Megatron-LM",  # an eighth of the model
            " > number of parameters on (tensor, pipeline) model parallel rank (0, 0): 345714688\n"
            "  tensor_model_parallel_size ...................... 8\n"
            "  pipeline_model_parallel_size .................... 1",
            {},
        ),
        (
            "OLMo-core",
            "Total number of parameters: 1,176,764,416\nNumber of non-embedding parameters: 1,073,741,824",
            {"n_params": 1_073_741_824},
        ),
        ("torchtitan", "Model llama3 debugmodel size: 6,139,136 total parameters", {"n_params": 6_139_136, **WITH}),
        ("nanotron", "Total number of parameters: 1.61G (3072.05MiB)", {"n_params": 1_610_000_000, **WITH}),
    ],
)
def test_a_number_that_a_log_states_is_kept_with_what_it_counts(
    name: str, line: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    file, write, *_ = FORMATS[name]
    found, account = of(tmp_path / file, f"{line}\n{write()}")
    assert found == expected
    assert ("embeddings counted" in account or "embeddings of tokens counted" in account) == ("n_params_is" in expected)
    assert ("without embeddings" in account) == ("n_params" in expected and "n_params_is" not in expected)
    given, _ = of(tmp_path / file, f"{line}\n{write()}", n_params=5e7)
    assert given == {"n_params": 50_000_000}, "the user's number wins"
    assert of(tmp_path / file, f"{line}\n{write()}", n_params=None)[0] == {}
    if name == "nanoGPT":
        assert of(tmp_path / file, f"{line}\n{write()}", strict=True)[0] == expected, "a fact, which strict lets pass"


def test_the_flops_of_a_trainer_and_the_config_of_a_tracker_say_it(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 4.0 - s / 1000, "epoch": 0.1, "num_input_tokens_seen": 512 * s} for s in STEPS[1:]]
    state = {"log_history": rows, "total_flos": 6.0 * 4096 * 1_000_000, "num_input_tokens_seen": 4096}
    assert of(tmp_path / "trainer_state.json", json.dumps(state))[0] == {"n_params": 1_000_000}
    offline = (LOGS / "run-brisk.wandb").read_bytes()
    assert of(tmp_path / "run-brisk.wandb", offline)[0] == {}
    item = b"\x0a\x14model/num_parameters\x82\x01\x09124439808"  # key and JSON of a config that came later
    record = b"\x2a" + bytes([len(item) + 2]) + b"\x0a" + bytes([len(item)]) + item
    with_config = offline + struct.pack("<IHB", 0, len(record), 1) + record
    assert of(tmp_path / "run-brisk.wandb", with_config)[0] == {"n_params": 124_439_808, **WITH}


def test_imported_sizes_make_a_ladder(tmp_path: Path, capsys: Any) -> None:
    def scale(*arguments: Any) -> int:
        return run_verb("scale", [str(argument) for argument in arguments], debug=False)

    c, runs = CHINCHILLA.published, []
    for size in (1e7, 3e7, 1e8, 3e8, 1e9):
        for ratio in (10, 40):
            tokens = np.linspace(0.1, 1, 8) * size * ratio
            loss = c["E"] + c["A"] / size ** c["alpha"] + c["B"] / tokens ** c["beta"]
            file = tmp_path / f"{size:.0f}-{ratio}.csv"
            lines = [f"{t:.0f},{x + 0.01:.6f},{x:.6f}" for t, x in zip(tokens, loss, strict=True)]
            lines[-1] = lines[-1].rpartition(",")[0] + ","  # no evaluation at the end
            file.write_text("tokens,train_loss,val_loss\n" + "\n".join(lines) + "\n")
            options = [str(file), "--out", str(tmp_path / "runs"), "--n-params", f"{size:g}"]
            assert run_verb("import", options, debug=False) == 0
            runs.append(tmp_path / "runs" / f"{file.stem}.npz")
    fast = ("--law", "kaplan_n", "--loss", "log", "--resamples", 0, "--held-out", 0)
    assert scale("fit", *runs, "--split", "val_loss", *fast) == 0
    out = capsys.readouterr().out
    assert "kaplan_n: (N_c/N)^alpha_N, 10 runs of 5 sizes" in out
    assert "warning" not in out
    by_train = tsl.scaling.read_runs(runs, split="train_loss")
    np.testing.assert_array_equal(by_train.tokens, by_train.n_params * np.tile([10, 40], 5))
    by_val = tsl.scaling.read_runs(runs, split="val_loss")
    assert (by_val.tokens < by_train.tokens).all(), "the last evaluation that there is"


def test_what_an_import_lacks_for_a_ladder_is_said_with_its_option(tmp_path: Path, capsys: Any) -> None:
    def run(verb: str, *arguments: Any) -> int:
        return run_verb(verb, [str(argument) for argument in arguments], debug=False)

    (tmp_path / "nameless.csv").write_text("tokens,loss\n1000,4\n2000,3.5\n")
    (tmp_path / "steps.csv").write_text("step,loss,note\n1,4,a\n2,3.5,b\n")
    (tmp_path / "counted.log").write_text("number of parameters: 123.59M\n" + nanogpt())
    for name, options in (("nameless.csv", ()), ("steps.csv", ("--n-params", "1e6")), ("counted.log", ())):
        assert run("import", tmp_path / name, "--out", tmp_path, *options) == 0
    capsys.readouterr()
    assert run("scale", "fit", tmp_path / "nameless.npz") == 2
    assert "import its log with --n-params N, without embeddings" in capsys.readouterr().err
    assert run("scale", "fit", tmp_path / "steps.npz") == 2
    assert "counts steps, expected tokens; import its log with --tokens-per-step N" in capsys.readouterr().err
    assert run("scale", "fit", tmp_path / "counted.npz") == 2  # one run is no ladder
    assert "n_params of 1 run counts embeddings" in capsys.readouterr().out
    assert run("import", tmp_path / "nameless.csv", "--n-params", "0.5", "--out", tmp_path / "x") == 2
    assert "n_params must be a number of parameters from 1, or a column, found '0.5'" in capsys.readouterr().err
