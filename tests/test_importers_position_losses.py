"""Losses by position from any trainer: sums are exact, a kill costs a line at most, and a surface comes out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cli import tsl_command

import tsl_jax as tsl
from tsl_jax.importers import PositionLosses

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
RNG = np.random.default_rng(0)
LOSS = 2 + 3 / (1 + 0.3 * np.arange(1, 65)) + RNG.normal(0, 0.4, (6, 20, 64))  # (evaluation, window, position)


def write(path: Path, evaluations, rank: int = 0, windows: slice = slice(None)) -> None:
    losses = PositionLosses(path, rank)
    for k in evaluations:
        for half in np.array_split(LOSS[k, windows], 2):
            losses.add(half, domain="web")
        losses.add(LOSS[k, windows] + 1, domain="code")
        losses.write(step=k * 10 + 10, tokens=(k + 1) * 1000, lr=3e-4)


def surface_of(path: Path, **options):
    (surface,) = tsl.read_log(path, **options).surfaces.values()
    return surface


def test_a_surface_has_the_means_and_their_errors(tmp_path: Path) -> None:
    write(tmp_path / "losses.jsonl", range(6))
    surface = surface_of(tmp_path / "losses.jsonl")
    assert dict(surface.sizes) == {"split": 2, "tokens": 6, "position": 64}
    assert surface.position.values.tolist() == list(range(1, 65))
    assert surface.step.values.tolist() == [10, 20, 30, 40, 50, 60]
    np.testing.assert_allclose(surface.loss.sel(split="web"), LOSS.mean(1), atol=1e-6)
    np.testing.assert_allclose(surface.loss.sel(split="code"), LOSS.mean(1) + 1, atol=1e-6)
    np.testing.assert_allclose(surface.sem.sel(split="web"), LOSS.std(1, ddof=1) / 20**0.5, rtol=0.01)
    saved = tsl.load_surface(tsl.save_surface(surface, tmp_path / "a"))
    assert saved.identical(surface)


def test_a_line_is_a_few_kilobytes(tmp_path: Path) -> None:
    losses = PositionLosses(tmp_path / "a" / "losses.jsonl")
    losses.add(RNG.gamma(2, 2, (64, 1024)))
    losses.write(step=1)
    assert (tmp_path / "a" / "losses.jsonl").stat().st_size < 8000
    losses.write(step=2)  # nothing was added
    assert surface_of(tmp_path / "a" / "losses.jsonl").tokens.values.tolist() == [1]


def test_a_kill_costs_the_line_that_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    write(path, range(3))
    whole = path.read_bytes()
    for cut in (1, 7, 200):
        path.write_bytes(whole[:-cut])
        write(path, range(3, 6))
        result = tsl.read_log(path)
        surface = result.surfaces["losses"]
        assert surface.sizes["tokens"] == 6
        assert surface.loss.isnull().sum() == (64 if cut > 1 else 0)
        assert [finding.code for finding in result.warnings] == (["cut_record"] if cut > 1 else [])


def test_a_restart_measures_again_and_ranks_add_up(tmp_path: Path) -> None:
    write(tmp_path / "losses.jsonl", [0, 1, 2, 3])
    write(tmp_path / "losses.jsonl", [2, 5])
    assert surface_of(tmp_path / "losses.jsonl").tokens.values.tolist() == [1000, 2000, 3000, 6000]
    for rank, windows in ((0, slice(0, 8)), (1, slice(8, 20))):
        write(tmp_path / "ranks" / f"losses-{rank}.jsonl", range(6), rank, windows)
    for given in (tmp_path / "ranks", tmp_path / "ranks" / "*.jsonl"):
        np.testing.assert_allclose(surface_of(given).loss.sel(split="web"), LOSS.mean(1), atol=2e-6)


def test_padding_is_left_out_and_mistakes_are_named(tmp_path: Path) -> None:
    losses = PositionLosses(tmp_path / "losses.jsonl")
    padded = LOSS[0].copy()
    padded[:10, 32:] = np.nan
    losses.add(padded)
    losses.add(np.full((3, 64), 99.0), mask=np.zeros((3, 64)))
    losses.write(step=1, tokens=5)
    surface = surface_of(tmp_path / "losses.jsonl")
    np.testing.assert_allclose(surface.loss[0, 0], np.nanmean(padded, 0), atol=1e-6)
    assert surface["count"].values[0, 0, [0, 63]].tolist() == [20, 10]
    losses.add(LOSS[0])
    with pytest.raises(ValueError, match="windows of 32 positions after some of 64"):
        losses.add(LOSS[0, :, :32])
    with pytest.raises(ValueError, match=r"expected \(batch, position\), found shape \(6, 20, 64\)"):
        losses.add(LOSS)
    (tmp_path / "bad.jsonl").write_text('{"format": "tsl_jax position losses 1", "data": 1}\n')
    with pytest.raises(ValueError, match="holds no whole record"):
        tsl.read_log(tmp_path / "bad.jsonl")


def test_the_verb_takes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "losses.jsonl", range(6))
    assert tsl_command("import", tmp_path / "losses.jsonl", "--out", tmp_path / "a.npz") == 0
    assert "6 checkpoints, 1,000 to 6,000 tokens; web" in capsys.readouterr().out
    assert tsl.load_surface(tmp_path / "a.npz").sizes["position"] == 64


def test_a_trainer_needs_numpy_alone() -> None:
    check = (
        "import sys; from tsl_jax.importers import PositionLosses; "
        "heavy = {'jax', 'xarray', 'pandas', 'pyarrow'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_the_example_of_pytorch_learns_to_use_context(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "losses.jsonl"
    subprocess.run([sys.executable, EXAMPLES / "position_losses_pytorch.py", path], check=True, timeout=300)
    loss = surface_of(path).loss.sel(split="phrases")
    assert loss.sizes == {"tokens": 6, "position": 64}
    assert loss[0].mean() > loss[-1].mean()


def test_the_callback_of_transformers_measures_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from position_losses_trainer import PositionLossCallback

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    ids = torch.randint(0, 64, (32, 24), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, eval_strategy="steps", eval_steps=2, report_to=[], save_strategy="no"
    )
    callback = PositionLossCallback(str(tmp_path / "losses.jsonl"), tokens_per_step=8 * 24)
    model = transformers.LlamaForCausalLM(config)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])
    trainer.train()
    surface = surface_of(tmp_path / "losses.jsonl")
    assert surface.tokens.values.tolist() == [384, 768, 1152]
    assert surface.sizes["position"] == 23
    evaluated = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    np.testing.assert_allclose(surface.loss.sel(split="eval").mean("position"), evaluated, rtol=1e-4)
