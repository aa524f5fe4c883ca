"""The command line: quick, one sentence for a mistake, tables as documented. Most verbs run in this process."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from tsl_jax import cli

POSITION = np.arange(1.0, 33.0)
RANGE = ["position_low", "position_high"]
COLUMNS = ["curve", "a0", "a1", "a2", "a0_stderr", "a1_stderr", "a2_stderr", "sse", "r2", *RANGE, "status"]


def tsl_command(*arguments: object) -> int:
    """Exit code of `tsl ARGUMENTS`, in this process."""
    verb, *rest = map(str, arguments)
    try:
        return cli.run_verb(verb, rest, debug=False)
    except SystemExit as ended:  # the option parser's own
        return int(ended.code or 0)


def curves(n: int = 3) -> np.ndarray:
    a1 = np.linspace(0.2, 0.6, n)[:, None]
    return 1.5 / (1 + a1 * POSITION) + 4


def test_help_is_one_screen_and_loads_nothing_heavy():
    check = (
        "import sys; sys.argv = ['tsl', '--help']; from tsl_jax import cli; cli.main(); "
        "heavy = {'jax', 'numpy', 'xarray', 'tyro', 'rich'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 100 for line in lines)
    assert all(verb in done.stdout for verb in cli.VERBS)


def test_an_interrupted_command_ends_whatever_its_threads_still_do():
    check = (
        "import threading; from tsl_jax import cli\n"
        "def interrupted(arguments):\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    raise KeyboardInterrupt\n"
        "cli._command_line = interrupted; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert done.stderr.startswith("tsl: interrupted; ")


def test_the_options_of_a_verb_load_no_jax():
    """One process for all: the first that loads it is named."""
    check = (
        "import sys; from tsl_jax import cli\n"
        "for verb in cli.VERBS:\n"
        "    sys.argv = ['tsl', verb, '--help']\n"
        "    try: cli.main()\n"
        "    except SystemExit: pass\n"
        "    if 'jax' in sys.modules: sys.exit('jax was imported by ' + verb)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(f"tsl {verb}" in done.stdout for verb in cli.VERBS)


def test_an_unknown_verb_is_refused_in_a_sentence():
    done = subprocess.run([sys.executable, "-m", "tsl_jax.cli", "predict"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "expected one of demo, train" in done.stderr
    assert "Traceback" not in done.stderr


def test_fit_writes_one_row_a_curve(tmp_path, capsys):
    np.save(tmp_path / "curves.npy", curves())
    assert tsl_command("fit", tmp_path / "curves.npy", "--out", tmp_path / "fits.parquet") == 0
    rows = pd.read_parquet(tmp_path / "fits.parquet")
    assert list(rows) == COLUMNS
    assert rows.curve.tolist() == [0, 1, 2]
    np.testing.assert_allclose(rows.a1, [0.2, 0.4, 0.6], rtol=1e-6)
    assert rows.status.tolist() == ["converged"] * 3
    assert "3 curves, 3 converged" in capsys.readouterr().out
    stamp = json.loads(pyarrow.parquet.read_schema(tmp_path / "fits.parquet").metadata[b"tsl_jax"])
    assert stamp["config"]["law"] == "hyperbolic"
    assert len(stamp["config_hash"]) == 12


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_fit_reads_long_tables_with_ragged_curves_and_weights(tmp_path, suffix):
    parts = []
    for name, y, x in zip(["b", "a", "c"], curves(), (POSITION, POSITION, POSITION[:20]), strict=True):
        parts.append(pd.DataFrame({"curve": name, "x": x, "y": y[: len(x)], "weight": 1.0}))
    table = pd.concat(parts, ignore_index=True)
    table.loc[5, ["y", "weight"]] = [99.0, 0.0]  # a point of weight zero is not there
    file = tmp_path / f"table.{suffix}"
    table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file)
    assert tsl_command("fit", file, "--out", tmp_path / "fits.csv") == 0
    rows = pd.read_csv(tmp_path / "fits.csv")
    assert rows.curve.tolist() == ["b", "a", "c"]
    np.testing.assert_allclose(rows.a1, [0.2, 0.4, 0.6], rtol=1e-6)


def mistakes(folder):
    np.save(folder / "good.npy", curves())
    np.save(folder / "cube.npy", np.zeros((2, 2, 2)))
    (folder / "broken.npy").write_bytes(b"not an array")
    (folder / "table.csv").write_text("curve,x\na,1\n")
    (folder / "empty").mkdir()
    (folder / "not.yaml").write_text("- just\n- a list\n")
    (folder / "unknown.yaml").write_text("laww: hyperbolic\n")
    (folder / "wrong.yaml").write_text("tokens: many\n")
    (folder / "windows.yaml").write_text("windows: {id_stretchez: 3}\n")
    good, out = folder / "good.npy", ("--out", folder / "fits.parquet")
    return {
        "no file": (("fit", folder / "none.npy", *out), "no file"),
        "law": (("fit", good, "--law", "parabola", *out), "expected one of hyperbolic"),
        "suffix": (("fit", good, "--out", folder / "fits.xlsx"), "must end in .parquet or .csv"),
        "no losses": (
            ("import", folder / "table.csv", "--out", folder / "s"),
            "no losses were read",
        ),
        "no table": (("import", folder / "gone.csv", "--out", folder / "s"), "gone.csv: No such file"),
        "kind of file": (("fit", folder / "not.yaml", *out), "cannot read not.yaml"),
        "shape": (("fit", folder / "cube.npy", *out), r"expected numbers (curves, positions)"),
        "damaged": (("fit", folder / "broken.npy", *out), "is not a .npy array"),
        "columns": (("fit", folder / "table.csv", *out), "lacks the columns ['y']"),
        "no run": (("report", folder / "empty"), "no surface.json"),
        "no run to forecast": (("forecast", folder / "empty"), "no surface.json"),
        "no run to evaluate": (("evaluate", folder / "empty", "--out", folder / "e"), "name the folder of a run"),
        "cutoff": (("forecast", folder / "empty", "--cutoff", "3"), "between 0 and 1"),
        "suffix of a forecast": (("forecast", folder / "empty", "--out", folder / "f.csv"), "is a .json file, found"),
        "config": (("fit", good, *out, "--config", folder / "not.yaml"), "expected a mapping"),
        "entry": (("fit", good, *out, "--config", folder / "unknown.yaml"), "'laww' is not an option"),
        "kind of entry": (("train", "--out", folder / "r", "--config", folder / "wrong.yaml"), "tokens must be int"),
        "nested entry": (("evaluate", folder, "--config", folder / "windows.yaml"), "has no 'id_stretchez'"),
        "no config": (("fit", good, *out, "--config", folder / "gone.yaml"), "gone.yaml: No such file"),
        "empty text": (("train", "--text", folder / "*.nothing", "--out", folder / "r"), "nothing"),
        "option": (("fit", good, *out, "--lawless"), ""),
    }


MISTAKES = [
    *(
        "no file",
        "law",
        "suffix",
        "no losses",
        "no table",
        "kind of file",
        "shape",
        "damaged",
        "columns",
        "no run",
        "no run to forecast",
    ),
    *(
        "no run to evaluate",
        "cutoff",
        "suffix of a forecast",
        "config",
        "entry",
        "kind of entry",
        "nested entry",
        "no config",
        "empty text",
        "option",
    ),
]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_a_sentence_and_exit_code_2(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TSL_JAX_CACHE", str(tmp_path / "cache"))
    arguments, sentence = mistakes(tmp_path)[name]
    assert tsl_command(*arguments) == 2
    output = capsys.readouterr()
    assert sentence in output.err.replace("\n", " ")
    assert "Traceback" not in output.err + output.out
    assert not (tmp_path / "fits.parquet").exists()


def test_a_wrong_option_prints_no_headline_and_leaves_no_folder(tmp_path, capsys):
    for options in (("--tokens", 10), ("--position-weights", "head"), ("--text", tmp_path / "none")):
        assert tsl_command("train", "--out", tmp_path / "run", *options) == 2
        assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_whole_numbers_may_have_a_power_of_ten(tmp_path, capsys):
    assert tsl_command("train", "--out", tmp_path / "run", "--tokens", "1e2") == 2
    assert "100 tokens are less than two batches" in capsys.readouterr().err
    assert tsl_command("train", "--out", tmp_path / "run", "--tokens", "1.5e0") == 2
    assert "1.5e0 is not a whole number" in capsys.readouterr().err


def test_debug_shows_where_it_happened(tmp_path):
    with pytest.raises(FileNotFoundError):
        cli.run_verb("report", [str(tmp_path)], debug=True)


def test_options_come_from_a_file_and_the_command_line_wins(tmp_path):
    np.save(tmp_path / "curves.npy", curves())
    (tmp_path / "c.yaml").write_text(
        f"curves: {tmp_path}/curves.npy\nlaw: position_power\nout: {tmp_path}/from_file.csv\n"
    )
    assert tsl_command("fit", "--config", tmp_path / "c.yaml", "--out", tmp_path / "mine.csv") == 0
    assert list(pd.read_csv(tmp_path / "mine.csv"))[1:4] == ["c0", "c1", "c2"]
    assert not (tmp_path / "from_file.csv").exists()


@pytest.mark.parametrize("arguments", ["--help", "fit {folder}/curves.npy --out {folder}/fits.csv"])
def test_a_reader_that_has_seen_enough_is_no_error(arguments, tmp_path):
    np.save(tmp_path / "curves.npy", curves())
    command = f"{sys.executable} -m tsl_jax.cli {arguments.format(folder=tmp_path)} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_verbs_options_choices_and_files(tmp_path, capsys):
    assert cli._command_line(["--print-completion", "bash"]) == 0
    (tmp_path / "tsl.bash").write_text(capsys.readouterr().out)
    (tmp_path / "curves.npy").touch()
    script = """source ./tsl.bash
        words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_tsl; echo "${COMPREPLY[@]}"; }
        words tsl ""; words tsl f; words tsl fit --la; words tsl fit --loss ""; complete -p tsl"""
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    verbs, some, law, losses, registered = done.stdout.splitlines()
    assert set(cli.VERBS) <= set(verbs.split())
    assert some.split() == ["fit", "fits", "forecast"]
    assert law == "--law", "help of several lines is one completion"
    assert losses.split() == ["squares", "huber", "log", "log_huber"]
    assert "-o default" in registered, "what has no completion is a file"


def test_the_completion_of_zsh_names_the_verbs_and_other_shells_are_refused(capsys):
    assert cli._command_line(["--print-completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef tsl")
    assert all(f"'{verb}'" in script for verb in cli.VERBS)
    for arguments in (["fish"], []):
        assert cli._command_line(["--print-completion", *arguments]) == 2
        assert "expected one of bash, zsh, tcsh" in capsys.readouterr().err


@pytest.mark.parametrize("installed", [True, False])
def test_the_completion_of_tcsh_needs_shtab(capsys, monkeypatch, installed):
    if installed:
        pytest.importorskip("shtab")
    else:
        monkeypatch.setitem(sys.modules, "shtab", None)
    code = cli._command_line(["--print-completion", "tcsh"])
    printed = capsys.readouterr()
    assert code == (0 if installed else 2)
    assert ("complete tsl" in printed.out) if installed else ("pip install shtab" in printed.err)
