"""Configurations: to a file and back, their hash, and what is refused before any text is read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from tsl_jax.data.config import DataConfig
from tsl_jax.laws import Schedule
from tsl_jax.models.config import ModelConfig
from tsl_jax.training.checks import validate_config
from tsl_jax.training.config import (
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    config_hash,
    from_dict,
    to_dict,
)
from tsl_jax.training.optimizer import lr_plan
from tsl_jax.training.position_weights.weights import PositionWeights
from tsl_jax.training.timeline import resolve_timeline


def test_a_configuration_survives_the_way_through_a_file() -> None:
    config = TrainConfig(
        data=DataConfig(text=("a=x/*.txt@0.5", "b=y@0.5")), model=ModelConfig(tied=False), tokens=10**9, seed=3
    )
    assert from_dict(TrainConfig, to_dict(config)) == config
    assert from_dict(TrainConfig, {"optimizer": {"peak_lr": 1}}).optimizer.peak_lr == 1.0


def test_whole_numbers_may_be_written_with_a_power_of_ten() -> None:
    """YAML reads 1e5 as text and 1.0e+5 as a float."""
    for value in ("1e5", 1.0e5, 100_000, "0.1E+6"):
        assert repr(from_dict(TrainConfig, {"tokens": value}).tokens) == "100000"
    assert from_dict(TrainConfig, {"tokens": "1e23"}).tokens == 10**23
    assert from_dict(TrainConfig, {"optimizer": {"peak_lr": "1e-3"}}).optimizer.peak_lr == 1e-3


def test_the_hash_follows_every_number_that_counts() -> None:
    base = config_hash(TrainConfig())
    assert config_hash(TrainConfig()) == base
    assert config_hash(TrainConfig(keep=9)) == base, "how many checkpoints are kept changes no result"
    assert config_hash(TrainConfig(mesh=MeshConfig(fsdp=8), steps_per_call=4)) == base, "nor does where it is made"
    changed = [TrainConfig(seed=1), TrainConfig(optimizer=OptimizerConfig(peak_lr=1e-3)), TrainConfig(tokens=3_000_000)]
    changed += [
        TrainConfig(optimizer=OptimizerConfig(decay_form="sqrt")),
        TrainConfig(optimizer=OptimizerConfig(cycles=3)),
    ]
    assert len({base, *(config_hash(other) for other in changed)}) == 6


def test_a_configuration_file_without_the_newest_entries_has_the_hash_of_one_with_them() -> None:
    """What a file leaves out keeps its default, so that runs written by an earlier version are found by their hash."""
    values = to_dict(TrainConfig(seed=3))
    earlier = {name: value for name, value in values.items() if name not in ("mesh", "accumulate", "changes")}
    earlier["optimizer"] = {name: value for name, value in values["optimizer"].items() if name != "cycles"}
    assert config_hash(from_dict(TrainConfig, earlier)) == config_hash(TrainConfig(seed=3))


def test_runs_on_all_of_the_text_keep_the_files_and_hashes_of_before_there_were_smaller_data_sets() -> None:
    assert "unique_tokens" not in to_dict(TrainConfig())
    smaller = TrainConfig(unique_tokens=64_000)
    assert from_dict(TrainConfig, to_dict(smaller)) == smaller
    assert config_hash(smaller) != config_hash(TrainConfig())
    with pytest.raises(ValueError, match="unique_tokens must not be negative, found -1"):
        validate_config(TrainConfig(unique_tokens=-1))


def test_a_linear_decay_is_the_plan_without_a_form() -> None:
    assert lr_plan(OptimizerConfig(schedule="wsd", peak_lr=1e-3), 100, 512) == {
        **{"kind": "wsd", "peak": 1e-3, "warmup_tokens": 1024, "total_tokens": 51_200, "final_ratio": 0.1},
        "decay_start_tokens": 40_960,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenz": 3}, "TrainConfig has no 'tokenz'; it has model, data"),
        ({"optimizer": {"lr": 3}}, "OptimizerConfig has no 'lr'"),
        ({"tokens": "many"}, "tokens must be int, found 'many'"),
        ({"tokens": 2.5}, "tokens must be int, found 2.5"),
        ({"tokens": "15e-1"}, "tokens must be int, found '15e-1'"),
        ({"tokens": float("inf")}, "tokens must be int, found inf"),
        ({"optimizer": {"peak_lr": "0.1"}}, "peak_lr must be float, found '0.1'"),
        ({"model": {"dtype": 3}}, "dtype must be str, found 3"),
        ({"seed": True}, "seed must be int, found True"),
        ({"model": 3}, "model must be a mapping, found 3"),
    ],
)
def test_a_file_with_a_wrong_entry_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(context=256, model=ModelConfig(context=128)), "context 256, while the model's longest is 128"),
        (TrainConfig(tokens=1000), "1000 tokens are less than two batches of 512"),
        (TrainConfig(batch_size=0), "batch_size must be at least 1, found 0"),
        (TrainConfig(optimizer=OptimizerConfig(schedule="step")), "schedule must be one of cosine, constant, wsd, re"),
        (
            TrainConfig(optimizer=OptimizerConfig(decay_form="step")),
            "decay_form must be one of linear, exponential, sqrt",
        ),
        (TrainConfig(optimizer=OptimizerConfig(cycles=0)), "cycles must be at least 1, found 0"),
        (
            TrainConfig(optimizer=OptimizerConfig(schedule="wsd", decay_form="exponential", final_ratio=0.0)),
            "exponential decay never reaches final_ratio 0; raise it",
        ),
        (
            TrainConfig(tokens=7 * 512, optimizer=OptimizerConfig(schedule="restarts", warmup=0.3, cycles=6)),
            "6 cycles of 5 steps after the warm-up leave some without a step; lower cycles",
        ),
        (TrainConfig(optimizer=OptimizerConfig(peak_lr=-1.0)), "peak_lr must be positive"),
        (TrainConfig(optimizer=OptimizerConfig(warmup=2.0)), "warmup is a share between 0 and 1"),
        (TrainConfig(optimizer=OptimizerConfig(schedule="wsd", warmup=0.5, decay=0.6)), "more than the whole run"),
        (TrainConfig(optimizer=OptimizerConfig(schedule="wsd", decay=0.0)), "decay 0.0 of 4882 steps is no step"),
        (TrainConfig(optimizer=OptimizerConfig(schedule="wsd", decay=1e-5)), "is no step; raise it"),
        (TrainConfig(optimizer=OptimizerConfig(warmup=1.0)), "warmup 1.0 leaves no step of 4882"),
        (TrainConfig(optimizer=OptimizerConfig(warmup=0.9999)), "leaves no step of 4882 at the full learning rate"),
        (
            TrainConfig(tokens=7 * 512, optimizer=OptimizerConfig(schedule="wsd", warmup=0.5, decay=0.5)),
            "warmup and decay are 4 and 4 of 7 steps",
        ),
        (TrainConfig(optimizer=OptimizerConfig(clip=-1.0)), "clip must not be negative"),
        (TrainConfig(position_weights=PositionWeights.head(200)), r"the context has 1\.\.64"),
        (TrainConfig(model=ModelConfig(preset="big")), "preset 'big' is unknown"),
        (TrainConfig(data=DataConfig(text=("a=x@0.5", "b=y@0.2"))), "sum to one"),
    ],
)
def test_what_cannot_work_is_refused_before_any_text_is_read(config: TrainConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_config(config)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd", "restarts"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.01, 0.5, 0.7, 1.0])
def test_the_laws_read_every_plan_that_passes(schedule: str, warmup: float, decay: float) -> None:
    """A run is not refused after it has been trained."""
    for steps in (2, 3, 7, 50):
        optimizer = OptimizerConfig(schedule=schedule, warmup=warmup, decay=decay)
        config = TrainConfig(tokens=512 * steps, optimizer=optimizer)
        try:
            validate_config(config)
        except ValueError:
            continue
        assert Schedule.from_plan(lr_plan(optimizer, steps, 512)).kind == schedule


def test_whole_batches_are_trained() -> None:
    timeline = resolve_timeline(replace(TrainConfig(), batch_size=16, tokens=1024 * 7 + 1023))
    assert (timeline.steps, timeline.total_tokens) == (7, 1024 * 7)


def test_the_configuration_loads_no_jax() -> None:
    code = "import sys, tsl_jax.training.config; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
