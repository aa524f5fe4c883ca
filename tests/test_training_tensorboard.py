"""What TensorBoard receives, and the lines below the bars."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tsl_jax.commands.progress import bars, note
from tsl_jax.commands.train import tensorboard_scalars

STEP = {"step": 3, "tokens": 96, "loss": 4.25, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 12345.6}
EVALUATION = {"step": 3, "id/loss": 4.0, "id/head": 4.5, "id/middle": 4.0, "id/tail": 3.5}


def test_every_number_becomes_a_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with tensorboard_scalars(tmp_path) as observe:
        observe(STEP)
        observe(EVALUATION)
    scalars = {}
    (file,) = tmp_path.iterdir()
    data, at = file.read_bytes(), 0
    while at < len(data):  # a record: length (8 bytes), its checksum (4), an event, its checksum (4)
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        scalars |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        at += 12 + size + 4
    assert scalars["train/loss"] == (3, 4.25)
    assert scalars["id/tail"] == (3, 3.5)
    assert set(scalars) == {f"train/{name}" for name in STEP if name != "step"} | set(EVALUATION) - {"step"}


def test_a_missing_package_is_named_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    message = r"tensorboardX is not installed; pip install 'tsl_jax\[tensorboard\]'"
    with pytest.raises(ValueError, match=message), tensorboard_scalars(tmp_path / "tensorboard"):
        pass
    assert not (tmp_path / "tensorboard").exists()


def test_the_lines_below_the_bars_show_speed_and_losses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    lines = "loss 4.250, 12,346 tokens/s\nid: head 4.500, middle 4.000, tail 3.500"
    assert note(STEP | EVALUATION) == lines
    assert note(STEP | {"utilisation": 0.412}) == "loss 4.250, 12,346 tokens/s, 41% of the devices' peak"
    with bars() as progress:
        progress("train", 3, 10)
        progress.observe(STEP)
        progress.observe(EVALUATION)
    output = capsys.readouterr().out
    assert "3/10" in output
    assert all(line in output for line in lines.splitlines())
