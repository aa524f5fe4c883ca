"""Evaluation windows and training batches, on streams whose tokens tell where they stand."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsl_jax.data import batches, windows
from tsl_jax.data.config import EvalConfig, Mixture
from tsl_jax.data.corpora import Corpus, Domain, Part

SMALL = EvalConfig(stride=4, id_stretches=6, id_offsets=5, ood_stretches=4, ood_offsets=2)
CONTEXT = 10


def part(sizes: list[int], first: int = 0) -> Part:
    """A stream whose tokens are their own places."""
    ends = np.cumsum(sizes)
    return Part(np.arange(first, first + ends[-1], dtype=np.uint32), (ends - sizes).astype(np.int64))


def corpus(weights: dict[str, float], sizes: list[int]) -> Corpus:
    domains = {
        name: Domain(part([5000], 1_000_000 * n), part(sizes, 1_000_000 * n + 500_000))
        for n, name in enumerate(weights)
    }
    trained = tuple(name for name, weight in weights.items() if weight)
    other = tuple(name for name, weight in weights.items() if not weight)
    shares = Mixture(tuple((name, weights[name]) for name in trained))
    return Corpus(domains, shares, {"id": trained} | ({"ood": other} if other else {}), 3_000_000, None, {})


def built(sizes: list[int], config: EvalConfig = SMALL, split: str = "id") -> windows.Windows:
    stream = part(sizes)
    return windows.build(stream.tokens, stream.documents, CONTEXT, config, split)


@pytest.mark.parametrize("design", ["overlapping", "random"])
def test_windows_are_runs_of_one_document(design: str):
    sizes = [40, 5, 60, 11, 35, 200, 31, 29]
    drawn = built(sizes, replace(SMALL, design=design))
    assert drawn.tokens.shape == (30, CONTEXT + 1)
    assert drawn.tokens.dtype == np.int32
    assert (np.diff(drawn.tokens, axis=1) == 1).all()
    document = np.searchsorted(np.cumsum(sizes), drawn.tokens, side="right")
    assert (document == document[:, :1]).all()
    assert drawn.n_clusters == len(np.unique(drawn.cluster)) == drawn.cluster.max() + 1
    for cluster in range(drawn.n_clusters):
        assert len(np.unique(document[drawn.cluster == cluster])) == 1
    assert drawn.n_clusters == len(np.unique(document))


def test_offsets_are_places_in_the_stretch_that_step_by_stride_and_one_more_in_turn():
    drawn = built([100] * 20)
    assert drawn.offset.reshape(6, 5).tolist() == [[0, 4, 9, 13, 18]] * 6
    start = (drawn.tokens[:, 0] - drawn.offset).reshape(6, 5)
    assert (start == start[:, :1]).all()
    assert drawn.excerpt.tolist() == np.repeat(np.arange(6), 5).tolist()


def test_a_stretch_a_document_while_there_are_enough():
    assert built([100] * 20).n_clusters == 6
    assert built([100] * 6).n_clusters == 6


def test_too_few_documents_give_several_stretches_each_that_do_not_overlap():
    drawn = built([100, 3, 200, 87])  # a stretch needs 29 tokens: 3, 6 and 3 fit
    assert drawn.n_clusters == 3
    starts = np.sort(drawn.tokens[::5, 0])
    assert len(starts) == 6
    assert np.diff(starts).min() >= 29
    assert np.bincount(drawn.cluster[::5]).tolist() == [2, 2, 2]
    with pytest.warns(UserWarning, match=r"only 3 of the 6 excerpts asked for .* split 'id' \(2 documents\)"):
        tight = built([29, 58])
    assert tight.requested == 6
    assert tight.design["stretches"] == 3
    assert sorted(tight.tokens[::5, 0]) == [0, 29, 58]


def test_offsets_connect_all_positions_of_a_long_context():
    config = EvalConfig()
    stream = part([1000] * 64)
    drawn = windows.build(stream.tokens, stream.documents, 128, config, "id")
    reached = {0}
    while True:  # positions that share a target with one that is reached
        targets = set(drawn.tokens[:, 1:][:, sorted(reached)].ravel().tolist())
        more = {int(i) for i in np.flatnonzero(np.isin(drawn.tokens[:, 1:], list(targets)).any(axis=0))}
        if more == reached:
            break
        reached = more
    assert len(reached) == 128


def test_windows_are_the_same_every_time_and_their_digest_tells():
    sizes = [40, 90, 60, 111, 35, 200]
    first, second = built(sizes), built(sizes)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert first.design == second.design
    assert first.design["digest"] != built([*sizes, 400]).design["digest"]
    assert first.design["seed"] == 0
    assert "neither attention nor positions reset" in first.design["document_boundary"]


def test_another_seed_draws_other_windows_by_the_same_rule():
    source = corpus({"a": 1.0}, [200] * 20)
    first, other = (windows.for_splits(source, CONTEXT, SMALL, seed)["id"] for seed in (0, 1))
    assert windows.for_splits(source, CONTEXT, SMALL)["id"].design == first.design
    assert other.design["seed"] == 1
    assert other.design["digest"] != first.design["digest"]
    np.testing.assert_array_equal(other.offset.reshape(6, 5), [windows.offset_rule(5, 4)] * 6)


def test_random_windows_are_all_different_and_take_what_there_is():
    with pytest.warns(UserWarning, match="only 5 of the 30 windows"):
        drawn = built([12, 5, 13], replace(SMALL, design="random"))  # 2 and 3 places
    assert sorted(drawn.tokens[:, 0]) == [0, 1, 17, 18, 19]


def test_a_domain_too_small_for_one_window_gets_a_sentence():
    with pytest.raises(ValueError, match=r"'id' needs documents of 29 tokens; the longest of the 2 .* has 26 tokens"):
        built([26, 4])
    built([26] * 4, split="ood")
    with pytest.raises(ValueError, match="domain 'a' has 5000 tokens, one sequence needs 5001"):
        batches.sequences(corpus({"a": 1.0}, [50]), [(0, Mixture((("a", 1.0),)))], 5000, 0)


def test_splits_share_stretches_by_weight_and_keep_clusters_apart():
    splits = windows.for_splits(corpus({"a": 0.7, "b": 0.3, "c": 0.0}, [100] * 20), CONTEXT, SMALL)
    assert set(splits) == {"id", "ood"}
    assert np.unique(splits["id"].tokens[::5, 0] // 1_000_000, return_counts=True)[1].tolist() == [4, 2]
    assert splits["id"].n_clusters == 6
    assert splits["id"].excerpt.tolist() == np.repeat(np.arange(6), 5).tolist()
    assert (splits["ood"].tokens // 1_000_000 == 2).all()
    assert splits["id"].design["domains"] == ["a", "b"]


def test_by_domain_each_domain_is_a_split_whose_windows_no_mixture_changes():
    by_domain, sizes = replace(SMALL, by_domain=True), [100] * 20
    splits, other = (
        windows.for_splits(corpus(weights, sizes), CONTEXT, by_domain)
        for weights in ({"a": 0.7, "b": 0.3, "c": 0.0}, {"a": 0.2, "b": 0.4, "c": 0.4})
    )
    assert list(splits) == ["id", "ood", "a", "b", "c"]
    assert list(other) == ["id", "a", "b", "c"]
    for number, name in enumerate("abc"):
        assert (splits[name].tokens // 1_000_000 == number).all()
        assert splits[name].design == other[name].design
    assert by_domain.windows({"id": ("a", "b"), "ood": ("c",)}) == sum(len(part.tokens) for part in splits.values())
    each = {"a": ("a",), "b": ("b",)}  # as a run's other texts are split when its checkpoints are measured again
    assert by_domain.splits(each) == each
    with pytest.raises(ValueError, match="with evaluation by_domain a split has the name 'id'; rename that domain"):
        windows.for_splits(corpus({"id": 0.7, "b": 0.3}, sizes), CONTEXT, by_domain)


def batches_of(source: Corpus, context: int, size: int, seed: int) -> Callable[[int], np.ndarray]:
    """The batches of a run in which nothing changes."""
    take = batches.sequences(source, [(0, source.mixture)], context, seed)
    return lambda step: take(step * size, size)


def test_a_batch_depends_on_seed_and_step_alone():
    both = corpus({"a": 0.75, "b": 0.25}, [100])
    first = batches_of(both, CONTEXT, 4, seed=3)
    expected = [first(step) for step in range(30)]
    again = batches_of(both, CONTEXT, 4, seed=3)
    for step in (29, 0, 13):
        np.testing.assert_array_equal(again(step), expected[step])
    assert not np.array_equal(batches_of(both, CONTEXT, 4, seed=4)(0), expected[0])
    assert expected[0].shape == (4, CONTEXT + 1)
    assert expected[0].dtype == np.int32


def test_domains_come_in_their_shares():
    both = corpus({"a": 0.7, "b": 0.3, "c": 0.0}, [100])
    batch_of = batches_of(both, CONTEXT, 10, seed=0)
    domain = np.stack([batch_of(step)[:, 0] for step in range(50)]) // 1_000_000
    assert np.bincount(domain.ravel()).tolist() == [350, 150]


def test_domains_go_on_in_their_order_where_a_mixture_follows_another():
    two = corpus({"a": 0.7, "b": 0.3}, [100])
    other = Mixture((("b", 0.75), ("a", 0.25)))
    plain = batches.sequences(two, [(0, two.mixture)], CONTEXT, seed=0)(0, 600)[:, 0]
    mixed = batches.sequences(two, [(0, two.mixture), (200, other)], CONTEXT, seed=0)(0, 200)[:, 0]
    np.testing.assert_array_equal(mixed, plain[:200])
    rest = batches.sequences(two, [(0, two.mixture), (200, other)], CONTEXT, seed=0)(200, 400)[:, 0]
    assert np.bincount(rest // 1_000_000).tolist() == [100, 300]
    for domain in (0, 1):
        order = plain[plain // 1_000_000 == domain]
        read, then = (part[part // 1_000_000 == domain] for part in (mixed, rest))
        begin = np.flatnonzero(order == then[0])[0]
        assert len(read) <= begin <= len(read) + 2  # none twice, and hardly any left out
        common = min(len(order) - begin, len(then))
        np.testing.assert_array_equal(then[:common], order[begin : begin + common])


def test_an_epoch_has_every_target_once_and_the_next_another_order():
    source = corpus({"a": 1.0}, [100])
    batch_of = batches_of(source, CONTEXT, 1, seed=0)
    n = (5000 - 1) // CONTEXT
    epochs = [np.concatenate([batch_of(step) for step in range(e * n, (e + 1) * n)]) for e in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch[:, 1:].ravel()) == list(range(1, n * CONTEXT + 1))
        assert (np.diff(epoch, axis=1) == 1).all()
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_smaller_data_set_is_repeated_shared_out_by_weight_nested_and_the_same_for_every_seed():
    both = corpus({"a": 0.75, "b": 0.25}, [400])

    def read(unique: int, seed: int) -> np.ndarray:
        """The first tokens of four epochs of a data set."""
        take = batches.sequences(both, [(0, both.mixture)], CONTEXT, seed, unique)
        return take(0, 4 * unique // CONTEXT)[:, 0]

    small, large = read(8 * CONTEXT, 0), read(16 * CONTEXT, 0)
    assert np.bincount(np.unique(small) // 1_000_000).tolist() == [6, 2]
    assert np.bincount(np.unique(large) // 1_000_000).tolist() == [12, 4]
    assert set(small) < set(large)
    assert np.unique(small, return_counts=True)[1].tolist() == [4] * 8
    other = read(8 * CONTEXT, 1)
    assert set(other) == set(small)
    assert not np.array_equal(other, small)
    with pytest.raises(ValueError, match="unique_tokens takes 75,000 of domain 'a', which has 4,990; lower"):
        read(100_000, 0)


def test_a_mixture_names_only_domains_of_the_corpus():
    source = corpus({"a": 1.0}, [100])
    with pytest.raises(ValueError, match="the mixture names 'z', the corpus has a"):
        batches.sequences(source, [(0, Mixture((("z", 1.0),)))], CONTEXT, seed=0)
    assert source.mixture["a"] == 1.0
    assert source.mixture["z"] == 0.0
    assert hash(source.mixture) == hash(Mixture((("a", 1.0),)))


def test_a_batch_costs_little(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros(200_000, np.uint16))
    stream = Part(np.load(tmp_path / "a.npy", mmap_mode="r"), np.zeros(1, np.int64))
    source = Corpus({"a": Domain(stream, stream)}, Mixture((("a", 1.0),)), {"id": ("a",)}, 1, None, {})
    batch_of = batches_of(source, 128, 16, seed=0)
    batch_of(0)
    seconds = []
    for step in range(50):
        start = time.perf_counter()
        batch_of(step)
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.02  # about 1 ms; other processes may share the core
