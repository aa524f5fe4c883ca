"""A step in microbatches, several steps a call, batches made ahead: other ways to the same run."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from training_material import at, interrupt_me, small_run, write_words

from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig
from tsl_jax.training import resources
from tsl_jax.training.config import OptimizerConfig, TrainConfig
from tsl_jax.training.loop import made_ahead, train
from tsl_jax.training.optimizer import adamw, lr_plan
from tsl_jax.training.programs import steps_per_call
from tsl_jax.training.step import TrainState, initial_state, make_step
from tsl_jax.training.timeline import FLUSH, resolve_timeline

K, B, T, V = 4, 6, 8, 40
FLOAT32 = 1e-6  # losses near 4, and parameters, whose sums are taken in another order


def trained(per_call: int, accumulate: int) -> tuple[TrainState, dict[str, np.ndarray]]:
    """The state after K steps of a tiny model, and their metrics."""
    config = OptimizerConfig(peak_lr=1e-2, warmup=0.0)
    optimizer = adamw(config, lr_plan(config, 100, B * T), B * T)
    graphdef, params = build(ModelConfig(preset="tiny", d_model=16, n_layers=1, vocabulary=V, context=T), 0)
    step = make_step(graphdef, optimizer, np.linspace(0.5, 1.5, T), per_call, accumulate)
    batches = np.random.default_rng(0).integers(0, V, (K, B, T + 1)).astype(np.int32)
    state, calls = initial_state(params, optimizer), []
    for i in range(0, K, per_call):
        state, metrics = step(state, batches[i] if per_call == 1 else batches[i : i + per_call])
        calls.append(jax.tree.map(np.ravel, metrics))
    return state, {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


@pytest.fixture(name="plain", scope="module")
def _plain() -> tuple[TrainState, dict[str, np.ndarray]]:
    return trained(1, 1)


@pytest.mark.parametrize(("per_call", "accumulate"), [(1, 3), (K, 1)])
def test_microbatches_and_steps_of_one_call_give_the_same_run(plain: tuple, per_call: int, accumulate: int) -> None:
    state, metrics = trained(per_call, accumulate)
    assert metrics["loss"].shape == (K,)
    assert int(state.step) == K
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], plain[1][name], rtol=2e-6, err_msg=name)
    # Adam divides by the root of the second moment: where a gradient is nearly zero rounding shows larger
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, plain[0].params)


def test_calls_go_from_stop_to_stop_and_cover_every_step_once() -> None:
    plain = resolve_timeline(TrainConfig(tokens=300 * 512))
    timeline = replace(plain, evaluations=(1, 2, 7, 90, 300))
    for per_call in (1, 4, 5, 16):
        calls = list(timeline.calls(0, per_call))
        assert [step for first, last in calls for step in range(first + 1, last + 1)] == list(range(1, 301))
        assert {last - first for first, last in calls} == {1, per_call}
        assert set(timeline.evaluations) <= {last for _, last in calls}
        stop = timeline.next_stop(7, per_call)
        assert stop == min(90, 7 + max(FLUSH, 4 * per_call))
        later = list(timeline.calls(stop, per_call))
        assert later == [call for call in calls if call[0] >= stop], "a continued run makes the same calls"


def test_small_models_make_several_steps_a_call_on_an_accelerator() -> None:
    assert steps_per_call(0, 512e6, "cpu") == 1
    assert steps_per_call(3, 512e6, "cpu") == 3
    assert steps_per_call(0, 512e6, "gpu") == 16
    assert steps_per_call(0, 1e12 / 4, "gpu") == 4
    assert steps_per_call(0, 1e12 / 8, "tpu") == 8
    assert steps_per_call(0, 512e12, "gpu") == 1


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("tokens_per_second") > 0 for line in lines)
    return lines


@pytest.mark.slow
def test_a_run_of_several_steps_a_call_is_the_same_run_and_keeps_its_bits_when_interrupted(tmp_path: Path) -> None:
    config = replace(small_run(write_words(tmp_path / "text"), steps=30, evaluations=3), steps_per_call=4)
    seen: list[dict[str, float]] = []
    train(config, tmp_path / "several", observe=lambda facts: seen.append(dict(facts)))
    train(replace(config, steps_per_call=1), tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", progress=at("train", 16, interrupt_me))
    train(config, tmp_path / "stopped", resume=True)
    several, single = metrics(tmp_path / "several"), metrics(tmp_path / "one")
    assert metrics(tmp_path / "stopped") == several
    np.testing.assert_allclose([x["loss"] for x in several], [x["loss"] for x in single], rtol=FLOAT32)
    assert [x["step"] for x in seen if "loss" in x] == list(range(1, 31))
    evaluations = [x for x in seen if "id/loss" in x]
    assert [x["step"] for x in evaluations][-1] == 30
    thirds = [evaluations[-1][f"ood/{name}"] * n for name, n in (("head", 6), ("middle", 5), ("tail", 5))]
    assert sum(thirds) / 16 == pytest.approx(evaluations[-1]["ood/loss"])


def test_things_made_ahead_come_in_order_and_no_further_than_asked() -> None:
    keys: list[int] = []

    def make(key: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        keys.append(key)
        return key * key

    with closing(made_ahead(make, range(100), depth=2)) as things:
        assert [next(things) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert keys[:5] == [0, 1, 2, 3, 4]
    assert len(keys) <= 7
    assert list(made_ahead(make, range(3))) == [0, 1, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_an_error_in_making_comes_out_in_its_place() -> None:
    with closing(made_ahead(lambda key: 1 // (2 - key), range(9))) as things:
        assert [next(things), next(things)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(things)


def test_utilisation_is_given_only_for_devices_whose_peak_is_known() -> None:
    def peak(*kinds: str) -> float | None:
        return resources.peak_flops(SimpleNamespace(device_kind=kind) for kind in kinds)

    assert peak("NVIDIA H200") == peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB") == 2 * 312e12
    assert peak("cpu") is peak("NVIDIA H100 PCIe") is peak("NVIDIA H200 NVL") is peak("NVIDIA H200", "cpu") is None
    assert resources.rates(1000, 2.0, 10**9, None) == {"tokens_per_second": 500.0}
    assert resources.rates(1000, 2.0, 10**9, 1e12)["utilisation"] == 0.5
