"""Which column of a log is what, by its name: losses and their units, step, tokens, learning rate, run.

One place for all formats. A name that the user gives wins over what is recognised here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tsl_jax.importers.log_rows import LogRows, rows_where

LOSS_WORDS = {"loss", "losses", "nll", "xent", "ce", "crossentropy", "crossentropyloss", "celoss", "bpb", "bpc", "bpt"}
UNIT_WORDS = {
    "ppl": "perplexity",
    "perplexity": "perplexity",
    "bpb": "bits/byte",
    "bpc": "bits/char",
    "bpt": "bits/token",
}
UNIT_PHRASES = {"bits_per_byte": "bits/byte", "bits_per_char": "bits/char", "bits_per_token": "bits/token"}
UNIT_PHRASES |= {"bits_byte": "bits/byte", "bits_char": "bits/char", "bits_token": "bits/token"}
BITS = re.compile(r"(?<!\d )\bbits\b|\blog ?2\b|\bbase ?2\b")  # of a loss; `4_bits` are of its weights
CROSS_ENTROPY = {"ce", "lm", "nll", "xent", "crossentropy"}  # beside `total`, which holds auxiliary losses too
# A column with one of these words is no cross-entropy of the text, whatever else its name says.
OTHER_WORDS = {
    *("aux", "auxiliary", "z", "zloss", "router", "routing", "balance", "balancing", "load", "kl", "reward"),
    *("policy", "value", "critic", "actor", "grad", "scale", "scaler", "min", "max", "std", "var", "stderr", "sem"),
    *("best", "lowest", "delta", "diff", "target", "mtp", "indexer", "spike", "weight", "count", "num", "skipped"),
    *("nan", "l2", "reg", "regularization", "penalty", "commit", "vq", "contrastive", "distill", "distillation"),
    *("improvement", "threshold", "time", "vs", "moe", "lb", "variance", "unscaled", "gradient", "ratio", "acc"),
    *("accuracy", "soft", "sum"),
}
SMOOTH_WORDS = {"smooth", "smoothed", "ema", "running", "average", "moving", "mean10", "rolling"}
EVAL_WORDS = {"val", "valid", "validation", "eval", "evaluation", "test", "dev", "heldout", "tel"}
STEPS = (
    *("global_step", "trainer_global_step", "train_global_step", "step", "iteration", "iterations", "iter", "iters"),
    *("train_step", "training_step", "steps", "num_steps", "n_steps", "current_step", "optimizer_step", "num_updates"),
    *(
        "current_steps",
        "opt_step",
        "gradient_step",
        "n_iter",
        "num_iter",
        "iteration_number",
        "updates",
        "update",
        "train_steps",
        "train_iter",
        "iter_num",
        "it",
        "batch_idx",
        "batch",
    ),
)
TOKENS = re.compile(
    r"(?:train_|training_|optim_|throughput_|perf_|stats_|counters_|progress_|metrics_|data_)*"
    r"(?P<before>billions?_|millions?_|g|m|b)?(?:of_)?"
    r"(?:total_|num_|n_|consumed_|cumulative_|seen_|processed_|global_)*(?:train_|training_|input_)?tokens?"
    r"(?:_seen|_consumed|_processed|_trained|_so_far|_total|_elapsed|_cumulative|_global)*"
    r"(?:_in)?(?:_(?P<after>k|m|mn|b|bn|g|t|thousands?|millions?|billions?|trillions?))?"
)
FACTORS = {"k": 1e3, "thousand": 1e3, "m": 1e6, "mn": 1e6, "million": 1e6, "b": 1e9, "bn": 1e9, "g": 1e9}
FACTORS |= {"billion": 1e9, "t": 1e12, "trillion": 1e12}
SAMPLES = re.compile(
    r"(?:train_)?(?:consumed_|num_|n_|total_)*(?:train_)?(?:samples|sequences|examples)(?:_seen|_consumed)?"
)
LR = re.compile(r"(?:.*_)?(?:lr|learning_rate|learningrate)(?:_(?:group_?\d+|pg_?\d+|adam\w*|sgd|muon|\d+))*")
LR_OTHER = {"min", "max", "peak", "initial", "base", "multiplier", "final", "end", "decay", "warmup"}
RUNS = ("run", "run_name", "run_id", "experiment", "experiment_name", "exp_name", "exp", "trial", "job")
MICRO_STEPS = ("acc_step", "micro_step", "accumulation_step", "microbatch")


@dataclass(frozen=True)
class LossColumn:
    """A column of losses: its name, and `nats/token`, `bits/byte`, `bits/char`, `bits/token` or `perplexity`."""

    column: str
    unit: str = "nats/token"

    @property
    def is_eval(self) -> bool:
        """Whether its name says that it was measured on held-out text."""
        return bool(EVAL_WORDS & set(words(self.column)))


@dataclass
class LogRoles:
    """Columns by role, None where the log has none; `tokens_factor` is what the tokens column counts in."""

    losses: list[LossColumn]
    step: str | None = None
    tokens: str | None = None
    samples: str | None = None
    lr: str | None = None
    micro_step: str | None = None
    n_params: str | None = None
    runs: list[str] = field(default_factory=list)
    tokens_factor: float = 1.0


def normal(name: str) -> str:
    """A name in lower case with single underscores: `train/CE loss` is train_ce_loss."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def words(name: str) -> list[str]:
    """The words of a name; loss is one where it ends a longer word, as in `valLoss`."""
    parts = normal(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name) if not name.isupper() else name).split("_")
    return [piece for part in parts for piece in (re.split(r"(?<=.)(?=loss$)", part) if part != "loss" else [part])]


def loss_unit(name: str) -> str | None:
    """The unit of a column of losses, None for a column that is none."""
    parts = words(name)
    if OTHER_WORDS & set(parts):
        return None
    plain = normal(name)
    for phrase, unit in UNIT_PHRASES.items():
        if phrase in plain:
            return unit
    for word in parts:
        if word in UNIT_WORDS:
            return UNIT_WORDS[word]
    if not (LOSS_WORDS & set(parts) or "cross_entropy" in "_".join(parts)):  # LanguageCrossEntropy too
        return None
    return "bits/token" if BITS.search(plain.replace("_", " ")) else "nats/token"


def loss_columns(log: LogRows) -> list[LossColumn]:
    """The columns of a log that are to be read as losses; those left out are remarked."""
    finite = {name: int(np.count_nonzero(~np.isnan(values))) for name, values in log.columns.items()}
    if log.losses:
        found = [LossColumn(name, log.units.get(name, loss_unit(name) or "nats/token")) for name in log.losses]
    else:
        units = {name: loss_unit(name) for name in log.columns if finite[name]}
        found = [LossColumn(name, unit) for name, unit in units.items() if unit is not None]
    found = [loss for loss in found if finite.get(loss.column)]
    found = _without_summaries(log, found, finite)
    nats = [loss for loss in found if loss.unit in ("nats/token", "bits/token")]
    other = [loss for loss in found if loss.unit in ("bits/byte", "bits/char")]
    if nats:  # a perplexity beside a loss says the same, and bits per byte beside an evaluation's nats nearly so
        alone = [loss for loss in found if loss.unit == "perplexity" and loss.is_eval]
        if any(loss.is_eval for loss in nats):
            alone = []  # else a perplexity is all that is known of the evaluations
        ppl = [loss.column for loss in found if loss.unit == "perplexity" and loss not in alone]
        if ppl:
            log.note("perplexity_beside", f"{_list(ppl)}: perplexity beside a loss, not read", 0, warning=False)
        in_bits = {loss.column: p for loss in nats for p in ppl if _is_log2(log, loss.column, p)}
        for column, p in in_bits.items():
            log.note("log2_loss", f"{p} is 2 to the power of {column}, which is in bits then")
        nats = [LossColumn(loss.column, "bits/token") if loss.column in in_bits else loss for loss in nats]
        if any(loss.is_eval for loss in nats) and other:
            names = _list([loss.column for loss in other])
            log.note("bits_beside", f"{names}: bits per byte beside losses in nats, not read", 0, warning=False)
            other = []
        return nats + alone + other
    return other or found


def _without_summaries(log: LogRows, found: list[LossColumn], finite: dict[str, int]) -> list[LossColumn]:
    """Columns that repeat another one: means over an epoch or a run, smoothed copies, sums with auxiliary losses."""
    names = {loss.column: normal(loss.column) for loss in found}
    left: dict[str, str] = {}
    for name, plain in names.items():
        peers = [other for other in names if other != name]
        if plain.endswith("_epoch") and any(names[other] == plain.removesuffix("_epoch") + "_step" for other in peers):
            left[name] = "the mean over an epoch of a loss that is there for each step"
        elif plain.endswith("train_loss") and finite[name] == 1 and any(finite[other] > 2 for other in peers):
            left[name] = "the mean over the whole run"
        elif SMOOTH_WORDS & set(words(name)) and any(words(other) in _without_smoothing(name) for other in peers):
            left[name] = "a smoothed copy of a loss that is there"
        elif "total" in words(name) and (pure := [other for other in peers if _is_pure(other, name)]):
            left[name] = f"it may hold auxiliary losses, {pure[0]} beside it does not"
        elif plain == "learning_loss" and any(names[other] == "learning_lm_loss" for other in peers):
            left[name] = "it may hold auxiliary losses, learning/lm_loss beside it does not"
    for name, why in left.items():
        log.note("left_out", f"{name} is left out: {why}", 0, warning=False)
    kept = [loss for loss in found if loss.column not in left]
    for loss in kept:
        if names[loss.column] == "learning_loss":
            found_there = f"{loss.column} may hold auxiliary losses (mixture of experts); --loss says which to read"
            log.note("auxiliary", found_there, 0, warning=False)
        if SMOOTH_WORDS & set(words(loss.column)):
            found_there = f"{loss.column} is smoothed, by its name: its noise is correlated"
            log.note("smoothed", found_there)
    return kept


def _without_smoothing(name: str) -> list[list[str]]:
    """The words of a smoothed loss without those that say so, and without its weight: `loss_smooth_0.9`."""
    plain = [word for word in words(name) if word not in SMOOTH_WORDS]
    return [plain, [word for word in plain if not word.isdigit()]]


def _is_pure(name: str, total: str) -> bool:
    """Whether a column is the cross-entropy beside a sum: `loss/ce` beside `loss/total`."""
    parts = set(words(name))
    return bool(parts & CROSS_ENTROPY) and parts - CROSS_ENTROPY == set(words(total)) - {"total"}


def _is_log2(log: LogRows, loss: str, perplexity: str) -> bool:
    """Whether a perplexity is 2 to the power of a loss, row by row, which is in bits then: fairseq's are.

    Silent where they are of other text: fewer than nine of ten rows agree within 2 %.
    """
    of_loss, of_perplexity = log.columns[loss], log.columns[perplexity]
    both = np.isfinite(of_loss) & np.isfinite(of_perplexity) & (of_perplexity > 1.5) & (of_loss > 0)
    if both.sum() < 3:
        return False
    bits = np.log2(of_perplexity[both])
    return bool(np.mean(np.abs(of_loss[both] - bits) < 0.02 * bits) > 0.9)


def find_roles(log: LogRows, loss: Sequence[str], run: Sequence[str], named: dict[str, str | None]) -> LogRoles:
    """The roles of the columns of a log.

    Args:
        loss, run: columns named by the user; empty: those that are recognised.
        named: role (step, tokens, lr, n_params) -> column; the role's own name stands for "recognise it", None for
            "pass it over".

    Raises:
        ValueError: for a name that is not there, or one of several columns of a name.
    """
    there = [*log.columns, *log.text]
    asked = [*loss, *(name for role, name in named.items() if name not in (None, role)), *run]
    absent = [name for name in asked if name not in there]
    if absent:
        found = f"expected {', '.join(absent)} among the columns, found {', '.join(there[:40])}"
        raise ValueError(f"{found}; name those that are there, as in loss= (--loss)")
    for name in loss:
        if name in log.text:
            raise ValueError(f"{name} holds words, expected numbers; name another column with loss= (--loss)")
    losses = [LossColumn(name, loss_unit(name) or "nats/token") for name in loss] or loss_columns(log)
    roles = LogRoles(losses)
    has_loss = np.zeros(len(log), bool)
    for column in losses:
        has_loss |= ~np.isnan(log.columns[column.column])
    plain = {name: normal(name) for name in log.columns}

    @functools.cache
    def covers(name: str) -> float:
        return float(np.isfinite(rows_where(log.columns[name], has_loss)).mean()) if has_loss.any() else 0.0

    def recognised(role: str, candidates: list[str]) -> str | None:
        given = named.get(role)
        if given != role:
            return given
        # Rates may stand on rows of their own, beside losses of the same step.
        there = [name for name in candidates if name not in loss and np.isfinite(log.columns[name]).any()]
        candidates = [name for name in there if covers(name) > 0] or (there if role == "lr" else [])
        full = [name for name in candidates if covers(name) > 0.9]
        return full[0] if full else max(candidates, key=covers, default=None)

    steps = sorted((STEPS.index(p), name) for name, p in plain.items() if p in STEPS)
    roles.step = recognised("step", [name for _, name in steps])
    tokens = [name for name, p in plain.items() if TOKENS.fullmatch(p)]
    roles.tokens = recognised("tokens", sorted((n for n in tokens if _rises(log, n, has_loss)), key=len))
    if roles.tokens is not None and (match := TOKENS.fullmatch(plain[roles.tokens])) is not None:
        word = (match["after"] or match["before"] or "").strip("_").removesuffix("s")
        roles.tokens_factor = FACTORS.get(word, 1.0)
    rates = [n for n, p in plain.items() if LR.fullmatch(p) and not LR_OTHER & set(p.split("_"))]
    roles.lr = recognised("lr", sorted(rates, key=lambda n: (len(plain[n]), n)))
    roles.n_params = recognised("n_params", [name for name in ("n_params",) if name in log.columns])
    roles.samples = next(
        (name for name, p in plain.items() if SAMPLES.fullmatch(p) and _rises(log, name, has_loss)), None
    )
    roles.micro_step = next((name for name, p in plain.items() if p in MICRO_STEPS), None)
    roles.runs = list(run) or [name for name in there if normal(name) in RUNS][:1] + _seeds(log, has_loss)
    used = [loss.column for loss in losses] + [n for n in (roles.step, roles.tokens, roles.lr, *roles.runs) if n]
    for name in used:
        if log.units.get(name) == "repeated":
            found = f"has several columns {name}; rename or remove all but one: it stands twice in the header"
            raise ValueError(found)
    return roles


def _seeds(log: LogRows, has_loss: np.ndarray) -> list[str]:
    """The column of seeds, where rows of several stand in one log."""
    for name in (name for name in log.columns if normal(name) in ("seed", "random_seed")):
        kinds = len(np.unique(log.columns[name][has_loss & np.isfinite(log.columns[name])]))
        if 1 < kinds <= has_loss.sum() / 2:
            return [name]
    return []


def _rises(log: LogRows, name: str, has_loss: np.ndarray) -> bool:
    """Whether a column counts up: tokens of a batch are constant, tokens a second go up and down."""
    values = rows_where(log.columns[name], has_loss)
    values = rows_where(values, np.isfinite(values))
    if len(values) < 2:
        return len(values) == 1
    changes, more = len(values) - 1, np.count_nonzero(values[1:] > values[:-1])
    return bool(more > 0.5 * changes or (more > 0 and np.count_nonzero(values[1:] >= values[:-1]) / changes > 0.9))


def _list(names: Sequence[str], most: int = 4) -> str:
    """Names in a sentence, the first few of many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
