"""A surface over the revisions of a model: labels, one program for all, downloads ahead, resumption, and callables."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
from pretrained_material import END, PYTHIA, WINDOWS, parameters, revisions, text, tokenizer
from training_material import at

import tsl_jax as tsl
from tsl_jax import cli, surface
from tsl_jax.models.build import abstract, hidden, unembedding
from tsl_jax.models.cost import n_params
from tsl_jax.pretrained import checkpoint_files, evaluation_text, weights
from tsl_jax.pretrained import revisions as pretrained_revisions
from tsl_jax.pretrained.export import export_model
from tsl_jax.pretrained.options import PretrainedOptions, label_revisions
from tsl_jax.pretrained.revisions import evaluate_revisions, fetched_ahead
from tsl_jax.training import evaluation

STEPS = (0, 2, 10)
OPTIONS = PretrainedOptions(revision=("step*",), tokens_per_step=1000, batch=4)


@pytest.fixture(name="words", scope="module")
def _words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, whose entries are in words.txt."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "entries.json").write_text(json.dumps(text(folder / "text")))
    return folder


@pytest.fixture(name="entries", scope="module")
def _entries(words: Path) -> tuple[str, ...]:
    return tuple(json.loads((words / "entries.json").read_text()))


@pytest.fixture(name="published", scope="module")
def _published(words: Path) -> Path:
    return revisions(words / "published", words / "text", STEPS)


@pytest.fixture(name="measured", scope="module")
def _measured(published: Path, entries: tuple[str, ...], words: Path) -> Path:
    return evaluate_revisions(str(published), words / "measured", text=entries, options=OPTIONS, windows_config=WINDOWS)


def test_the_surface_has_the_losses_of_every_revision_in_order(measured: Path, published: Path) -> None:
    loaded = tsl.load_surface(measured)
    assert loaded.tokens.values.tolist() == [0, 2000, 10_000]
    assert loaded.step.values.tolist() == list(STEPS)
    assert "lr" not in loaded.coords
    assert loaded.split.values.tolist() == ["tale", "list"]
    assert (loaded.attrs["run"], loaded.attrs["n_params"]) == ("published", n_params(PYTHIA))
    assert loaded.attrs["revisions"]["step10"] == {"tokens": 10_000, "step": 10, "commit": None}
    assert loaded.sizes["position"] == PYTHIA.context


def test_a_function_from_tokens_to_logits_gives_the_same_surface(
    measured: Path, published: Path, entries: tuple[str, ...], tmp_path: Path
) -> None:
    windows = tsl.text_windows(entries, published / "step0", context=PYTHIA.context, windows=WINDOWS)
    graphdef, _ = abstract(PYTHIA)
    expected = tsl.load_surface(measured)

    @jax.jit
    def logits(params: dict, x: jax.Array) -> jax.Array:
        return hidden(graphdef, params, x) @ unembedding(params).T

    calls = []
    for step in (0, 10, 10):

        def apply_fn(x: np.ndarray, step: int = step) -> Any:
            calls.append(step)
            return logits(parameters(PYTHIA, step), x)

        made = tsl.evaluate(apply_fn, windows, tokens=1000 * step, step=step, batch=4, out=tmp_path / "out", run="mine")
    assert set(calls[-len(calls) // 2 :]) == {10}
    assert len(calls) == 2 * sum(-(-len(part.tokens) // 4) for part in windows.values()), "the third is there already"
    same = expected.sel(tokens=made.tokens)
    for name in ("loss", "sem", "loss_additive", "cluster_sum"):
        np.testing.assert_allclose(made[name], same[name], rtol=2e-5, atol=2e-5, err_msg=name)
    assert made.attrs["run"] == "mine"
    with pytest.raises(ValueError, match=r"another run's surface \(run differ\)"):
        tsl.evaluate(lambda x: None, windows, tokens=7, out=tmp_path / "out", run="other")


def test_a_function_of_pytorch_is_called_the_same_way() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    table = torch.linspace(-2, 2, 20 * 20).reshape(20, 20).bfloat16()
    ids = np.random.default_rng(0).integers(0, 20, (5, 9))
    made = tsl.evaluate(lambda x: table[torch.as_tensor(x)], ids)
    exact = torch.log_softmax(table.float(), -1)[ids[:, :-1], ids[:, 1:]].numpy()
    np.testing.assert_allclose(made.loss[0, 0], -exact.mean(axis=0), rtol=1e-5)


def test_losses_of_plain_ids_are_those_of_the_softmax() -> None:
    rng = np.random.default_rng(0)
    table, ids = 9 * rng.normal(size=(20, 20)), rng.integers(0, 20, (5, 9))
    made = tsl.evaluate(lambda x: table[x], {"a": ids, "b": ids[:3]}, batch=2)
    log = table - np.log(np.exp(table).sum(axis=-1, keepdims=True))
    exact = -log[ids[:, :-1], ids[:, 1:]]
    np.testing.assert_allclose(made.loss.sel(split="a")[0], exact.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(made.loss.sel(split="b")[0], exact[:3].mean(axis=0), rtol=1e-5)
    assert made.sem.notnull().all()
    sure = tsl.evaluate(lambda x: 1e4 * np.eye(20)[(x + 1) % 20], np.arange(9)[None] + np.arange(5)[:, None])
    assert float(sure.loss.min()) == 0


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("apply_fn", "windows", "message"),
    [
        (lambda x: x, np.ones((2, 4), int), r"must give logits \(batch, n, vocabulary\) of \(8, 3\), found \(8, 3\)"),
        (lambda x: np.ones((*x.shape, 5)), np.full((2, 4), 5), "gives 5 logits, while the windows hold token 5"),
        (lambda x: np.full((*x.shape, 5), np.nan), np.ones((2, 4), int), "some losses are NaN"),
        (None, np.ones(4), r"token ids \(window, context \+ 1\), found shape \(4,\) of float64"),
        (None, {}, "there are no windows"),
        (None, {"a": np.ones((2, 4), int), "b": np.ones((2, 5), int)}, r"one context, found \[3, 4\]"),
    ],
)
def test_a_function_or_windows_of_another_kind_are_refused(apply_fn: Any, windows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tsl.evaluate(apply_fn, windows)


def test_one_program_serves_all_and_what_is_done_is_passed_over(
    published: Path, measured: Path, entries: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, read = [], []
    make_forward, read_params = evaluation.make_forward, weights.read_params

    def noted(folder: Path, *rest: Any) -> Any:
        read.append(folder.name)
        return read_params(folder, *rest)

    monkeypatch.setattr(weights, "read_params", noted)
    monkeypatch.setattr(evaluation, "make_forward", lambda *model: made.append(make_forward(*model)) or made[-1])

    def act() -> None:
        raise KeyboardInterrupt

    arguments = {"text": entries, "options": OPTIONS, "windows_config": WINDOWS}
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_revisions(str(published), out, **arguments, progress=at("evaluate list", 4, act))
    assert list(surface.checkpoints(out)) == []
    with pytest.raises(KeyboardInterrupt):
        evaluate_revisions(str(published), out, **arguments, progress=at("revisions", 2, act))
    assert list(surface.checkpoints(out)) == [0, 2000]
    evaluate_revisions(str(published), out, **arguments)
    evaluate_revisions(str(published), out, **arguments)
    assert read == ["step0", "step0", "step2", "step10"]
    assert [forward._cache_size() for forward in made] == [1, 1, 1, 0]
    loaded, expected = tsl.load_surface(out), tsl.load_surface(measured)
    assert loaded.drop_attrs().identical(expected.drop_attrs())
    assert loaded.attrs["revisions"] == expected.attrs["revisions"]


def test_the_next_is_fetched_while_the_one_before_is_used_and_no_further() -> None:
    begun, go_on = [], threading.Event()

    def fetch(item: str) -> Path:
        begun.append(item)
        if item == "b":
            go_on.wait(20)  # for what happens while a is used
        if item == "d":
            raise OSError("the hub is away")
        return Path(item)

    items: Iterator[tuple[str, Path]] = fetched_ahead(list("abcd"), fetch)
    assert next(items) == ("a", Path("a"))
    while begun != ["a", "b"]:
        pass
    go_on.set()
    assert [next(items), next(items)] == [("b", Path("b")), ("c", Path("c"))]
    with pytest.raises(OSError, match="the hub is away"):
        next(items)
    assert begun == list("abcd")


@pytest.mark.parametrize(
    ("name", "names", "given", "places"),
    [
        ("EleutherAI/pythia-70m", ["step1", "step143000"], {}, [(1, 2_097_152), (143_000, 299_892_736_000)]),
        ("x/y", ["stage1-step1000-tokens5B"], {"tokens_per_step": 7}, [(1000, 7000)]),
        ("x/y", ["main", "step3"], {"tokens": (9, 3)}, [(-1, 9), (3, 3)]),
    ],
)
def test_tokens_seen_come_from_the_step_in_a_name_or_are_given(
    name: str, names: list[str], given: dict, places: list
) -> None:
    assert list(label_revisions(name, names, **given).values()) == places


@pytest.mark.parametrize(
    ("name", "names", "given", "message"),
    [
        ("x/y", ["step1"], {}, "how many tokens a step of x/y is, is not known here; give --tokens-per-step"),
        ("EleutherAI/pythia-70m", ["step1", "main"], {}, "revision 'main' has no step in its name; give --tokens"),
        ("x/y", ["main"], {"tokens": (1, 2)}, r"has 2 numbers for 1 revisions \(main\)"),
        ("x/y", ["step1", "step01"], {"tokens_per_step": 5}, "step1 and step01 are both at 5 tokens"),
    ],
)
def test_tokens_that_are_not_known_are_asked_for(name: str, names: list, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_revisions(name, names, **given)


def test_patterns_name_folders_in_the_order_of_their_numbers(published: Path) -> None:
    assert checkpoint_files.revisions(str(published), ("step*",)) == ["step0", "step2", "step10"]
    assert checkpoint_files.revisions(str(published), ("step10", "step[0-2]")) == ["step10", "step0", "step2"]
    for wanted, message in (
        (("step7",), "no revision 'step7'; it has .*step0"),
        (("step0", "step*"), "'step0' is .* twice"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoint_files.revisions(str(published), wanted)
    with pytest.raises(FileNotFoundError, match=r"there is no folder \./none; name a folder, or OWNER/NAME"):
        checkpoint_files.revisions("./none", ())


MISTAKES = {
    "no text": ({"text": ()}, {}, "no text to measure on"),
    "context": ({}, {"context": 25}, "25 positions, the model's longest context, .*, is 24; lower --context"),
    "no windows": ({}, {"batch": 0}, "batch must be at least 1"),
    "end of text": ({}, {"end_of_text": "<eos>"}, "has no token '<eos>'"),
    "whether to begin": ({}, {"begin": "perhaps"}, "begin must be auto, yes or no, found 'perhaps'"),
    "begin": ({}, {"begin": "yes"}, "names no token that begins a text"),
    "revision": ({}, {"revision": ("step9",)}, "has no revision 'step9'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_met_before_anything_is_written(
    case: str, published: Path, entries: tuple[str, ...], tmp_path: Path
) -> None:
    given, options, message = MISTAKES[case]
    arguments = {"text": entries, "windows_config": WINDOWS, **given}
    with pytest.raises(ValueError, match=message):
        evaluate_revisions(str(published), tmp_path / "out", **arguments, options=replace(OPTIONS, **options))
    assert not (tmp_path / "out").exists()


def test_a_revision_of_another_model_or_with_losses_that_are_no_numbers_is_named(
    words: Path, entries: tuple[str, ...], tmp_path: Path
) -> None:
    wide = replace(PYTHIA, d_model=24)
    folder = revisions(tmp_path / "p", words / "text", (0,))
    revisions(tmp_path / "other", words / "text", (5,), wide)
    shutil.move(tmp_path / "other" / "step5", folder / "step5")
    with pytest.raises(ValueError, match=r"revision step5 of .* is another model than step0"):
        evaluate_revisions(str(folder), tmp_path / "out", text=entries, options=OPTIONS, windows_config=WINDOWS)
    assert list(surface.checkpoints(tmp_path / "out")) == [0]
    shutil.rmtree(folder / "step5")
    params = {**parameters(PYTHIA, 5), "embedding": np.full((300, 16), np.nan, np.float32)}
    export_model(params, PYTHIA, folder / "step5")
    with pytest.raises(ValueError, match=r"revision step5 of .* gives losses that are not finite"):
        evaluate_revisions(str(folder), tmp_path / "out", text=entries, options=OPTIONS, windows_config=WINDOWS)
    (tmp_path / "out" / "config.yaml").write_text("a run")
    with pytest.raises(ValueError, match=r"belongs to a run"):
        evaluate_revisions(str(folder), tmp_path / "out", text=entries, options=OPTIONS, windows_config=WINDOWS)


def test_windows_begin_with_the_token_that_begins_a_text(words: Path, entries: tuple[str, ...], tmp_path: Path) -> None:
    file = tokenizer(tmp_path / "plain", words / "text")
    plain = tsl.text_windows(entries, file.parent, context=8, windows=WINDOWS, end_of_text=END)
    settings = tmp_path / "plain" / "tokenizer_config.json"
    settings.write_text(json.dumps({"eos_token": {"content": END}, "bos_token": END, "add_bos_token": True}))
    begun = tsl.text_windows(entries, file.parent, context=8, windows=WINDOWS)
    for split, part in plain.items():
        np.testing.assert_array_equal(begun[split].tokens[:, 1:], part.tokens[:, 1:])
        assert (begun[split].tokens[:, 0] == 0).all()
        assert begun[split].design == {**part.design, "begins_with": 0}
    assert evaluation_text.tokenizer_facts(file.parent, begin="no").begin is None
    settings.write_text(json.dumps({"eos_token": END}))
    values = json.loads(file.read_text())
    special = {"SpecialToken": {"id": END, "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
    }
    file.write_text(json.dumps(values))
    assert evaluation_text.tokenizer_facts(file.parent) == (file, END, 0, 0)
    settings.write_text(json.dumps({"eos_token": END, "add_bos_token": False}))
    assert evaluation_text.tokenizer_facts(file.parent).begin is None
    settings.unlink()
    with pytest.raises(ValueError, match=r"names no token between documents; give --end-of-text"):
        evaluation_text.tokenizer_facts(file.parent)
    file.unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.json, by which text becomes tokens"):
        evaluation_text.tokenizer_facts(file.parent)


class Hub:
    """A hub whose repository is a folder of revisions."""

    def __init__(self, folder: Path):
        self.folder, self.downloads = folder, []

    def list_repo_refs(self, name: str) -> Any:
        branches = [type("Reference", (), {"name": path.name}) for path in self.folder.iterdir()]
        return type("References", (), {"branches": branches, "tags": []})

    def list_repo_files(self, name: str, revision: str) -> list[str]:
        return [path.name for path in (self.folder / revision).iterdir()]

    def snapshot_download(self, name: str, *, revision: str, allow_patterns: list[str], local_dir: Path | None) -> str:
        self.downloads.append((revision, "*.safetensors" in allow_patterns))
        target = local_dir or self.folder.parent / "cache" / "snapshots" / f"commit-{revision}"
        shutil.copytree(self.folder / revision, target, dirs_exist_ok=True)
        return str(target)


@pytest.mark.parametrize("discard", [False, True])
def test_revisions_of_the_hub_are_downloaded_once_each(
    published: Path, entries: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, discard: bool
) -> None:
    shutil.copytree(published, tmp_path / "hub")
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(pretrained_revisions, "LONGEST", 8)
    options = replace(OPTIONS, tokens_per_step=0, discard=discard)
    out, name = tmp_path / "out", "EleutherAI/pythia-70m"
    evaluate_revisions(name, out, text=entries, options=options, windows_config=WINDOWS)
    assert hub.downloads == [("step0", False), ("step0", True), ("step2", True), ("step10", True)]
    loaded = tsl.load_surface(out)
    assert loaded.tokens.values.tolist() == [0, 2 * 2_097_152, 10 * 2_097_152]
    assert loaded.sizes["position"] == 8
    commits = [value["commit"] for value in loaded.attrs["revisions"].values()]
    assert commits == ([None] * 3 if discard else [f"commit-step{step}" for step in STEPS])
    assert list((out / "downloads").rglob("*.safetensors")) == []
    weights_file = tmp_path / "hub" / "step2" / "model.safetensors"
    weights_file.rename(weights_file.with_name("pytorch_model.bin"))
    for file in tmp_path.rglob("commit-step2/model.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has pytorch_model\.bin, a pickle"):
        checkpoint_files.whole(name, "step2")


def test_a_hub_that_cannot_be_reached_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RuntimeError("Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: type("Api", (), {"list_repo_refs": away}))
    with pytest.raises(
        OSError, match=r"x/y at revision main cannot be read from the hub \(Name or service not known\)"
    ):
        checkpoint_files.description("x/y", "main")
    with pytest.raises(OSError, match="x/y cannot be read from the hub"):
        checkpoint_files.revisions("x/y", ("step*",))
    assert checkpoint_files.revisions("x/y", ("step1",)) == ["step1"], "it may have been downloaded before"


def command(*arguments: object) -> int:
    """Exit code of `tsl ARGUMENTS`, in this process."""
    verb, *rest = map(str, arguments)
    return cli.run_verb(verb, rest, debug=False)


def test_the_verb_measures_and_prints(
    published: Path, measured: Path, entries: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = asdict(WINDOWS)
    (tmp_path / "o.yaml").write_text(json.dumps({"windows": windows, "tokens_per_step": 1000, "batch": 4}))
    options = ("--config", tmp_path / "o.yaml", "--out", tmp_path / "out")
    assert command("evaluate", "--hf", published, "--revision", "step*", "--text", *entries, *options) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "nats at 0, 2000, 10000 tokens" in output
    assert "documents of list," in output
    assert tsl.load_surface(tmp_path / "out").drop_attrs().identical(tsl.load_surface(measured).drop_attrs())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name the folder of a run, or --hf with that of a published model, found neither"),
        (("RUN", "--hf", "x/y"), "found both"),
        (("RUN", "--batch", "3"), "--batch is an option of --hf, and RUN is a run; leave it out"),
    ],
)
def test_a_run_and_a_published_model_are_told_apart(
    arguments: tuple, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", *arguments, "--out", tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_an_unknown_step_or_rate_survives_packing(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tsl.load_surface(tsl.pack(measured, tmp_path / "packed"))
    assert again.drop_attrs().identical(tsl.load_surface(measured).drop_attrs())
    ids = np.random.default_rng(0).integers(0, 20, (3, 5))
    for tokens, step in ((1, -1), (2, 5)):
        mixed = tsl.evaluate(lambda x: np.ones((*x.shape, 20)), ids, tokens=tokens, step=step, out=tmp_path / "mixed")
    assert "step" not in mixed.coords
    monkeypatch.setattr(surface, "IN_MEMORY", 0)
    assert "step" not in tsl.load_surface(tmp_path / "mixed").coords
    with pytest.raises(ValueError, match=r"says whose surface .* cannot change"):
        surface.annotate(measured, run="other")


@pytest.mark.slow
def test_the_notebook_runs_on_a_tiny_model(
    words: Path, entries: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code as it is stored, but for the constants."""
    folder = revisions(tmp_path / "published", words / "text", (1, 2, 4, 8, 16))
    notebook = json.loads((Path(__file__).parents[1] / "notebooks" / "pythia.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    constants = next(cell for cell in cells if cell.startswith("NAME ="))
    names: dict[str, Any] = {"TEXT": entries, "OUT": tmp_path / "out", "WINDOWS": WINDOWS, "NAME": str(folder)}
    names["OPTIONS"] = replace(OPTIONS, discard=True)
    assert set(names) == {line.split(" = ")[0] for line in constants.splitlines()}
    monkeypatch.chdir(tmp_path)
    exec("\n".join(cell for cell in cells if cell != constants), names)
    assert names["surface"].sizes["tokens"] == 5
    assert names["fitted"].shape == names["surface"].loss.shape
    assert (folder / "step1" / "model.safetensors").exists(), "what was not downloaded is not deleted"
