"""Files that are whole or absent, folders with one writer, and files of somebody else that stay as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tsl_jax as tsl
from tsl_jax import atomic_write, cli, surface
from tsl_jax.atomic_write import append_text, check_outputs, is_unused, locked, write_atomically


def tsl_command(*arguments: object) -> int:
    """Exit code of `tsl ARGUMENTS`, in this process."""
    verb, *rest = map(str, arguments)
    return cli.run_verb(verb, rest, debug=False)


def test_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("keep me")
    (tmp_path / "out").symlink_to(theirs)
    with pytest.raises(OSError, match="symbolic"):
        append_text(tmp_path / "out", "mine")
    (tmp_path / atomic_write.LOCK).symlink_to(theirs)
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path, "test"):
        pass
    write_atomically(tmp_path / "out", "mine")
    assert not (tmp_path / "out").is_symlink()
    monkeypatch.setattr(atomic_write.secrets, "token_hex", lambda n: "00000000")
    (tmp_path / f".new.{os.getpid()}-00000000.tmp").symlink_to(theirs)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "new", "mine")
    assert theirs.read_text() == "keep me"


def test_only_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    ours = (".a.json.123.tmp", ".a.json.123-0123abcd.tmp")
    for name in (*ours, ".notes.tmp", "b.tmp"):
        (tmp_path / name).write_text("")
    atomic_write.remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".notes.tmp", "b.tmp"}


def test_a_folder_is_unused_with_our_lock_and_leftovers_only(tmp_path: Path) -> None:
    assert is_unused(tmp_path / "none")
    for name in (atomic_write.LOCK, ".a.json.123-0123abcd.tmp"):
        (tmp_path / name).write_text("")
    assert is_unused(tmp_path)
    (tmp_path / "letter").write_text("")
    assert not is_unused(tmp_path)
    assert not is_unused(tmp_path / "letter")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def full(file) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(tmp_path / "a.json", full)
    assert raised.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_told_which_one_writes(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tsl_jax.atomic_write import locked
with locked(Path({str(tmp_path)!r}), "test"):
    print("ready", flush=True)
    input()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(ValueError, match=rf"test: process {child.pid} on .* is writing"), locked(tmp_path, "test"):
        pass
    child.kill()
    child.communicate()
    with locked(tmp_path, "test"):
        pass


def test_no_output_is_an_input_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    os.link(tmp_path / "a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "b").write_text("")
    check_outputs([tmp_path / "a", None], [tmp_path / "b", tmp_path / "none"], "test")
    for name in ("a", "hard", "soft", "../" + tmp_path.name + "/a"):
        with pytest.raises(ValueError, match=r"test: the results would overwrite .*/a, which is read"):
            check_outputs([tmp_path / "a"], [tmp_path / name], "test")


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens, position = np.arange(1, 9) * 1000, np.arange(1, 5)
    loss = 3 + 1 / position + 1e3 / tokens[:, None]
    return tsl.save_surface(tsl.from_losses(loss, tokens=tokens), tmp_path_factory.mktemp("run") / "run.npz")


def test_results_never_replace_files_of_somebody_else(run: Path, tmp_path: Path, capsys) -> None:
    theirs = {"plan.json": "[1]", "report.html": "<h1>mine</h1>", "summary.json": "{}", "figures/mine.pdf": "mine"}
    for name, text in theirs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for verb in ("forecast", "backtest"):
        assert tsl_command(verb, run, "--out", tmp_path / "plan.json") == 2
        assert f"plan.json is there and is no result of tsl {verb}" in capsys.readouterr().err
    for name in list(theirs)[1:]:
        folder = tmp_path / f"with-{name[:3]}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(theirs[name])
        assert tsl_command("report", run, "--out", folder) == 2
        assert "is there and is no report; move it away" in capsys.readouterr().err
        assert (folder / name).read_text() == theirs[name]
    (tmp_path / "surface").mkdir()
    (tmp_path / "surface" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and holds no surface; use a new folder"):
        surface.create(tmp_path / "surface", clusters={"id": 2}, context=4, attrs={})
    assert {name: (tmp_path / name).read_text() for name in theirs} == theirs


def test_a_plan_that_is_read_is_not_overwritten(run: Path, tmp_path: Path, capsys) -> None:
    plan = tmp_path / "plan.json"
    text = json.dumps({"kind": "constant", "peak": 1e-3, "warmup_tokens": 0, "total_tokens": 20_000})
    plan.write_text(text)
    assert tsl_command("forecast", run, "--schedule", plan, "--out", plan) == 2
    assert "the results would overwrite" in capsys.readouterr().err
    assert plan.read_text() == text


def test_a_folder_that_cannot_be_written_is_known_before_the_work(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (("report", run, "--out", tmp_path / "file" / "out"),
                      ("forecast", run, "--out", tmp_path / "file" / "out.json"),
                      ("fit", run, "--out", tmp_path / "file" / "out.csv")):  # fmt: skip
        assert tsl_command(*arguments) == 2
        assert "is no folder" in capsys.readouterr().err
