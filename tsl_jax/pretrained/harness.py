"""Our models behind the interface of EleutherAI's lm-evaluation-harness, which reads tasks and makes scores of them.

    log p(continuation | context) = -sum_t loss_t,   t over the tokens of the continuation

A request is cut from the left to the model's context, as the harness does it with models of transformers; where the
continuation ends and the context begins, and what stands before a text without context, is the harness's own code.
Requests are sorted by length and filled up on the right to one of a few lengths, a fixed number at a time, so that a
model is compiled a few times and not once a request. Source: Gao et al., A framework for few-shot language model
evaluation (Zenodo 12608602); checked with lm-eval 0.4.13.

The harness is imported when it is used: it is the extra `benchmark`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import numpy as np
from jax.sharding import Mesh

from tsl_jax.models.build import Params, abstract, hidden, unembedding
from tsl_jax.models.config import ModelConfig
from tsl_jax.models.sharding import platform_of
from tsl_jax.training import mesh
from tsl_jax.training.objective import token_scores

RESAMPLES = 1000  # for standard errors of metrics that have no formula, such as perplexity; of means they have one
SHORTEST = 32  # tokens that the shortest requests are filled up to
SEED = 1234  # the harness's own, of the examples that few-shot prompts show
NOISY = ("lm_eval", "datasets", "huggingface_hub", "fsspec")  # loggers that would write across our progress
SUFFIXES = (".yaml", ".yml")
LOCAL = "give a task file of your own whose data_files are here (--tasks FILE.yaml, see docs/zero-shot.md)"

Score = tuple[float, bool]  # log likelihood in nats, and whether every token is the most likely one
Progress = Callable[[int, int], None]  # called with requests done and in all


class TokenRequest(NamedTuple):
    """A sequence of tokens, the last `scored` of which are scored: 1 <= scored < len(tokens)."""

    tokens: Sequence[int]
    scored: int


@dataclass(frozen=True)
class RequestTokenizer:
    """Text to tokens as the harness asks for it.

    Attributes:
        tokenizer: of the package tokenizers. begin: id of the token that begins a text, if one does.
        before: id of the token that a text without context is conditioned on.
    """

    tokenizer: Any
    begin: int | None
    before: int

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Token ids, begun with `begin` if `special`; None: unless the text itself spells the token `before`."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if special is None:
            special = not text.startswith(self.tokenizer.id_to_token(self.before))
        return [self.begin, *ids] if special and self.begin is not None else ids


class RequestScorer:
    """Scores of token requests under parameters of one model; compiled once for each length that occurs."""

    def __init__(self, config: ModelConfig, context: int = 0, batch: int = 16, placed: Mesh | None = None):
        """Of a resolved model.

        Args:
            context: tokens that the model reads at most, 0: as many as it can. batch: requests at a time.
            placed: the mesh that parameters lie on, None: one device.

        Raises:
            ValueError: for a context that the model has not, or no requests at a time.
        """
        if not 0 <= context <= config.context:
            raise ValueError(f"benchmark: the model reads {config.context} tokens, found --context {context}; lower it")
        if batch < 1:
            raise ValueError(f"benchmark: batch must be at least 1, found {batch}")
        self.context, self.vocabulary, self.batch = context or config.context, config.vocabulary, batch
        self._placed, platform = placed, platform_of(placed)
        graphdef, _ = abstract(config, platform)
        # float32 is meant: GPUs would otherwise multiply with 10 bits of mantissa
        self._precision = "highest" if config.dtype == "float32" else None

        def program(params: Params, tokens_BxN: jax.Array) -> tuple[jax.Array, jax.Array]:
            h_BxTxD = hidden(graphdef, params, tokens_BxN[:, :-1])
            return token_scores(h_BxTxD, unembedding(params), tokens_BxN[:, 1:], platform=platform)

        self.program: Any = jax.jit(program)

    def __call__(
        self, params: Params, requests: Sequence[TokenRequest], progress: Progress = lambda done, total: None
    ) -> list[Score]:
        """The score of each request, in their order.

        Raises:
            ValueError: for requests that are longer than the context, score nothing, or hold tokens of another model.
        """
        for tokens, scored in requests:
            if not 1 <= scored < len(tokens) <= self.context + 1 or max(tokens) >= self.vocabulary:
                sizes = f"{len(tokens)} tokens up to {max(tokens, default=-1)}, {scored} of them scored"
                limits = f"2 to {self.context + 1} tokens below {self.vocabulary}, the last ones scored"
                raise ValueError(f"benchmark: expected {limits}, found {sizes}; is the tokenizer that of the model?")
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
        scores: list[Score] = [(0.0, True)] * len(requests)
        for start in range(0, len(requests), self.batch):
            members = longest_first[start : start + self.batch]
            for i, score in zip(members, self._batch(params, [requests[i] for i in members]), strict=True):
                scores[i] = score
            progress(start + len(members), len(requests))
        return scores

    def _batch(self, params: Params, requests: list[TokenRequest]) -> Iterator[Score]:
        """The scores of at most `batch` requests, the longest first."""
        n = padded_length(len(requests[0].tokens) - 1, self.context)
        # What is filled up stands after the tokens that are scored, so that they do not see it.
        filled = np.zeros((self.batch, n + 1), np.int32)
        for row, request in zip(filled, requests, strict=False):
            row[: len(request.tokens)] = request.tokens
        precise: Any = nullcontext() if self._precision is None else jax.default_matmul_precision(self._precision)
        with mesh.traced_on(self._placed), precise:
            losses, hits = (np.asarray(x) for x in self.program(params, filled))
        for k, (tokens, scored) in enumerate(requests):
            last = len(tokens) - 1
            part = slice(last - scored, last)
            yield -float(losses[k, part].sum(dtype=np.float64)), bool(hits[k, part].all())


def padded_length(n: int, context: int) -> int:
    """The smallest of 32, 48, 64, 96, 128, ... that is at least n, but no more than the context."""
    length = SHORTEST
    while length < n:
        length = length * 3 // 2 if length & (length - 1) == 0 else length * 4 // 3
    return min(length, context)


def check_installed() -> str:
    """The version of the harness.

    Raises:
        ValueError: where it is not installed, saying how.
    """
    if find_spec("lm_eval") is None:
        how = "pip install 'tsl_jax[benchmark]', or pip install lm-eval"
        raise ValueError(f"benchmark: tasks are read by the package lm-eval, which is not installed; {how}")
    return importlib.metadata.version("lm-eval")


def harness_model(tokenizer: RequestTokenizer, score: Callable[[list[TokenRequest]], list[Score]], context: int) -> Any:
    """A `lm_eval.api.model.TemplateLM`, for `lm_eval.evaluate` or `lm_eval.simple_evaluate(model=...)`.

    Args:
        score: of token requests; `partial(RequestScorer(config), params)`. context: tokens that the model reads.

    Its attributes `requests` and `cut` count the continuations scored, and those whose context was cut from the left.
    """
    return _adapter()(tokenizer, score, context)


@cache
def _adapter() -> Any:
    """The class, which needs the harness to be defined."""
    check_installed()
    from lm_eval import utils  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

    class Adapter(TemplateLM):
        def __init__(self, tokenizer: RequestTokenizer, score: Any, context: int):
            super().__init__()
            self._tokenizer, self._score, self.max_length = tokenizer, score, context
            self.requests = self.cut = 0
            self.task = ""  # for messages

        @property
        def eot_token_id(self) -> int:
            return self._tokenizer.before

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return self._tokenizer.encode(string, add_special_tokens)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[Score]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[Score]:
            made = []
            for text, context, continuation in requests:
                if not context or not 1 <= len(continuation) <= self.max_length:
                    sizes = f"{len(context)} and {len(continuation)} tokens in {str(text)[:80]}"
                    expected = f"a context, and a continuation of 1 to {self.max_length} tokens, which the model reads"
                    problem = f"task {self.task}: expected {expected}, found {sizes}"
                    raise ValueError(f"benchmark: {problem}; leave the task out, or take a model of longer context")
                whole = [*context, *continuation]
                self.cut += len(whole) > self.max_length + 1
                made.append(TokenRequest(whole[-(self.max_length + 1) :], len(continuation)))
            self.requests += len(made)
            return self._score(made)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
            windows, owner = [], []
            for i, (text,) in enumerate(request.args for request in requests):
                tokens = self._tokenizer.encode(text)
                sizes = {"prefix_token": self.prefix_token_id, "max_seq_len": self.max_length, "context_len": 1}
                for pair in utils.get_rolling_token_windows(token_list=tokens, **sizes):
                    context, continuation = utils.make_disjoint_window(pair)
                    windows.append((text, context, continuation))
                    owner.append(i)
            totals = np.zeros(len(requests))
            np.add.at(totals, owner, [score for score, _ in self._loglikelihood_tokens(windows)])
            return totals.tolist()

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
            raise ValueError("benchmark: tasks that let a model write text are not scored; take one of choices")

    return Adapter


def load_tasks(
    names: Sequence[str],
    include: Sequence[Path] = (),
    fewshot: int = 0,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Tasks of the harness with their data, by name; groups and tags become the tasks in them.

    Args:
        names: of tasks, groups or tags, patterns such as arc_*, or task files (.yaml). include: folders of task files.
        fewshot: solved examples in a prompt, unless the task says none.

    Raises:
        ValueError: for a name that is none, a task whose data cannot be had, or one that lets a model write text.
    """
    check_installed()
    files = [name for name in names if name.endswith(SUFFIXES)]
    for file in files:
        if not Path(file).expanduser().is_file():
            raise ValueError(f"benchmark: there is no task file {file}; name one, or a task of the harness")
    for folder in include:
        if not folder.is_dir():
            raise ValueError(f"benchmark: --include-path {folder} is no folder; name one with task files (.yaml)")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]  # sets levels of loggers

    with _quiet():
        # The harness's own tasks are 14,000 files: seconds, where only files are asked for.
        manager = TaskManager(include_path=list(include), include_defaults=len(files) < len(names))
        specs = [spec for name in names for spec in ([name] if name in files else _named(manager, name))]
        tasks: dict[str, Any] = {}
        for done, spec in enumerate(specs):
            progress(done, len(specs))
            for name, task in _load(manager, spec).items():
                if task.get_config("output_type") == "generate_until":
                    advice = "it takes choices or log likelihoods; leave it out"
                    raise ValueError(
                        f"benchmark: task {name} lets a model write text, which is not scored here; {advice}"
                    )
                if task.get_config("num_fewshot") != 0:  # a task that says none means it
                    task.set_config(key="num_fewshot", value=fewshot)
                task.set_fewshot_seed(seed=SEED)
                tasks[name] = task
        progress(len(specs), len(specs))
    return tasks


def _named(manager: Any, name: str) -> list[str]:
    """Names of the harness that a name or pattern stands for."""
    found = manager.match_tasks([name])
    if not found:
        near = ", ".join(get_close_matches(name, manager.all_tasks, 3)) or "see `lm-eval ls tasks`"
        raise ValueError(f"benchmark: {name!r} is no task of the harness, nor in --include-path; near it: {near}")
    return list(found)


def _load(manager: Any, spec: str) -> dict[str, Any]:
    """The tasks of one name or file, their data read."""
    try:
        return manager.load([str(Path(spec).expanduser()) if spec.endswith(SUFFIXES) else spec])["tasks"]
    except Exception as error:  # of the harness, of datasets, of the hub's client, or of the task's own code
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        entry = manager.task_index.get(spec)
        config = (entry.cfg or {}) if entry is not None else {}
        dataset = " ".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
        if isinstance(error, OSError) or "offline" in str(error).lower() or "Hub" in str(error):
            needs = f"task {spec} needs the dataset {dataset}" if dataset else f"task {spec} needs data"
            away = f"{needs}, which is neither on this machine nor to be downloaded ({reason})"
            keep = "call once with a connection, which keeps it in HF_HOME for later"
            raise ValueError(f"benchmark: {away}; {keep}, or {LOCAL}") from None
        raise ValueError(
            f"benchmark: task {spec} cannot be read ({type(error).__name__}: {reason}); correct its file"
        ) from None


def task_digest(task: Any, limit: int = 0) -> str:
    """The SHA-256 of what a task asks: its settings, code in them included, and its examples.

    Args:
        limit: of the first examples; 0: all.
    """
    config = task.dump_config()
    metadata = {key: value for key, value in config.get("metadata", {}).items() if key != "config_source"}  # its path
    sha = hashlib.sha256()
    for part in ({**config, "metadata": metadata}, *islice(task.eval_docs, limit or None)):
        sha.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()


def measure(model: Any, name: str, task: Any, limit: int = 0) -> dict[str, Any]:
    """What the harness makes of a model and a task.

    Args:
        model: from `harness_model`. limit: examples, the first ones; 0: all.

    Returns:
        examples, and metrics: name -> value, such as acc, acc_stderr, acc_norm; a filter other than "none" is named
        behind a comma, as the harness does it.
    """
    from lm_eval.evaluator import evaluate  # pyright: ignore[reportMissingImports]

    model.task = name
    # Its processes would be forks of one with the threads of JAX, which may never end.
    alone = {"DISABLE_MULTIPROC": "1"}
    with _quiet(), patch.dict(os.environ, alone):
        how = {"limit": limit or None, "bootstrap_iters": RESAMPLES, "log_samples": False}
        results = evaluate(lm=model, task_dict={"tasks": {name: task}}, **how)
    values = {
        key.removesuffix(",none"): float(value)
        for key, value in results["results"][name].items()
        if "," in key and isinstance(value, Real)
    }
    return {"examples": int(results["n-samples"][name]["effective"]), "metrics": values}


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines below errors of the libraries that read tasks."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
