"""`tsl select`: tables of every shape, bad input, predictions that hold, and what a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tsl_jax as tsl
from tsl_jax.cli import run_verb
from tsl_jax.selection import choose, read_candidates
from tsl_jax.selection.mixture_columns import checked_shares, epochs, find_mixture, worth
from tsl_jax.selection.mixture_regression import MixturePoints, fit_regression

DOMAINS = ("web", "code", "books")


def select(*arguments: Any) -> int:
    return run_verb("select", [str(argument) for argument in arguments], debug=False)


def mixtures(count: int, seed: int = 0, domains: int = 3) -> np.ndarray:
    shares = np.round(np.random.default_rng(seed).dirichlet(np.ones(domains), count), 5)
    return shares


def loss_of(shares: np.ndarray) -> np.ndarray:
    return 2.0 + np.exp(-1.5 * shares[:, 0]) + 0.3 * shares[:, 1] ** 2


def table(count: int = 24, seed: int = 0, noise: float = 0.002, **columns: Any) -> pd.DataFrame:
    shares = mixtures(count, seed)
    rows = pd.DataFrame({"run": [f"m{k}" for k in range(count)], **columns})
    rows = rows.assign(**{f"train_{name}": shares[:, k] for k, name in enumerate(DOMAINS)})
    return rows.assign(loss=loss_of(shares) + noise * np.random.default_rng(seed + 1).standard_normal(count))


def written(path: Path, rows: pd.DataFrame) -> Path:
    rows.to_csv(path, index=False)
    return path


def ladder(sizes: tuple[float, ...] = (1e8, 1e9), count: int = 9, points: int = 10) -> pd.DataFrame:
    """Curves of every mixture at each size, a row a checkpoint; small sizes rank as large ones do."""
    shares, rows = mixtures(count, 3), []
    for size in sizes:
        for k in range(count):
            at = np.geomspace(0.05, 1, points)
            end = loss_of(shares)[k] * (size / 1e8) ** -0.05
            for share, loss in zip(at, end + 0.2 * (at**-0.3 - 1), strict=True):
                rows.append((f"m{k}", size, 20 * size * share, loss, *shares[k]))
    return pd.DataFrame(rows, columns=["name", "params", "tokens", "loss", *(f"w_{name}" for name in DOMAINS)])


# ------------------------------------------------------------------------------------------------------------- reading


def test_two_tables_of_mixtures_and_losses_need_no_flag_but_the_loss(tmp_path: Path, capsys: Any) -> None:
    shares = mixtures(25, domains=17)
    names = [f"train_the_pile_d{k}" for k in range(17)]
    mixed = pd.DataFrame(shares, columns=names)
    mixed.insert(0, "index", range(1, 26))
    losses = pd.DataFrame({"index": range(1, 26)})
    losses["metric/the_pile_pile_cc_val_loss"] = loss_of(shares)
    losses["metric/the_pile_arxiv_val_loss"] = 3 - shares[:, 2]
    files = written(tmp_path / "mixtures.csv", mixed), written(tmp_path / "losses.csv", losses.iloc[::-1])
    assert select(*files, "--loss", "metric/the_pile_pile_cc_val_loss", "--out", tmp_path / "out.json") == 0
    out = capsys.readouterr().out
    assert "25 runs, 25 candidates, 17 domains" in out
    assert "columns not used: metric/the_pile_arxiv_val_loss" in out
    found = json.loads((tmp_path / "out.json").read_text())
    best = int(found["chosen"]) - 1
    assert loss_of(shares)[best] == pytest.approx(loss_of(shares).min(), abs=0.02)
    assert set(found["candidates"][0]["mixture"]) == {f"the_pile_d{k}" for k in range(17)}
    runs = read_candidates(files, target={"pile_cc": 1, "arxiv": 3})
    expected = 0.25 * loss_of(shares) + 0.75 * (3 - shares[:, 2])
    by_run = runs.table.set_index("run").loss
    assert by_run.loc[[str(k) for k in range(1, 26)]].to_numpy() == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["json lines of mappings", "mappings in cells", "no prefix", "percent", "parquet"])
def test_mixtures_are_recognised_in_every_shape(shape: str, tmp_path: Path) -> None:
    rows = table(8)
    columns = [f"train_{name}" for name in DOMAINS]
    mapping = [dict(zip(DOMAINS, values, strict=True)) for values in rows[columns].to_numpy().tolist()]
    rest = rows.drop(columns=columns)
    file = tmp_path / "runs.csv"
    if shape == "json lines of mappings":
        file = tmp_path / "runs.jsonl"
        rest.assign(mix=mapping).to_json(file, orient="records", lines=True)
    elif shape == "mappings in cells":
        written(file, rest.assign(data_shares=[json.dumps(entry) for entry in mapping]))
    elif shape == "no prefix":
        written(file, rows.rename(columns=lambda name: name.removeprefix("train_")))
    elif shape == "percent":
        written(file, rows.assign(**{name: 100 * rows[name] for name in columns}))
    else:
        file = tmp_path / "runs.parquet"
        rows.to_parquet(file)
    runs = read_candidates([file])
    assert runs.shares is not None
    assert list(runs.shares) == list(DOMAINS)
    assert runs.shares.to_numpy() == pytest.approx(rows[columns].to_numpy(), abs=1e-4)
    assert (shape == "percent") == any("percentages" in note for note in runs.notes)


def test_several_pairs_of_tables_are_joined_each_with_its_own(tmp_path: Path) -> None:
    """Mixtures and losses of two sizes, numbered from 1 each: in any order of the files."""
    parts = {}
    for size, seed in ((1e6, 0), (6e7, 1)):
        rows = table(6, seed=seed, noise=0.0).assign(index=range(1, 7))
        mixed = rows[["index", *[f"train_{name}" for name in DOMAINS]]]
        parts[size] = (
            written(tmp_path / f"m{size:.0f}.csv", mixed),
            written(tmp_path / f"l{size:.0f}.csv", rows[["index", "loss"]].assign(n_params=size)),
        )
    (m1, l1), (m2, l2) = parts.values()
    for files in ((m1, l1, m2, l2), (m1, m2, l1, l2)):
        runs = read_candidates(files)
        assert len(runs.table) == 12
        assert runs.shares is not None
        expected = loss_of(runs.shares.loc[runs.table.candidate].to_numpy())
        assert runs.table.loss.to_numpy() == pytest.approx(expected, abs=1e-4)


def test_columns_are_named_by_the_user_where_they_are_not_recognised(tmp_path: Path) -> None:
    rows = table(8, lr=np.linspace(0.1, 0.2, 8)).rename(columns=lambda name: name.replace("train_", "z-"))
    file = written(tmp_path / "runs.csv", rows)
    assert read_candidates([file]).shares is None
    for named in (["z-"], [f"z-{name}" for name in DOMAINS]):
        runs = read_candidates([file], mixture=named)
        assert runs.shares is not None
        assert runs.shares.shape == (8, 3)
    with pytest.raises(ValueError, match="--mixture q is no column"):
        read_candidates([file], mixture=["q"])


def test_curves_sizes_and_seeds_become_runs_of_candidates(tmp_path: Path) -> None:
    rows = ladder()
    file = written(tmp_path / "runs.csv", rows.assign(params=rows.params.map({1e8: "100M", 1e9: "1B"})))
    runs = read_candidates([file])
    assert len(runs.table) == 18
    assert runs.table.candidate.nunique() == 9
    assert set(runs.table.n_params) == {1e8, 1e9}
    assert [len(tokens) for tokens, _ in runs.curves] == [10] * 18
    assert runs.table.ended.all()
    seeds: Any = pd.concat([table(6, seed=0).assign(seed=k, loss=3.0 + k / 100) for k in (0, 1)])
    again = read_candidates([written(tmp_path / "seeds.csv", seeds)])
    assert len(again.table) == 12
    assert again.table.candidate.nunique() == 6


def test_candidates_need_no_mixture(tmp_path: Path) -> None:
    rows = ladder().drop(columns=[f"w_{name}" for name in DOMAINS]).rename(columns={"name": "recipe"})
    choice = choose(read_candidates([written(tmp_path / "runs.csv", rows)]), cutoff=0.0)
    assert choice.scores.spearman["predicted"] > 0.95
    assert choice.chosen == choice.table.candidate[choice.table.actual.idxmin()]


def test_runs_say_their_mixture_plan_and_pace(tmp_path: Path, capsys: Any) -> None:
    shares = mixtures(6, 4)
    plan = {"kind": "constant", "peak": 1e-3, "warmup_tokens": 0, "total_tokens": int(2e9), "final_ratio": 1.0}
    at = np.geomspace(0.05, 0.4, 12)
    tokens = (2e9 * at).astype(int)
    for k, mixture in enumerate(shares):
        loss = loss_of(shares)[k] + 0.2 * (at**-0.3 - 1)
        corpus = {"weights": dict(zip(DOMAINS, mixture.tolist(), strict=True)), "tokens": {"web": {"train": int(1e8)}}}
        facts = {"corpus": corpus, "schedule": plan, "n_params": 10_000_000, "run": f"run{k}"}
        facts["times"] = {"tokens": tokens.tolist(), "seconds": (tokens / 1e6).tolist(), "clock": "UTC"}
        surface = tsl.from_losses(loss[:, None] * np.ones(4), tokens=tokens, **facts)
        tsl.save_surface(surface, tmp_path / "runs" / f"run{k}.npz")
    assert select(tmp_path / "runs", "--out", tmp_path / "out.json") == 0
    out = capsys.readouterr().out
    assert "6 runs have not reached the end of their plan" in out
    assert "candidates at 10M parameters and 2B tokens" in out
    assert "candidates read a domain more than once" in out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["chosen"] == f"run{int(np.argmin(loss_of(shares)))}"
    saved = found["saved_by_stopping"]
    assert saved["runs"] > 0
    assert saved["gpu_hours"] == pytest.approx(saved["tokens"] / 1e6 / 3600)
    assert "other text" not in out
    for k in range(2):
        run = tsl.load_surface(tmp_path / "runs" / f"run{k}.npz")
        own = run.assign_attrs(windows={"id": {"digest": f"{k}"}})
        tsl.save_surface(own, tmp_path / "other" / f"run{k}.npz")
    assert select(tmp_path / "other") == 0
    assert "warning: loss was measured on other text in some runs" in " ".join(capsys.readouterr().out.split())
    changed = tsl.load_surface(tmp_path / "runs" / "run0.npz").assign_attrs(changes=[".5:mixture=web@.5,code@.5"])
    tsl.save_surface(changed, tmp_path / "changed.npz")
    assert select(tmp_path / "changed.npz") == 2
    assert "changed its mixture in mid-run" in capsys.readouterr().err


def test_a_run_whose_rate_will_fall_is_expected_to_end_lower(tmp_path: Path) -> None:
    tokens = np.linspace(1e8, 1e9, 20).astype(int)
    loss = 2.5 + 1.2 * (tokens / 1e8) ** -0.4
    plan = {"peak": 1e-3, "warmup_tokens": 0, "total_tokens": int(2e9)}
    kinds = {
        "falls": {"kind": "wsd", "decay_start_tokens": int(1.2e9), "final_ratio": 0.0},
        "stays": {"kind": "constant"},
    }
    for name, kind in kinds.items():
        behind = 0.004 * (name == "falls")
        surface = tsl.from_losses((loss + behind)[:, None], tokens=tokens, schedule={**plan, **kind}, run=name)
        tsl.save_surface(surface, tmp_path / "runs" / f"{name}.npz")
    assert select(tmp_path / "runs", "--out", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["chosen"] == "falls"


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train_web": 0.9}, r"the shares of row \d+ \(m\d+\) sum to"),
        ({"train_web": -0.1}, "shares are 0 or more, found web -0.1 in row 3"),
        ({"train_web": np.nan}, r"sum to .*: it has no share of web; fill that in"),
        ({"loss": -1.0}, "a loss in nats is positive, found -1 in row 3"),
    ],
)
def test_a_row_that_is_wrong_is_named(change: dict[str, float], sentence: str, tmp_path: Path, capsys: Any) -> None:
    rows = table(8)
    for name, value in change.items():
        rows.loc[2, name] = value
    assert select(written(tmp_path / "runs.csv", rows)) == 2
    error = capsys.readouterr().err
    assert pd.Series([error]).str.contains(sentence).all(), error


def test_rounded_shares_are_renormalised_and_said(tmp_path: Path) -> None:
    rows = table(8)
    rows.loc[0, "train_web"] += 0.004
    runs = read_candidates([written(tmp_path / "runs.csv", rows)])
    assert runs.shares is not None
    assert runs.shares.sum(axis=1).to_numpy() == pytest.approx(1)
    assert any("divided by their sums" in note for note in runs.notes)


def test_a_table_that_lacks_a_domain(tmp_path: Path, capsys: Any) -> None:
    first, second = table(6), table(6, seed=5)
    second["run"] = [f"n{k}" for k in range(6)]
    lacking = second.drop(columns="train_books")
    files = written(tmp_path / "a.csv", first), written(tmp_path / "b.csv", lacking)
    assert select(*files) == 2
    error = capsys.readouterr().err
    assert "no share of books" in error
    assert "b.csv" in error
    total = lacking.train_web + lacking.train_code
    lacking = lacking.assign(train_web=lacking.train_web / total, train_code=lacking.train_code / total)
    assert select(files[0], written(tmp_path / "c.csv", lacking)) == 0
    assert "books: no share in 6 rows, whose other shares sum to one: counted as 0" in capsys.readouterr().out


def test_what_cannot_be_read_or_understood_is_said(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path / "runs.csv", table(6))
    several = written(tmp_path / "several.csv", table(6).rename(columns={"loss": "a_loss"}).assign(b_loss=3.0))
    apart = written(tmp_path / "apart.csv", pd.DataFrame({"run": ["x", "y"], "other_loss": [3.0, 4.0]}))
    only_mixtures = written(tmp_path / "mixtures.csv", table(6).drop(columns="loss"))
    (tmp_path / "empty.csv").write_text("")
    cases: dict[str, tuple[Any, ...]] = {
        "give runs or tables": (),
        "no table that can be read": (tmp_path / "empty.csv",),
        "No such file": (tmp_path / "nothing.csv",),
        "which column is the loss": (several,),
        "is the name of no column": (file, "--loss", "nothing"),
        "have no run in common": (only_mixtures, apart, "--loss", "other_loss"),
        "--loss is one loss": (several, "--loss", "a_loss", "--target", "b_loss=1"),
        "takes positive numbers": (several, "--target", "b_loss=-1"),
        "--available sea is no domain": (file, "--available", "sea=1e9", "--tokens", "1e9"),
        "--available needs the length": (file, "--available", "web=1e9"),
        "--params needs runs that say their size": (file, "--params", "1e9"),
        "share of the plan": (file, "--cutoff", "1.5"),
        "is a .json or .csv file": (file, "--out", tmp_path / "out.txt"),
        "--candidates needs mixtures": (file, "--candidates", apart, "--loss", "loss"),
    }
    for sentence, arguments in cases.items():
        assert select(*arguments) == 2, sentence
        assert sentence in capsys.readouterr().err


def test_one_run_with_two_mixtures_is_refused(tmp_path: Path) -> None:
    rows = pd.concat([table(4), table(4, seed=9)]).assign(n_params=1e8, tokens=1e9)
    with pytest.raises(ValueError, match="m0 has two mixtures"):
        read_candidates([written(tmp_path / "runs.csv", rows)])


# ------------------------------------------------------------------------------------------------------------ choosing


def test_losses_that_are_equal_share_a_rank_and_are_tied(tmp_path: Path, capsys: Any) -> None:
    rows = pd.DataFrame({"run": ["a", "b", "c"], "loss": [3.0, 3.0, 3.2]})
    assert select(written(tmp_path / "runs.csv", rows), "--out", tmp_path / "out.csv") == 0
    out = capsys.readouterr().out
    assert "tied with it (the difference may be chance): b" in out
    found = pd.read_csv(tmp_path / "out.csv").set_index("candidate")
    assert found["rank"].to_dict() == {"a": 1, "b": 1, "c": 3}
    assert found.p_best["a"] == pytest.approx(0.5, abs=0.05)
    assert found.p_best["c"] == 0
    assert select(tmp_path / "runs.csv", "--sd", "0.5") == 0
    assert "c" in capsys.readouterr().out.split("may be chance): ")[1].splitlines()[0]


def test_untried_mixtures_are_ranked_and_their_losses_score_the_ranking(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path / "runs.csv", table(24))
    others = written(tmp_path / "others.csv", table(20, seed=7, noise=0.0))
    assert select(file, "--candidates", others, "--out", tmp_path / "out.json") == 0
    assert "by the ends that were hidden:" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["scores"][0]["spearman"] > 0.95
    assert found["scores"][0]["regret"] < 0.01
    assert all(entry["state"] == "untried" for entry in found["candidates"])
    unknown = written(tmp_path / "unknown.csv", table(5, seed=7).drop(columns="loss"))
    assert select(file, "--candidates", unknown, "--loss", "loss") == 0
    assert "hidden" not in capsys.readouterr().out
    lacking = written(tmp_path / "lacking.csv", table(5).rename(columns={"train_web": "train_sea"}))
    assert select(file, "--candidates", lacking) == 2
    assert "other domains: sea, web" in capsys.readouterr().err


def test_small_runs_predict_the_large_and_curves_are_forecast(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path / "runs.csv", ladder())
    for cutoff, state in ((0, "smaller"), (0.3, "running")):
        choice = choose(read_candidates([file]), cutoff=cutoff)
        assert choice.target == {"n_params": 1e9, "tokens": 2e10}
        assert choice.scores.spearman["predicted"] > 0.95
        assert choice.scores.regret["predicted"] < 0.01
        assert set(choice.table.state) == {state}
        assert choice.table.actual.between(choice.table.low, choice.table.high).mean() >= 0.8
    assert "loss at the cut-off" in choice.scores.index
    assert select(file, "--cutoff", "0.3") == 0
    out = capsys.readouterr().out
    assert "9 runs have not" not in out  # what is hidden was there
    assert "stop: " in out


def test_a_domain_that_runs_out_is_counted_and_said(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path / "runs.csv", table(12, tokens=1e10))
    assert select(file, "--available", "web=1e9", "code=2e10", "--rows", "3") == 0
    out = capsys.readouterr().out
    assert "candidates read a domain more than once in 1e+10 tokens" in out
    assert "warning: " in out
    assert "would read web" in out
    (tmp_path / "domains.csv").write_text("domain,tokens\nweb,1e12\n")
    assert select(file, "--available", tmp_path / "domains.csv") == 0
    assert "more than once" not in capsys.readouterr().out
    shares = pd.DataFrame({"web": [0.5, 1.0]})
    assert worth(np.array([0.0, 0.5, 1.0])).tolist() == [1.0, 1.0, 1.0]
    assert worth(np.array([2.0, 4.0, 1e9])) * [2.0, 4.0, 1e9] == pytest.approx([1.969, 3.726, 16.4], abs=0.001)
    assert epochs(shares, 1e10, {"web": 2.5e9}).web.tolist() == [2.0, 4.0]


def test_runs_that_repeat_say_what_repetition_costs() -> None:
    """Small runs read their text once, target runs up to 18 times, by a planted law of what their text is worth.

    The other targets are predicted nearer where the regression counts what is read again.
    """
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    read = worth(shares * [20.0, 10.0, 0.5])
    new = (shares * read).sum(1, keepdims=True)  # tokens a token read

    def of_mixture(x: np.ndarray) -> np.ndarray:
        return x @ [0.3, -0.1, 0.0] + 0.2 * (x**2).sum(1)

    y, large = 1.2 + of_mixture(shares), 1.1 + of_mixture(shares * read / new) - 0.3 * np.log(new[:, 0])
    seen, others = np.arange(10), np.arange(10, 30)
    code, log_tokens = np.r_[np.arange(30), seen], np.log(np.r_[np.full(30, 1e9), np.full(10, 1e10)])
    errors = {}
    for counted in (True, False):
        of_runs, of_others = (np.r_[np.ones((30, 3)), read[seen]], read[others]) if counted else (None, None)
        points = MixturePoints(np.r_[shares, shares[seen]], code, np.zeros(40), log_tokens, of_runs)
        regression = fit_regression(points, np.r_[y, large[seen]])
        at = MixturePoints(shares[others], others, np.zeros(20), np.full(20, np.log(1e10)), of_others)
        errors[counted] = np.abs(regression.predict(at)[0] - large[others]).max()
    assert errors[True] < errors[False] / 2


def test_the_next_candidate_stays_within_what_was_tried(tmp_path: Path) -> None:
    runs = read_candidates([written(tmp_path / "runs.csv", table(30))])
    assert runs.shares is not None
    following = choose(runs).following
    new = following[[f"share {name}" for name in DOMAINS]].to_numpy()
    assert new.sum(axis=1) == pytest.approx(1)
    assert (new <= runs.shares.max().to_numpy() + 1e-9).all()
    tried = runs.shares.to_numpy()
    assert min(np.abs(tried - mixture).max(axis=1).min() for mixture in new) >= 0.01  # none of them again
    assert (following.gain >= 0).all()
    assert following.gain.is_monotonic_decreasing


def test_predictions_hold_as_often_as_they_say() -> None:
    """90 % intervals of untried mixtures, and the mean P(best) of the chosen beside how often it is the best."""
    inside, said, right = [], [], []
    for seed in range(4):
        runs = _in_memory(table(20, seed=seed, noise=0.006))
        others = table(15, seed=100 + seed, noise=0.0)
        choice = choose(runs, _in_memory(others))
        truth = others.set_index("run").loss
        actual = choice.table.candidate.str.replace(" (candidate)", "").map(truth)
        inside.append(actual.between(choice.table.low, choice.table.high).mean())
        said.append(choice.table.p_best[0])
        right.append(actual[0] == actual.min())
    assert 0.75 <= np.mean(inside) <= 1
    assert abs(np.mean(said) - np.mean(right)) < 0.3


def _in_memory(rows: pd.DataFrame) -> Any:
    from tsl_jax.selection.candidate_runs import runs_of_rows

    columns = [f"train_{name}" for name in DOMAINS]
    shares, _ = checked_shares(rows, dict(zip(columns, DOMAINS, strict=True)), rows.run.tolist())
    return runs_of_rows(rows[["run", "loss"]], shares, {}, True, [])


def test_columns_with_a_prefix_that_are_no_shares_are_no_mixture() -> None:
    rows = table(6).assign(train_steps=1000, train_tokens=2.0e9)
    assert find_mixture(rows, [], ["loss", "run"]) == {f"train_{name}": name for name in DOMAINS}
    assert find_mixture(rows[["run", "loss", "train_steps", "train_tokens"]], [], ["loss", "run"]) == {}


# ------------------------------------------------------------------------------------------ tables as people write them


def _dressed(shape: str, rows: Any, folder: Path) -> Path:
    """The same table with other signs, names, units, encodings."""
    columns = [f"train_{name}" for name in DOMAINS]
    percent: Any = 100 * rows[columns]
    if shape == "semicolons":
        rows.to_csv(folder / "runs.csv", sep=";", decimal=",", index=False)
    elif shape == "UTF-16":
        rows.to_csv(folder / "runs.CSV", encoding="utf-16", index=False)
    elif shape == "gz":
        rows.to_csv(folder / "runs.csv.gz", index=False)
    elif shape == "lines in .json":
        rows.to_json(folder / "runs.json", orient="records", lines=True)
    elif shape == "words with %":
        return written(
            folder / "runs.csv", rows.assign(**{name: percent[name].map("{:.3f} %".format) for name in columns})
        )
    elif shape == "percent in names":
        names = {f"train_{name}": f"{name} text (%)" for name in DOMAINS}
        return written(folder / "runs.csv", rows.assign(**percent).rename(columns=names))
    elif shape == "a row a domain":
        long: Any = rows.melt(id_vars=["run", "loss"], value_vars=columns, var_name="domain", value_name="share")
        return written(folder / "runs.csv", long.assign(domain=long.domain.str.removeprefix("train_")))
    return next(folder.glob("runs.*"))


@pytest.mark.parametrize(
    "shape",
    ["semicolons", "UTF-16", "gz", "lines in .json", "words with %", "percent in names", "a row a domain"],
)
def test_tables_of_other_signs_names_and_units_are_the_same(shape: str, tmp_path: Path) -> None:
    rows = table(8)
    runs = read_candidates([_dressed(shape, rows, tmp_path)])
    assert runs.shares is not None
    assert {name.removesuffix(" text") for name in runs.shares} == set(DOMAINS)
    by_domain = {name.removesuffix(" text"): runs.shares[name] for name in runs.shares}
    for name in DOMAINS:
        assert by_domain[name].loc[rows.run].to_numpy() == pytest.approx(rows[f"train_{name}"].to_numpy(), abs=1e-4)
    assert runs.table.set_index("run").loss.loc[rows.run].to_numpy() == pytest.approx(rows.loss.to_numpy())


def test_sizes_and_tokens_are_known_by_names_with_spaces_and_units(tmp_path: Path) -> None:
    rows = table(8).assign(**{"Model size": "122M", "tokens (B)": 2.4})
    runs = read_candidates([written(tmp_path / "runs.csv", rows)])
    assert set(runs.table.n_params) == {1.22e8}
    assert set(runs.table.tokens) == {2.4e9}
    assert any("tokens (B) counts tokens in 1e+09" in note for note in runs.notes)


def test_rows_that_stand_twice_are_no_second_run(tmp_path: Path) -> None:
    """They would say that runs do not differ by luck."""
    rows = table(8)
    runs = read_candidates([written(tmp_path / "runs.csv", pd.concat([rows, rows]))])
    assert len(runs.table) == 8
    assert any("8 rows repeat another row entirely: left out" in note for note in runs.notes)
    seeds: Any = pd.concat([rows.assign(seed=seed) for seed in (1, 2)])
    assert len(read_candidates([written(tmp_path / "seeds.csv", seeds)]).table) == 16


@pytest.mark.parametrize(("name", "to_nats"), [("val_ppl", np.log), ("val_bpb", lambda bits: bits * np.log(2))])
def test_losses_of_another_unit_become_nats_and_it_is_said(name: str, to_nats: Any, tmp_path: Path) -> None:
    rows = table(8).rename(columns={"loss": name})
    runs = read_candidates([written(tmp_path / "runs.csv", rows)], loss=name)
    assert runs.table.loss.to_numpy() == pytest.approx(to_nats(rows[name].to_numpy()))
    assert any(note.startswith(f"{name} is ") for note in runs.notes)


def test_what_is_twice_alone_or_left_out_is_said(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path / "runs.csv", table(8).assign(loss=[*["3.1"] * 7, "diverged"]))
    assert any("left out: m7" in note for note in read_candidates([file]).notes)
    for entries in (("web=2e12", "web=30B"), ("web=1B", "web=1B")):
        assert select(file, "--tokens", "1e11", "--available", *entries) == 2
        assert "--available has web twice" in capsys.readouterr().err
    two = written(
        tmp_path / "two.csv", pd.DataFrame({"run": ["a"] * 3, "domain": ["x", "x", "y"], "share": [0.2, 0.3, 0.5]})
    )
    assert select(two, "--loss", "share") == 2
    assert "two rows have the share of x in a" in capsys.readouterr().err
    assert select(written(tmp_path / "one.csv", table(1))) == 0
    assert "all runs are of one candidate: there is nothing to choose between" in capsys.readouterr().out
    (tmp_path / "notes.txt").write_text("run,loss\na,3\n")
    assert select(tmp_path / "notes.txt") == 2
    assert "is no surface; of a log surfaces are made by tsl import" in capsys.readouterr().err
