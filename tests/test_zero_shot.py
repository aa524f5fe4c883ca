"""Benchmarks by lm-evaluation-harness: scores of requests, the table, what is kept, and the harness's own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pretrained_material import END, PYTHIA, parameters, revisions, text, tokenizer
from scipy import special, stats
from tokenizers import Tokenizer, processors
from training_material import at, small_run, write_words

from tsl_jax import cli
from tsl_jax.commands.benchmark import correlation_lines, table_text
from tsl_jax.models.build import Params, abstract, hidden, unembedding
from tsl_jax.models.config import ModelConfig
from tsl_jax.pretrained import harness, zero_shot
from tsl_jax.pretrained.harness import RequestScorer, RequestTokenizer, TokenRequest, padded_length
from tsl_jax.pretrained.options import DEFAULT_TASKS, BenchmarkOptions, PretrainedOptions
from tsl_jax.pretrained.zero_shot import benchmark, finished_file, read_finished, write_finished
from tsl_jax.pretrained.zero_shot_table import benchmark_table, correlations
from tsl_jax.training.loop import train

TASKS = Path(__file__).parent / "data" / "zero_shot"


# ----------------------------------------------------------------------------------------------------- scores of tokens


def requests_of(lengths: list[int], seed: int = 0) -> list[TokenRequest]:
    rng = np.random.default_rng(seed)
    return [TokenRequest(rng.integers(0, 300, n).tolist(), int(rng.integers(1, n))) for n in lengths]


def on_device(config: ModelConfig) -> Params:
    return jax.tree.map(jnp.asarray, parameters(config, 1))


def logits_of(config: ModelConfig) -> Callable[[Params, list[int]], np.ndarray]:
    """Logits (token, V) of one sequence by itself."""
    graphdef, _ = abstract(config)

    @jax.jit
    def logits(params: Params, x: jax.Array) -> jax.Array:
        return hidden(graphdef, params, x) @ unembedding(params).T

    return lambda params, tokens: np.asarray(logits(params, jnp.array([tokens]))[0])


def test_scores_are_those_of_the_softmax_whatever_a_request_is_filled_up_to():
    config = replace(PYTHIA, context=80)
    params, logits = on_device(config), logits_of(config)
    requests = requests_of([2, 81, 34, 2, 81, 34])
    scorer = RequestScorer(config, batch=4)
    calls: list[tuple[int, int]] = []
    scores = scorer(params, requests, lambda done, total: calls.append((done, total)))
    for (tokens, scored), (value, greedy) in zip(requests, scores, strict=True):
        log_p = special.log_softmax(logits(params, list(tokens[:-1])), axis=-1)[-scored:]
        targets = np.array(tokens[-scored:])
        assert value == pytest.approx(log_p[np.arange(scored), targets].sum(), abs=1e-4)
        assert greedy == bool((log_p.argmax(-1) == targets).all())
    assert calls == [(4, 6), (6, 6)]
    assert scorer.program._cache_size() == 2, "80 and 32 positions"


def test_a_continuation_of_the_likeliest_tokens_is_greedy():
    params, logits = on_device(PYTHIA), logits_of(PYTHIA)
    tokens = [5, 7, 11]
    for _ in range(3):
        tokens.append(int(logits(params, tokens)[-1].argmax()))
    other = [*tokens[:-1], (tokens[-1] + 1) % 300]
    scores = RequestScorer(PYTHIA)(params, [TokenRequest(tokens, 3), TokenRequest(other, 3), TokenRequest(other, 4)])
    assert [greedy for _, greedy in scores] == [True, False, False]


def test_requests_are_filled_up_to_few_lengths():
    assert [padded_length(n, 1000) for n in (1, 32, 33, 48, 49, 65, 500, 769)] == [32, 32, 48, 48, 64, 96, 512, 1000]
    assert padded_length(3, 16) == 16
    assert len({padded_length(n, 2048) for n in range(1, 2049)}) == 13


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TokenRequest([1] * 26, 3), r"expected 2 to 25 tokens below 300, .* found 26 tokens up to 1, 3 of them"),
        (TokenRequest([1, 2], 2), "found 2 tokens up to 2, 2 of them scored"),
        (TokenRequest([1, 300], 1), "up to 300, 1 of them scored; is the tokenizer that of the model?"),
    ],
)
def test_a_request_that_no_model_can_score_is_refused(request_: TokenRequest, message: str):
    with pytest.raises(ValueError, match=message):
        RequestScorer(PYTHIA)(parameters(PYTHIA, 0), [request_])


def test_a_context_that_the_model_has_not_is_refused():
    options: Any
    for options, message in (({"context": 25}, "reads 24 tokens, found --context 25"), ({"batch": 0}, "at least 1")):
        with pytest.raises(ValueError, match=message):
            RequestScorer(PYTHIA, **options)


def test_a_text_begins_with_its_token_unless_it_spells_it(tmp_path: Path):
    text(tmp_path / "text")
    plain = Tokenizer.from_file(str(tokenizer(tmp_path, tmp_path / "text")))
    end: Any = plain.token_to_id(END)
    ids = plain.encode("abc", add_special_tokens=False).ids
    begun, bare = RequestTokenizer(plain, end, end), RequestTokenizer(plain, None, end)
    assert begun.encode("abc") == begun.encode("abc", True) == [end, *ids]
    assert begun.encode("abc", False) == bare.encode("abc") == bare.encode("abc", True) == ids
    assert begun.encode(END + "abc") == [end, *ids]


# ------------------------------------------------------------------------------------------------ table, correlations


def record(name: str, tokens: int | None, task: str = "t", **metrics: float) -> dict[str, Any]:
    counts = {"examples": 10, "requests": 40, "cut": 3}
    return {"checkpoint": name, "step": None, "tokens": tokens, "task": task, "metrics": metrics, **counts}


LOSSES = xr.DataArray(
    [[5.0, 4.0, 3.5, 3.2], [6.0, 5.5, 5.2, 5.1]],
    dims=("split", "tokens"),
    coords={"split": ["id", "ood"], "tokens": [10, 20, 30, 40]},
)


def test_the_table_has_accuracies_beside_the_losses_at_the_same_tokens():
    table = benchmark_table(
        [record("a", 20, acc=0.5, acc_stderr=0.1), record("b", 25, "u", perplexity=9.0), record("c", None, acc=0.6)],
        LOSSES,
    )
    names = ["checkpoint", "step", "tokens", "task", "acc", "acc_stderr", "perplexity", "loss_id", "loss_ood"]
    assert list(table.columns) == [*names, "examples", "requests", "cut"]
    assert table.loss_id[0] == 4.0
    assert table.loss_ood[0] == 5.5
    assert table.loss_id[1:].isna().all()
    assert table.tokens[2] is pd.NA
    shown = table_text(table.to_dict("records")).splitlines()
    assert shown[0].split() == [
        "checkpoint",
        "tokens",
        "task",
        "acc",
        "perplexity",
        "loss",
        "id",
        "loss",
        "ood",
        "examples",
    ]
    assert shown[1].split() == ["a", "20", "t", "0.5000", "±0.1000", "4.0000", "5.5000", "10"]
    assert shown[2].split() == ["b", "25", "u", "9", "10"]
    assert "loss_id" not in benchmark_table([record("a", 20, acc=0.5)])


def test_correlations_are_those_of_scipy_with_fishers_interval():
    acc = [0.25, 0.31, 0.30, 0.42]
    rows = [record(f"s{n}", int(n), acc=a, acc_norm=0.3) for n, a in zip(LOSSES.tokens.values, acc, strict=True)]
    together = correlations(benchmark_table(rows, LOSSES))
    assert together[["metric", "split"]].values.tolist() == [
        ["acc", "id"],
        ["acc", "ood"],
        ["acc_norm", "id"],
        ["acc_norm", "ood"],
    ]
    row = together.iloc[1]
    expected: Any = stats.pearsonr(LOSSES.sel(split="ood").values, acc)
    interval = expected.confidence_interval(0.95)
    assert (row.pearson, row.pearson_low, row.pearson_high) == pytest.approx((expected.statistic, *interval), abs=1e-6)
    ranked: Any = stats.spearmanr(LOSSES.sel(split="ood").values, acc)
    rho = ranked.statistic
    assert row.spearman == pytest.approx(rho)
    error = np.sqrt((1 + rho**2 / 2) / (4 - 3))
    assert row.spearman_low == pytest.approx(np.tanh(np.arctanh(rho) - 1.959964 * error))
    assert np.isnan(together.iloc[2].pearson)
    lines = correlation_lines(together.to_dict("records"), 4)
    assert len(lines) == 5
    assert f"Spearman {rho:.2f} (" in lines[2]
    assert "one of the two is the same at all of them" in lines[3]


def test_one_order_of_few_checkpoints_is_no_certainty():
    rows = [record(f"s{k}", 10 * (k + 1), acc=0.3 + 0.1 * k) for k in range(4)]
    row = correlations(benchmark_table(rows, LOSSES)).iloc[0]
    assert row.spearman == row.spearman_low == -1
    assert row.spearman_high == pytest.approx(np.tanh(-np.arctanh(0.9) + 1.959964 * np.sqrt(1 + 0.81 / 2)))
    assert row.spearman_high > 0
    assert correlations(benchmark_table(rows[:3], LOSSES)).empty
    assert "there are 3" in correlation_lines([], 3)[0]
    assert "a loss is known at fewer than 4" in correlation_lines([], 5)[0]


# ------------------------------------------------------------------------------------------------------- what is kept

KEPT = {"digest": "d", "task": "t", "metrics": {"acc": 0.5}, "examples": 2, "requests": 8, "cut": 0}


def test_a_finished_pair_is_read_again_if_it_is_whole_and_of_the_same(tmp_path: Path):
    file = finished_file(tmp_path, "refs/step1", "a::b/c d")
    assert file.relative_to(tmp_path).parts == ("finished", "refs%2Fstep1", "a%3A%3Ab%2Fc d.json")
    assert read_finished(file, "d") is None
    write_finished(file, KEPT)
    assert read_finished(file, "d") == KEPT
    assert read_finished(file, "other") is None
    for damaged in (file.read_text()[:-5], "[]", '{"digest": "d"}', "7"):
        file.write_text(damaged)
        assert read_finished(file, "d") is None


class FakeHarness:
    """Stands in for lm-eval: each task scores two requests; its accuracy is of their log likelihoods."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.measured: list[str] = []
        self.digests = {"one": "1", "two": "2"}
        monkeypatch.setattr(harness, "check_installed", lambda: "0")
        monkeypatch.setattr(harness, "load_tasks", lambda *given: dict(self.digests))
        monkeypatch.setattr(harness, "task_digest", lambda task, limit: f"{task} {limit}")
        monkeypatch.setattr(harness, "harness_model", lambda codec, score, context: FakeAdapter(codec, score))
        monkeypatch.setattr(harness, "measure", self.measure)

    def measure(self, model: Any, name: str, task: Any, limit: int) -> dict[str, Any]:
        self.measured.append(name)
        scores = model.score([TokenRequest([1, 2, 3], 1), TokenRequest([1, 2, 3, 4], 2)])
        return {"examples": 2, "metrics": {"acc": float(np.exp(scores[0][0])), "acc_stderr": 0.1}}


class FakeAdapter:
    requests, cut = 2, 0

    def __init__(self, codec: RequestTokenizer, score: Callable[[list[TokenRequest]], Any]):
        self.codec, self.score = codec, score


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero-shot")
    config = small_run(write_words(folder / "text"), evaluations=4)
    config = replace(config, context=64, tokens=12 * 64 * config.batch_size, keep=4)
    train(config, folder / "run")
    return folder / "run"


def test_pairs_that_are_finished_are_passed_over(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake, out = FakeHarness(monkeypatch), tmp_path / "out"

    def act() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(run, out, progress=at("pairs", 3, act))
    assert fake.measured == ["one", "two", "one"]
    assert not (out / "results.json").exists()
    first = benchmark(run, out)
    steps = first.table.step.nunique()
    assert len(fake.measured) == len(first.table) == 2 * steps
    assert steps == 4
    assert first.table.loss_id.notna().all()
    assert first.table.acc.nunique() == steps, "every checkpoint has weights of its own"
    again = benchmark(run, out)
    assert len(fake.measured) == 2 * steps
    pd.testing.assert_frame_equal(again.table, first.table)
    fake.digests["two"] = "its examples have changed"
    benchmark(run, out)
    assert fake.measured[2 * steps :] == ["two"] * steps
    benchmark(run, out, BenchmarkOptions(limit=1))
    assert fake.measured[3 * steps :] == ["one", "two"] * steps
    stored = json.loads((out / "results.json").read_text())
    assert stored["settings"]["limit"] == 1
    assert [row["checkpoint"] for row in stored["rows"]] == list(first.table.checkpoint)
    assert {row["checkpoints"] for row in stored["correlations"]} == {4}
    assert len(pd.read_csv(out / "results.csv")) == 2 * steps


def test_revisions_are_measured_like_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = FakeHarness(monkeypatch)
    text(tmp_path / "text")
    published = str(revisions(tmp_path / "published", tmp_path / "text", (0, 2)))
    options = PretrainedOptions(revision=("step*",), tokens_per_step=10)
    made = benchmark(published, tmp_path / "out", hf=True, pretrained=options)
    assert made.table.tokens.tolist() == [0, 0, 20, 20]
    assert "loss_id" not in made.table
    value, _ = RequestScorer(PYTHIA)(parameters(PYTHIA, 2), [TokenRequest([1, 2, 3], 1)])[0]
    assert made.table.acc[2] == pytest.approx(np.exp(value), rel=1e-5)
    (tmp_path / "published" / "step2" / "model.safetensors").touch()  # perhaps another's weights now
    benchmark(published, tmp_path / "out", hf=True, pretrained=options)
    assert fake.measured == ["one", "two"] * 3
    alone = benchmark(f"{published}/step2", tmp_path / "alone", hf=True)
    assert alone.table.tokens.isna().all()
    with pytest.raises(ValueError, match="how many tokens a step"):
        benchmark(published, tmp_path / "out", hf=True, pretrained=PretrainedOptions(revision=("step*",)))


# -------------------------------------------------------------------------------------------------------- command line


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run_verb("benchmark", list(arguments), debug=False) == 2
    return capsys.readouterr().err


def test_a_mistake_is_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any):
    where, out = str(run), str(tmp_path / "out")
    assert "or --hf with that of a published model, found neither" in sentence(capsys)
    assert "found both" in sentence(capsys, where, "--hf", "x")
    assert "--revision is an option of --hf" in sentence(capsys, where, "--revision", "a")
    assert "--begin must be auto, yes or no, found 'perhaps'" in sentence(capsys, where, "--begin", "perhaps")
    assert "--hf needs --out" in sentence(capsys, "--hf", "x")
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    assert "pip install 'tsl_jax[benchmark]'" in sentence(capsys, where, "--out", out)
    monkeypatch.setattr(harness, "check_installed", lambda: "0")
    assert "limit and fewshot are at least 0" in sentence(capsys, where, "--limit", "-1", "--out", out)
    assert "belongs to a run" in sentence(capsys, where, "--out", where)
    assert "name the folder of a run" in sentence(capsys, str(tmp_path), "--out", out)
    assert not (tmp_path / "out").exists()


def test_task_files_that_a_file_of_options_names_are_not_run(run: Path, tmp_path: Path, capsys: Any):
    for entry, option in (("tasks: [mine.yaml]", "--tasks"), ("include_path: [mine]", "--include-path")):
        (tmp_path / "options.yaml").write_text(f"run: {run}\n{entry}\n")
        said = sentence(capsys, "--config", str(tmp_path / "options.yaml"))
        assert f"may name Python that would run; look at it, then give {option} on the command line" in said


def test_the_verb_prints_rows_and_correlations(run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    FakeHarness(monkeypatch)
    arguments = [str(run), "--out", str(tmp_path / "out"), "--tasks", "one,two", "--limit", "5"]
    assert cli.run_verb("benchmark", arguments, debug=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["checkpoint", "tokens", "task", "acc"]
    assert len([line for line in lines if line.startswith("step")]) == 8
    assert "Spearman" in "\n".join(lines)
    assert "of the first 5 examples of each task" in lines
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["made_by"]
    assert stored["command"] == "benchmark"


# ---------------------------------------------------------------------------------- with lm-evaluation-harness itself

of_others = pytest.mark.filterwarnings("ignore")  # of the harness, datasets, transformers and torch


@pytest.fixture(name="lm_eval")
def _lm_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The harness, called in the folder of the made-up tasks, with caches of its own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(TASKS)
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'tsl_jax[benchmark]'")


def theirs(kind: str, folder: Path) -> Path:
    """A checkpoint that transformers makes, with a tokenizer that begins texts with a token in LLaMA's case."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    (folder / "text").mkdir(parents=True)
    for file in TASKS.glob("*.jsonl"):
        (folder / "text" / f"{file.stem}.txt").write_text(file.read_text())
    made = Tokenizer.from_file(str(tokenizer(folder / "tokenizer", folder / "text")))
    made.add_special_tokens(["<s>"])
    names = {"eos_token": END}
    if kind == "llama":
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 280)])
        names["bos_token"] = "<s>"
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 64}
    configs = {"llama": transformers.LlamaConfig, "gpt_neox": transformers.GPTNeoXConfig}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[kind](**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@of_others
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_numbers_are_those_of_the_harness_on_the_same_weights(kind: str, lm_eval: Any, tmp_path: Path):
    folder = theirs(kind, tmp_path / kind)
    pytest.importorskip("accelerate", reason="accelerate, which the harness's models of transformers need, is missing")
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    reference = HFLM(pretrained=str(folder), device="cpu", batch_size=5, dtype="float32")
    with zero_shot._of_revisions(str(folder), PretrainedOptions(), None, tmp_path / "out") as model:
        scorer = RequestScorer(model.config, batch=5)
        score = partial(scorer, model.read(model.checkpoints[0]))
        ours = harness.harness_model(model.tokenizer, score, scorer.context)
    assert (reference.max_length, reference.prefix_token_id) == (ours.max_length, ours.prefix_token_id)
    tasks = harness.load_tasks([str(TASKS / f"toy_{name}.yaml") for name in ("choice", "last", "words")])
    cut = 0
    for name, task in tasks.items():
        task.build_all_requests()
        how = task.instances[0].request_type
        one, other = (np.array(getattr(lm, how)(task.instances), float) for lm in (reference, ours))
        np.testing.assert_allclose(other, one, atol=1e-4, err_msg=name)
        cut += ours.cut
    assert cut > 0, "some requests are longer than the context"
    files = [str(TASKS / f"{name}.yaml") for name in tasks]
    expected = lm_eval.simple_evaluate(model=reference, tasks=files, bootstrap_iters=1000, log_samples=False)["results"]
    made = benchmark(folder, tmp_path / "out", BenchmarkOptions(tuple(files)), hf=True).table.set_index("task")
    for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
        assert made.loc["toy_choice", metric] == pytest.approx(expected["toy_choice"][f"{metric},none"], abs=1e-12)
    assert made.loc["toy_last", "acc"] == expected["toy_last"]["acc,none"]
    assert made.loc["toy_last", "perplexity"] == pytest.approx(expected["toy_last"]["perplexity,none"], rel=1e-4)
    for metric in ("word_perplexity", "bits_per_byte"):
        assert made.loc["toy_words", metric] == pytest.approx(expected["toy_words"][f"{metric},none"], rel=1e-4)


@of_others
def test_a_run_has_the_numbers_of_its_export(lm_eval: Any, run: Path, tmp_path: Path):
    from tsl_jax.pretrained.export import export_run

    export_run(run, tmp_path / "exported")
    options = BenchmarkOptions(("toy_choice.yaml", "toy_last.yaml"), limit=3)
    mine = benchmark(run, tmp_path / "mine", options).table
    last = mine[mine.checkpoint == mine.checkpoint.iloc[-1]].reset_index()
    assert (last.cut > 0).any()
    exported = benchmark(tmp_path / "exported", tmp_path / "theirs", options, hf=True).table
    for name in ("acc", "acc_norm", "perplexity"):
        np.testing.assert_allclose(exported[name].astype(float), last[name].astype(float), rtol=1e-4)
    assert exported.examples.tolist() == [3, 3]
    with pytest.raises(
        ValueError, match=r"toy_choice: expected .* continuation of 1 to 8 tokens, .*leave the task out"
    ):
        benchmark(run, tmp_path / "mine", options, pretrained=PretrainedOptions(context=8))


@of_others
def test_tasks_that_cannot_be_had_are_one_sentence(lm_eval: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets  # pyright: ignore[reportMissingImports]

    def away(*given: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub (LocalEntryNotFoundError)")

    (tmp_path / "wrong.yaml").write_text(
        (TASKS / "toy_choice.yaml").read_text().replace("toy_choice.jsonl", "no.jsonl")
    )
    (tmp_path / "broken.yaml").write_text("task: broken\ndataset_path: json\noutput_type: multiple_choise\n")
    for name, message in (
        ("none.yaml", r"there is no task file none\.yaml"),
        (str(TASKS / "toy_writes.yaml"), "task toy_writes lets a model write text, which is not scored here"),
        (str(tmp_path / "wrong.yaml"), r"wrong\.yaml needs data, which is neither .*no\.jsonl"),
        (str(tmp_path / "broken.yaml"), r"task .*broken\.yaml cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            harness.load_tasks([name])
    with pytest.raises(ValueError, match=r"--include-path .*nowhere is no folder"):
        harness.load_tasks(["toy_choice"], [tmp_path / "nowhere"])
    manager = lm_eval.tasks.TaskManager()  # seconds, so made once
    assert set(DEFAULT_TASKS) <= set(manager.all_subtasks)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: manager)
    monkeypatch.setattr(datasets, "load_dataset", away)
    with pytest.raises(ValueError, match=r"arc_easy needs the dataset allenai/ai2_arc ARC-Easy, which .*--tasks FILE"):
        harness.load_tasks(["arc_easy"])
    with pytest.raises(ValueError, match=r"'arc_esy' is no task of the harness, nor in --include-path; near it: arc_e"):
        harness.load_tasks(["arc_esy"])


@of_others
def test_names_tags_and_patterns_are_those_of_the_harness_and_of_folders(lm_eval: Any):
    found = harness.load_tasks(["toy", "toy_c*"], [TASKS], fewshot=0)
    assert sorted(found) == ["toy_choice", "toy_last", "toy_words"]
    assert {task.get_config("num_fewshot") for task in found.values()} == {0}
    first = harness.task_digest(found["toy_choice"])
    assert first == harness.task_digest(harness.load_tasks(["toy_choice.yaml"])["toy_choice"])
    assert first != harness.task_digest(found["toy_choice"], limit=3)
