"""Numbers and files beyond all bounds: a sentence and exit code 2, before any work."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import tsl_jax as tsl
from tsl_jax import cli, processes
from tsl_jax.commands import progress
from tsl_jax.data import cache, text_formats
from tsl_jax.data.config import EvalConfig
from tsl_jax.importers.columns import read_columns
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.reporting import terminal_tables
from tsl_jax.training import resources
from tsl_jax.training.checks import validate_config
from tsl_jax.training.config import OptimizerConfig, TrainConfig
from tsl_jax.yaml_files import read_yaml


def tsl_command(*arguments: object) -> int:
    """Exit code of `tsl ARGUMENTS`, in this process."""
    verb, *rest = map(str, arguments)
    try:
        return cli.run_verb(verb, rest, debug=False)
    except SystemExit as ended:  # the option parser's own
        return int(ended.code or 0)


NUMBERS = {
    "--tokens": ("1e400", "1e30", "1" * 400, "-1", "nan", "inf", "1e16"),
    "--evaluations": ("1e9", "0"),
    "--seed": ("1e30", "-1", "4294967296"),
    "--context": ("1e12",),
    "--weight-updates": ("1e9",),
    "--keep": ("1e12",),
    "--steps-per-call": ("1e9", "-1"),
    "--mesh.fsdp": ("1e9",),
    "--model.n-layers": ("1e6", "-1"),
    "--model.vocabulary": ("1e9",),
    "--model.norm-eps": ("-1", "nan", "1e400"),
    "--model.rope-base": ("0", "-1", "nan", "inf"),
    "--model.balance": ("nan", "-1"),
    "--data.vocabulary": ("1e9",),
    "--data.max-bytes": ("1e25", "0"),
    "--evaluation.id-offsets": ("1e9",),
    "--evaluation.stride": ("1e9",),
    "--optimizer.beta1": ("1", "-1", "nan"),
    "--optimizer.beta2": ("1.5",),
    "--optimizer.eps": ("-1", "0", "nan", "1e400"),
    "--optimizer.weight-decay": ("-1", "nan", "inf"),
    "--optimizer.clip": ("-1", "nan"),
    "--optimizer.decay": ("-1", "nan"),
    "--optimizer.peak-lr": ("nan", "1e400"),
    "--optimizer.cycles": ("1e12",),
    "--changes": (".5:batch=1" + "0" * 30, ".5:skip=1" + "0" * 30, ".5:lr=1e400"),
    "--on-nonfinite": ("ignore",),
}


@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_out_of_range_is_refused_before_any_work(option: str, tmp_path: Path, capsys) -> None:
    for value in NUMBERS[option]:
        assert tsl_command("train", "--out", tmp_path / "run", option, value) == 2, value
        output = capsys.readouterr()
        assert "defect" not in output.err + output.out
        assert output.err.count("\n") <= 24
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "--tokens", "1e25", "--no-time"),
        ("models", "--context", "1e12", "--no-time"),
        ("models", "--batch-size", "1e12", "--no-time"),
        ("sweep", "none.yaml", "--minutes", "-1"),
        ("reproduce", "position_law", "--minutes", "-1"),
        ("reproduce", "position_law", "--minutes", "nan"),
        ("train", "--out", "new", "--text"),
        ("train", "--text", "--out", "new"),
        ("import", "none.csv", "--out", "new", "--loss"),
    ],
)
def test_so_it_is_with_other_verbs(arguments: tuple[str, ...], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tsl_command(*arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("tsl: ")
    assert "defect" not in output.err


def test_a_run_that_needs_more_memory_than_there_is_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(validated_model(), n_layers=10_000, d_model=4096, d_ff=16_384, n_heads=32, n_kv_heads=32)
    with pytest.raises(ValueError, match=r"needs [\d,.]+ GiB \(parameters .*activations .*\), this machine has [\d.]+"):
        resources.check_memory(model, 8, 100, (1, 1, 1))
    resources.check_memory(validated_model(), 8, 100, (1, 1, 1))
    monkeypatch.setattr(resources, "_memory_here", lambda platform: 0)  # not known
    resources.check_memory(model, 8, 100, (1, 1, 1))


def validated_model() -> ModelConfig:
    return resolve(ModelConfig(preset="tiny"), vocabulary=300, context=64)


def test_what_runs_have_used_so_far_is_within_the_ranges() -> None:
    validate_config(TrainConfig(seed=2**32 - 1, optimizer=OptimizerConfig(clip=0.0, weight_decay=0.0, beta1=0.0)))
    validate_config(TrainConfig(evaluation=EvalConfig(id_stretches=256, id_offsets=64), evaluations=1000))


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens: &own [*own]", "refers to itself in line 1"),
        ("a: &a {b: *a}", "refers to itself"),
        ("\n".join(["a0: &a0 [x, x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12))]),
         "stands for more than 1,000,000 entries"),
        ("a: " + "[" * 700, "nested too deep|not YAML"),
        ("a: [", "not YAML"),
        (b"\xff\xfe\xfd", "not YAML"),
        ("tokens: 4096\nseed: 1\nseed: 2\n", "has the entry 'seed' twice, in lines 2 and 3; keep one"),
        ("model: {d_ff: 8, 'd_ff': 16}", "has the entry 'd_ff' twice"),
    ],
)  # fmt: skip
def test_yaml_is_read_within_bounds(text: str | bytes, message: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_yaml(file)
    for arguments in (("train", "--out", tmp_path / "run", "--config", file), ("sweep", file, "--list"),
                      ("import", file, "--out", tmp_path / "s", "--schedule", file)):  # fmt: skip
        assert tsl_command(*arguments) == 2
        error = capsys.readouterr().err
        assert "a.yaml" in error
        assert len(error) < 2000


def test_a_schedule_in_json_that_is_nested_deeply_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a.json: (nested too deep|not JSON)"):
        tsl.importers.read_plans(tmp_path / "a.json")


def test_a_message_is_a_few_lines_without_control_characters(capsys) -> None:
    assert cli._fail("\n".join(f"line {k}\x1b[31m" for k in range(50)) + "x" * 9_000_000, code=2) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == processes.LINES
    assert len(error) < 3000
    assert "\x1b" not in error
    assert "\\x1b[31m" in error
    assert processes.printable("a\x07b\u202ec\nd é") == "a\\x07b\\u202ec\nd é"


def test_names_are_no_markup_and_no_orders_for_the_terminal(capsys, monkeypatch) -> None:
    names = ["loss[/x]", "eval[ood]", "[bold]b"]
    table = terminal_tables._table(*names)
    terminal_tables._add_row(table, *names[1:])
    Console(width=80).print(table)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    with progress.bars() as bars:
        bars("evaluate loss[/x]", 1, 1)
    assert "evaluate loss[/x]" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the split 'a\\x1b\[31m' has control characters"):
        tsl.from_losses(np.ones((1, 2, 3)), tokens=[1, 2], split=["a\x1b[31m"])


@pytest.mark.filterwarnings("ignore:fit. malformed rows")
def test_a_table_without_a_row_that_can_be_fitted_is_a_failure(tmp_path: Path, capsys) -> None:
    (tmp_path / "t.csv").write_text("curve,x,y\na,one,2\n")
    assert tsl_command("fit", tmp_path / "t.csv", "--out", tmp_path / "o.csv") == 2
    assert "no curve of" in capsys.readouterr().err


def test_an_output_whose_path_is_no_utf_8_is_refused_by_name(tmp_path: Path, capsys) -> None:
    (tmp_path / "t.csv").write_text("curve,x,y\na,1,2\n")
    assert tsl_command("fit", tmp_path / "t.csv", "--out", tmp_path / os.fsdecode(b"o\xff.csv")) == 2
    printed = capsys.readouterr()
    assert "the path of --out is not UTF-8, found" in printed.err
    assert not printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def npy(header: str) -> bytes:
    padded = header.encode() + b" " * (118 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


@pytest.mark.parametrize(
    "shape", ["(10000000000000000000, 3)", "(-1, 3)", "(3, 4)", "[3]", "((((", "{}", "(2, 10**18)"]
)
def test_headers_of_arrays_may_say_anything(shape: str, tmp_path: Path, capsys) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    for name in ("c.npy", "w.npy"):
        (tmp_path / name).write_bytes(npy(header))
    assert tsl_command("fit", tmp_path / "c.npy", "--out", tmp_path / "o.csv") == 2
    assert tsl_command("train", "--out", tmp_path / "run", "--position-weights", tmp_path / "w.npy") == 2
    assert tsl_command("train", "--out", tmp_path / "run", "--text", tmp_path / "c.npy") == 2
    assert "defect" not in capsys.readouterr().err
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    assert tsl_command("fit", tmp_path / "o.npy", "--out", tmp_path / "o.csv") == 2
    assert "allow_pickle" not in capsys.readouterr().err


@pytest.mark.parametrize("cells", [[{"a": 1}] * 2, [[1.0]] * 2, [True, False], [b"1", b"2"]])
def test_columns_of_no_numbers_are_refused(cells: list[Any], tmp_path: Path, capsys) -> None:
    pq.write_table(pa.table({"curve": ["a", "a"], "x": [1.0, 2.0], "y": cells}), tmp_path / "t.parquet")
    assert tsl_command("fit", tmp_path / "t.parquet", "--out", tmp_path / "o.csv") == 2
    assert "the column y of" in capsys.readouterr().err


def test_numbers_of_many_digits_and_counts_that_would_wrap_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"tokens": 1, "loss": 10**399}) + "\n")
    with pytest.raises(ValueError, match=r"loss is .*expected a number"):
        tsl.read_table(tmp_path / "t.jsonl")
    (tmp_path / "t.csv").write_text("tokens,loss,n_params\n1,2,1e300\n")
    with pytest.raises(ValueError, match="n_params is 1e\\+300, expected at most 9e15"):
        tsl.read_table(tmp_path / "t.csv")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"line 1 of deep.jsonl is not JSON"):
        read_columns(tmp_path / "deep.jsonl", ["loss"])


def test_small_files_that_stand_for_large_ones_are_refused(tmp_path: Path, monkeypatch) -> None:
    with gzip.open(tmp_path / "t.txt.gz", "wb") as file:
        file.write(b"a " * 5_000_000)
    with gzip.open(tmp_path / "t.jsonl.gz", "wb") as file:
        file.write(b'{"text": "' + b"a " * 5_000_000 + b'"}\n')
    for name in ("t.txt.gz", "t.jsonl.gz"):
        with pytest.raises(ValueError, match="holds a text of more than 1,000,000 bytes once it is decompressed"):
            list(text_formats.texts(tmp_path / name, "text", "<end>", 1_000_000))
        assert len(next(iter(text_formats.texts(tmp_path / name, "text", "<end>", 1 << 40)))) == 10_000_000
    monkeypatch.setattr("tsl_jax.surface_file.UNPACKED", 1 << 20)
    content = io.BytesIO()
    np.save(content, np.zeros(1 << 20))
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("loss.npy", content.getvalue())
    with pytest.raises(ValueError, match=r"s.npz is damaged: its [\d,]+ bytes unpack to [\d,]+, as"):
        tsl.load_surface(tmp_path / "s.npz")
    monkeypatch.setattr("tsl_jax.importers.columns.MOST_ROWS", 10)
    pq.write_table(pa.table({"tokens": [1] * 100, "loss": [1.0] * 100}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has 100 rows, more than 10"):
        tsl.read_table(tmp_path / "t.parquet")


def test_a_manifest_names_files_of_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name, expected in (("a.npy", True), ("/dev/zero", False), ("../" + tmp_path.name + "/a.npy", False)):
        (tmp_path / cache.MANIFEST).write_text(json.dumps({"files": {name: empty}}))
        assert (cache.read(tmp_path) is not None) == expected


def test_a_user_without_a_home_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TSL_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache.root() == tmp_path / f"tsl_jax-{os.getuid()}"
    assert cache.root().stat().st_mode & 0o777 == 0o700
    cache.root().rmdir()
    (tmp_path / f"tsl_jax-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is not this user's"):
        cache.root()
