"""Every format of trainers and trackers is read without flags: losses, evaluations, steps, tokens, rates."""

from pathlib import Path

import numpy as np
import pytest
from importers_material import BATCH, DIGITS, EVALS, FORMATS, SEQUENCE, STEPS, loss, lr, val

import tsl_jax as tsl


def known(surface, split: str) -> dict[int, float]:
    """Step -> loss of a split, where it is known."""
    values = surface.loss.sel(split=split).values[:, 0]
    return {int(s): float(v) for s, v in zip(surface.step.values, values, strict=True) if v == v}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_without_flags(name: str, tmp_path: Path) -> None:
    file, write, train, evaluation, has_tokens = FORMATS[name]
    (tmp_path / file).write_text(write())
    result = tsl.read_log(tmp_path / file)
    (surface,) = result.surfaces.values()
    digits = 10.0 ** -DIGITS.get(name, 4)
    losses = known(surface, train)
    assert set(losses) >= set(STEPS[1:]) or set(losses) == set(EVALS)
    np.testing.assert_allclose(list(losses.values()), [loss(s) for s in losses], atol=digits)
    if name == "nanoGPT":
        assert known(surface, "iter_loss") == {s: pytest.approx(loss(s) + 0.05) for s in STEPS}
    if evaluation is not None:
        evals = known(surface, evaluation)
        assert set(evals) == set(EVALS) - ({0} if name == "trainer_state.json" else set())
        np.testing.assert_allclose(list(evals.values()), [val(s) for s in evals], atol=digits)
    if has_tokens:
        tolerance = {"rtol": 0.02} if name == "nanotron" else {"rtol": 0}
        np.testing.assert_allclose(surface.tokens.values, surface.step.values * BATCH * SEQUENCE, **tolerance)
    else:
        np.testing.assert_array_equal(surface.tokens.values, surface.step.values)
        assert any(finding.code == "clock_is_steps" for _, finding in result.findings)
    if "lr" in surface.coords:
        at = surface.step.values.tolist().index(500)
        assert float(surface.lr[at]) == pytest.approx(lr(500), rel=0.01)
    assert "restart" not in str(result)
