"""Races: differences between candidates carried to the end of their plan, chances, and who may be stopped."""

from __future__ import annotations

import numpy as np
import pytest

from tsl_jax.selection.race import STOP, chance_best, fall_of_plan, race

TOKENS = np.geomspace(1e8, 1e10, 24)
WALK, NOISE = 4e-5, 1e-6  # nats^2 an e-fold of tokens; nats^2


def walks(number: int, seed: int) -> np.ndarray:
    """(candidate, checkpoint) losses: one power law, random walks in log tokens, noise."""
    random = np.random.default_rng(seed)
    steps = np.sqrt(WALK * np.diff(np.log(TOKENS), prepend=np.log(TOKENS[0]) - 1))
    walk = np.cumsum(steps * random.standard_normal((number, len(TOKENS))), axis=1)
    return 2.5 + 40 * TOKENS**-0.2 + walk + np.sqrt(NOISE) * random.standard_normal(walk.shape)


def test_intervals_of_differences_and_chances_hold_on_random_walks():
    inside, of_best, promised, stopped = [], [], [], []
    for seed in range(60):
        loss = walks(6, seed)
        made = race([TOKENS[:14]] * 6, loss[:, :14], TOKENS[-1])
        centre = np.eye(6) - 1 / 6
        error = centre @ (loss[:, -1] - made.mean) / np.sqrt(np.diag(centre @ made.covariance @ centre))
        inside.append((np.abs(error) < 1.645).mean())
        best = loss[:, -1].argmin()
        of_best.append(made.chance.argmax() == best)
        promised.append(made.chance.max())
        stopped.append(made.eliminated[best])
    assert 0.85 <= np.mean(inside) <= 0.98
    assert np.mean(of_best) == pytest.approx(np.mean(promised), abs=0.15)
    assert np.mean(stopped) <= STOP


def test_looking_at_every_checkpoint_rarely_stops_the_best():
    ever = []
    for seed in range(40):
        loss = walks(4, 100 + seed)
        best = loss[:, -1].argmin()
        looks = [race([TOKENS[:n]] * 4, loss[:, :n], TOKENS[-1]).eliminated[best] for n in range(4, 24, 2)]
        ever.append(any(looks))
    assert np.mean(ever) <= STOP + 0.05


def test_a_candidate_that_is_behind_is_compared_at_equal_tokens_and_known_less():
    loss = walks(4, 0)
    lengths = [20, 20, 20, 12]
    made = race([TOKENS[:n] for n in lengths], [loss[k, :n] for k, n in enumerate(lengths)], TOKENS[-1])
    assert abs(made.mean[3] - made.mean[:3].mean()) < 0.05  # and not by what all have fallen since
    assert made.covariance[3, 3] > 1.2 * made.covariance[0, 0]
    ended = race([TOKENS, TOKENS, TOKENS[:12]], [loss[0], loss[1], loss[3, :12]], TOKENS[-1])
    assert not ended.eliminated[:2].any()


def test_plans_that_differ_are_told_apart_by_their_falls():
    losses = [np.linspace(4, 3, 10), np.linspace(4, 3.02, 10)]
    same = race([TOKENS[:10]] * 2, losses, TOKENS[-1], fall=0.3, fall_sd=0.1)
    other = race([TOKENS[:10]] * 2, losses, TOKENS[-1], fall=[0.3, 0.4], fall_sd=0.02, plan=[0, 1])
    assert same.chance[0] > 0.5
    assert other.chance[1] > 0.9
    np.testing.assert_allclose(other.mean, [2.7, 2.62])
    np.testing.assert_allclose(np.diag(other.covariance), 0.02**2)


def test_one_candidate_is_its_own_forecast():
    made = race([TOKENS[:8]], [np.linspace(4, 3, 8)], TOKENS[-1], fall=0.2, fall_sd=0.1)
    assert made.mean.tolist() == [2.8]
    assert made.covariance.tolist() == [[0.1**2]]
    assert made.chance.tolist() == [1.0]


def test_ties_share_the_chance():
    np.testing.assert_allclose(chance_best(np.zeros(4), np.eye(4)), 0.25, atol=0.03)
    loss = 3 - np.linspace(0, 1, 8)
    made = race([TOKENS[:8]] * 3, [loss, loss, loss], TOKENS[-1])
    np.testing.assert_allclose(made.chance, 1 / 3, atol=0.05)
    assert not made.eliminated.any()


def test_the_fall_of_a_plan_is_that_of_its_forecast():
    loss = walks(3, 1)
    fall, sd = fall_of_plan([TOKENS[:16]] * 3, loss[:, :16], TOKENS[-1])
    truth = float(np.mean(loss[:, 15] - loss[:, -1]))
    assert abs(fall - truth) < 3 * sd + 0.01
    assert sd < 0.2
    few, own = fall_of_plan([TOKENS[:3]] * 3, loss[:, :3], TOKENS[-1])
    assert few == own > 0
    assert fall_of_plan([TOKENS] * 3, loss, TOKENS[-1]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("tokens", "losses", "problem"),
    [
        ([], [], "one candidate or more, found none"),
        ([[1, 2], [1, 2]], [[3, 2], [3, np.nan]], "candidate 2 needs a finite loss"),
        ([[1, 2], [2, 1]], [[3, 2], [3, 2]], "tokens of candidate 2 must be positive and increase"),
        ([[1, 2], [5, 6]], [[3, 2], [3, 2]], "no tokens in common: one candidate begins at 5, another ends at 2"),
    ],
)
def test_what_cannot_be_compared_gets_a_sentence(tokens, losses, problem):
    with pytest.raises(ValueError, match=problem):
        race(tokens, losses, 10.0)
