"""`tsl models`: the table, one preset, and where its numbers come from. No timing is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tsl_jax import cli
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token
from tsl_jax.models.presets import PRESETS
from tsl_jax.training import resources

QUESTION = ("--vocabulary", "2048", "--context", "64")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run_verb("models", list(arguments), debug=True) == 0
    return capsys.readouterr().out


def test_the_table_has_every_preset_and_needs_no_benchmark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "matrix_rate", None)
    lines = printed(capsys, *QUESTION, "--no-time").splitlines()
    rows = {cells[0]: cells for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines[2:])}
    assert set(PRESETS) <= set(rows)
    assert len({len(line) for line in lines[: 2 + len(PRESETS)]}) == 1, "columns must stand below each other"
    assert rows["demo"][1:5] == ["llama", "2 x 96", "222k", "418k"]
    assert rows["9.8m-moe"][1:5] == ["moe", "8 x 320", "29.8M", "30.5M"]


def test_time_is_tokens_times_flops_by_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "matrix_rate", lambda dtype: 1e12)
    model = resolve(ModelConfig(preset="1m", vocabulary=2048, context=64))
    hours = 2e9 * flops_per_token(model) / 0.5e12 / 3600
    text = printed(capsys, "1m", *QUESTION, "--tokens", "2e9", "--utilisation", "0.5")
    assert f"{hours:.2g} h for 2,000,000,000 tokens" in text
    assert "0.5 of the 1,000 GFLOP/s" in text
    assert f"{16 * (989_568 + 2048 * 128) / 1e6:.3g} MB" in text
    assert f"{20 * 989_568:,} tokens" in printed(capsys, "1m", *QUESTION)
    elsewhere = printed(capsys, "1m", *QUESTION, "--tokens", "2e9", "--utilisation", "0.5", "--rate", "1e12")
    assert f"{hours:.2g} h for" in elsewhere
    assert "given by --rate" in elsewhere


def test_any_shape_of_kaplans_is_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "kaplan-3x96", *QUESTION, "--no-time")
    assert "kaplan-3x96: gpt_neox, vocabulary 2,048, context 64, d_model 96, n_layers 3" in text
    assert "\ntime " not in text


def test_a_gpu_keeps_no_attention_scores_and_runs_only_the_experts_it_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ("9.8m-moe", *QUESTION, "--dtype", "bfloat16", "--no-time", "--platform")
    sizes = [printed(capsys, *args, platform).split("activations ")[1].split(",")[0] for platform in ("cpu", "gpu")]
    tokens, width = 8 * 64 * 8 * 2, 15 * 320
    assert sizes[0] == f"{tokens * (width + 6 * 432 * 8 + 5 * 40) / 1e6:.3g} MB"
    assert sizes[1] == f"{tokens * (width + 6 * 432 * 2) / 1e6:.3g} MB"
    assert cli.run_verb("models", ["--platform", "gpu"], debug=False) == 2
    assert "--platform gpu needs its --rate" in capsys.readouterr().err


def test_dense_experts_are_timed_as_they_run() -> None:
    config = resolve(ModelConfig(preset="9.8m-moe", vocabulary=2048, context=64))
    dense, ragged = (replace(config, experts=kind) for kind in ("dense", "ragged"))
    assert resources.flops_computed(ragged) == flops_per_token(config)
    all_used = replace(dense, experts_per_token=dense.n_experts)
    assert resources.flops_computed(dense) == flops_per_token(all_used)
    assert resources.memory(dense, 8, "cpu")["activations"] > 2 * resources.memory(ragged, 8, "cpu")["activations"]


def test_the_rate_of_this_machine_is_a_number() -> None:
    assert 1e6 < resources.matrix_rate("float32", size=64) < 1e18


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("9m",), "preset '9m' is unknown; choose one of tiny"),
        (("kaplan-2x7",), "rotary heads need"),
        (("--utilisation", "0"), "utilisation is a share between 0 and 1, found 0.0"),
        (("--batch-size", "0"), "found batch_size 0"),
        (("--rate", "-1"), "such as 1e14, found -1.0"),
        (("--vocabulary", "-1"), "vocabulary must be at least 1, found -1"),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_verb("models", [*arguments, "--no-time"], debug=False) == 2
    assert sentence in capsys.readouterr().err
