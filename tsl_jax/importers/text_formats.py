"""Formats of trainers that print lines of text, as data: which key stands before which number.

Sources: train.py of nanoGPT, llmc/logger.h of llm.c, the records of modded-nanogpt, nanochat's base_train.py,
torchtitan's metrics, training.py of Megatron-LM and of gpt-neox, nanotron's logger, OLMo-core's console, MaxText's
metric logger, transformers' Trainer, litgpt's pretrain, Composer's console logger; as they stood in 2026, and older.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from tsl_jax.importers.line_scan import ANSI, Key, LineFormat, read_lines
from tsl_jax.importers.log_rows import LogRows, NotThisFormat, as_text, number_of, open_log, read_whole

# Bytes from both ends that decide which format a file has; the more where source code stands above a log.
HEADS = (1 << 17, 4 << 20)
FEW = 2  # lines with a step and a loss that make a log

_LAST_BATCH = "iter losses are of the last micro-batch of a step, train and val losses are means over an evaluation"
_EMA = "the training loss is an exponential moving average (weight 0.9): its noise is correlated, not independent"
_PPL = "perplexities are capped at e^20 and are not read; the loss beside them is"

NANOGPT = LineFormat(
    "nanoGPT text",
    rb"(?m)^(?:step \d+: train loss [\d.na]+, val loss|iter \d+: loss [\d.na]+, time)",
    (
        Key("step", b"step ", start=True),
        Key("step", b"iter ", start=True),
        Key("train_loss", b"train loss "),
        Key("val_loss", b"val loss "),
        Key("iter_loss", b"loss ", on=b"iter "),
    ),
    ("train_loss", "val_loss", "iter_loss"),
    facts=(("tokens_per_step", b"tokens per iteration", rb"tokens per iteration will be: ([\d,]+)"),),
    remarks=(("iter_loss", "last_micro_batch", _LAST_BATCH, False),),
)
LLM_C = LineFormat(
    "llm.c main.log",
    rb"(?m)^s:\d+ (?:tel|trl):",
    (
        Key("step", b"s:", start=True),
        Key("val_loss", b"tel:"),
        Key("train_loss", b"trl:"),
        Key("lr", b"lr:"),
        Key("accuracy", b"eval:"),
    ),
    ("val_loss", "train_loss"),
    remarks=(("accuracy", "accuracy", "eval: is an accuracy, and is not read as a loss", False),),
)
MODDED = LineFormat(
    "modded-nanogpt text",
    rb"(?m)^step:\d+/\d+ (?:val|train)_loss:",
    (
        Key("step", b"step:", start=True),
        Key("val_loss", b"val_loss:"),
        Key("train_loss", b"train_loss:"),
    ),
    ("val_loss", "train_loss"),
)
NANOCHAT = LineFormat(
    "nanochat text",
    rb"(?mi)^step \d+(?:/\d+)? .{0,20}\| (?:loss: |validation bpb: |validation loss: )",
    (
        Key("step", b"step ", start=True),
        Key("step", b"Step ", start=True),
        Key("train_loss", b"| loss: ", inside=True),
        Key("val_bpb", b"Validation bpb: "),
        Key("val_loss", b"Validation loss: "),
    ),
    ("train_loss", "val_bpb", "val_loss"),
    facts=(("tokens_per_step", b"Total batch size", rb"Total batch size ([\d,]+)"),),
    units=(("val_bpb", "bits/byte"),),
    remarks=(("train_loss", "smoothed", _EMA, True),),
)
TORCHTITAN = LineFormat(
    "torchtitan text",
    rb"step: *\d+ +(?:\S+: *\S+ +){0,3}?loss: *[\d.na]+ +(?:\S+: *\S+ +){0,3}?memory:",
    (
        Key("step", b"step:"),
        Key("train_loss", b"loss:", off=b"validate step:"),
        Key("val_loss", b"loss:", on=b"validate step:"),
        Key("tokens", b"n_tokens_seen:", grouped=True),
        Key("lr", b"lr:"),
    ),
    ("train_loss", "val_loss"),
    facts=(
        ("sequence_length", b"sequence length", rb"sequence length (\d+)"),
        ("batch_size", b"global batch size", rb"global batch size (\d+)"),
        ("total_steps", b"total steps", rb"total steps (\d+)"),
    ),
)
MEGATRON = LineFormat(
    "Megatron-LM text",
    rb"iteration +\d+/ *\d+ \|.*(?:lm loss: |consumed samples: )|validation loss at iteration \d+",
    (
        Key("step", b"iteration "),
        Key("samples", b"consumed samples:", grouped=True),
        Key("tokens", b"consumed tokens:", grouped=True),
        Key("lr", b"learning rate:"),
        Key("train_loss", b"lm loss:"),
        Key("val_loss", b"lm loss value:", off=b"test set"),
        Key("test_loss", b"lm loss value:", on=b"test set"),
        Key("ppl", b"lm loss PPL:"),
    ),
    ("train_loss", "val_loss", "test_loss"),
    facts=(
        ("sequence_length", b"seq_length", rb"(?m)^\W*(?:\[\w+\]:)?\s*seq_length \.+ (\d+)"),
        ("batch_size", b"global_batch_size", rb"(?m)^\W*(?:\[\w+\]:)?\s*global_batch_size \.+ (\d+)"),
    ),
    nan_where=("train_loss", b"| consumed samples:"),
    remarks=(("ppl", "perplexity_beside", _PPL, False),),
)
NEOX = LineFormat(
    "gpt-neox text",
    rb"(?i)samples/sec: *[\d.]+ \| iteration +\d+/|iteration +\d+.{0,400}\| lm_loss(?: value)?: ",
    (
        Key("step", b"iteration "),
        Key("lr", b"learning rate:"),
        Key("train_loss", b"lm_loss:"),
        Key("val_loss", b"lm_loss value:"),
        Key("ppl", b"lm_loss_ppl value:"),
    ),
    ("train_loss", "val_loss"),
    facts=(
        ("sequence_length", b"seq_length", rb"(?m)seq_length \.+ *(\d+)"),
        ("batch_size", b"train_batch_size", rb"(?m)train_batch_size \.+ *(\d+)"),
    ),
    nan_where=("train_loss", b"samples/sec:"),
    remarks=(("ppl", "perplexity_beside", _PPL, False),),
)
NANOTRON = LineFormat(
    "nanotron text",
    rb"iteration: \d+ / \d+ \| consumed_tokens: [\d.]+[KMBT]?",
    (
        Key("step", b"iteration:", grouped=True),
        Key("train_loss", b"lm_loss:"),
        Key("val_loss", b"val_loss:"),
        Key("lr", b"lr:"),
        Key("tokens", b"consumed_tokens:", grouped=True),
    ),
    ("train_loss", "val_loss"),
    facts=(
        ("sequence_length", b"sequence_length", rb"sequence_length[=:] ?(\d+)"),
        ("batch_size", b"global_batch_size=", rb"\(global_batch_size=(\d+)"),
    ),
)
OLMO = LineFormat(
    "OLMo-core console text",
    rb"\[step=\d+(?:/\d+)?,|(?:train|eval)/\S*(?:CE loss|CrossEntropyLoss)=",
    (
        Key("step", b"[step=", inside=True, grouped=True),
        Key("train/CE loss", b"train/CE loss="),
        Key("train/CE loss", b"train/CrossEntropyLoss="),
        Key("lr", b"optim/LR (group 0)="),
        Key("lr", b"optim/learning_rate_group0="),
        Key("tokens", b"throughput/total_tokens=", grouped=True),
        Key("tokens", b"throughput/total tokens=", grouped=True),
    ),
    ("train/CE loss",),
    step_before=True,
    named=b"CE loss=",
)
OLMO_OLD = LineFormat(
    "OLMo console text",
    rb"\[step=\d+(?:/\d+)?[,\]]|(?:train|eval)/\S*CrossEntropyLoss=",
    tuple(key for key in OLMO.keys if key.before != b"train/CE loss="),
    ("train/CE loss",),
    step_before=True,
    named=b"CrossEntropyLoss=",
)
MAXTEXT = LineFormat(
    "MaxText text",
    rb"completed step: *\d+, (?:\S+ )*?seconds: |eval metrics after step: *\d+, loss=",
    (
        Key("step", b"completed step:"),
        Key("step", b"eval metrics after step:"),
        Key("train_loss", b"loss:", on=b"completed step:"),
        Key("lm_loss", b"lm_loss:", on=b"completed step:"),
        Key("val_loss", b"loss=", on=b"eval metrics after step:"),
    ),
    ("lm_loss", "train_loss", "val_loss"),
)
TRAINER = LineFormat(
    "transformers Trainer text",
    rb"\{'(?:loss|eval_loss)': '?[\d.na]+'?, ",
    (
        Key("step", b"'step':", inside=True),
        Key("train_loss", b"'loss':", inside=True),
        Key("eval_loss", b"'eval_loss':", inside=True),
        Key("lr", b"'learning_rate':", inside=True),
        Key("epoch", b"'epoch':", inside=True),
        Key("tokens", b"'num_input_tokens_seen':", inside=True),
        Key("tokens", b"'num_tokens':", inside=True, grouped=True),
    ),
    ("train_loss", "eval_loss"),
    step_needed=False,
)
LITGPT = LineFormat(
    "litgpt text",
    rb"iter \d+ step \d+ \| loss train: [\d.na]+|iter \d+: val loss [\d.na]+, val time",
    (
        Key("micro_step", b"iter "),
        Key("step", b" step ", inside=True),
        Key("train_loss", b"loss train:"),
        Key("val_loss", b"val:"),
        Key("val_loss", b"val loss "),
    ),
    ("train_loss", "val_loss"),
)
COMPOSER = LineFormat(
    "Composer console text",
    rb"\[batch=\d+/\d+\]|loss/train/total: [\d.na]+|metrics/eval/\S*CrossEntropy: [\d.na]+",
    (
        Key("step", b"[batch=", inside=True),
        Key("train_loss", b"loss/train/total:"),
        Key("val_loss", b"metrics/eval/LanguageCrossEntropy:"),
        Key("lr", b"lr-DecoupledAdamW/group0:"),
        Key("tokens", b"time/token:"),
    ),
    ("train_loss", "val_loss"),
    step_before=True,
)
# Those whose lines begin with a key, behind a date, a level or a rank: `[rank0]: iter 250: loss 2.1000, time`.
BEHIND = tuple(
    replace(
        form,
        probe=form.probe.replace(b"(?m)^", rb"(?<=[ \t\]:|>])"),
        keys=tuple(key._replace(start=False) for key in form.keys),
    )
    for form in (NANOGPT, LLM_C, MODDED)
)
# Of formats with as many matches the first is taken.
FORMATS = (
    *(NANOGPT, LLM_C, MODDED, NANOCHAT, MEGATRON, NEOX, NANOTRON, TORCHTITAN, MAXTEXT, OLMO, OLMO_OLD, TRAINER),
    *(LITGPT, COMPOSER, *BEHIND),
)

_NUMBER = rb"[ \t]*[:= ][ \t]*(?:tensor\()?['\"]?([-+]?(?:\d[\d,_]*\.?\d*(?:[eE][-+]?\d+)?|nan|inf)[KMBTk]?)"
_ANY_STEP = re.compile(rb"(?i)(?<![A-Za-z0-9_])((?:global[_ ])?(?:step|iteration|iter|it|update)s?\]?)" + _NUMBER)
_ANY_LOSS = re.compile(rb"(?i)(?<![A-Za-z0-9_])((?:[A-Za-z][\w/]*[_/ -])?(?:loss|nll|cross_entropy|ce|xent))" + _NUMBER)
_ANY_EPOCH = re.compile(rb"(?i)(?<![A-Za-z0-9_])(epochs?\]?)" + _NUMBER)
_BAR = re.compile(rb"()\| (\d+)/\d+ \[")  # the steps of a progress bar
_EVAL = re.compile(rb"(?i)(?<![\w/.])(?:val|valid|validation|eval|evaluation|test|dev)(?![\w/.])")
_UNIT = re.compile(rb"[\d.](?: [KMBTkmbt]|[mbt])(?![\w/])")
_ANY_OTHER = re.compile(rb"(?i)(?<![A-Za-z0-9_])(lr|learning[_ ]rate|total_tokens|tokens_seen|tokens)" + _NUMBER)


def sniff_text(path: Path) -> LineFormat | None:
    """The format of a text log, by the lines of its two ends; None where none is recognised."""
    ends = b""
    for size in HEADS:
        if size > HEADS[0] and len(ends) < 2 * HEADS[0]:
            break  # that was the whole file
        ends = _ends(path, size)
        counts = [(len(re.findall(form.probe, ends)), -rank, form) for rank, form in enumerate(FORMATS)]
        count, _, form = max(counts, key=lambda entry: entry[:2])
        if count:
            return form
    return _by_words(ends)


def _ends(path: Path, size: int) -> bytes:
    """The first and last bytes of a file, without colours."""
    with open_log(path) as file:
        data = file.read(size)
        rest = file.read(1)
        if rest and path.suffix.lower() not in (".gz", ".bz2", ".xz"):
            file.seek(max(size, path.stat().st_size - size))
            data = data + b"\n" + file.read()
    data = as_text(data)
    if b"\0" in data:
        raise NotThisFormat("binary data")
    return ANSI.sub(b"", data).replace(b"\r", b"\n")


def _by_words(ends: bytes) -> LineFormat | None:
    """A format for lines such as `step=10 loss=3.2 lr=1e-4`; without steps, of a progress bar or of single epochs."""
    lines = [line for line in ends.splitlines() if len(line) < 2000 and _ANY_LOSS.search(line)][:20_000]
    for pattern, name in ((_ANY_STEP, "a step"), (_BAR, "the step of a progress bar"), (_ANY_EPOCH, "an epoch")):
        with_both = [line for line in lines if pattern.search(line)]
        if len(with_both) < FEW:
            continue
        if pattern is _ANY_EPOCH:
            epochs = [number_of(match[2].decode()) for line in with_both if (match := pattern.search(line))]
            if None in epochs or (np.diff(np.array(epochs, float)) <= 0).any():
                return None
        keys = _keys_by_words(with_both, pattern)
        losses = tuple(dict.fromkeys(key.column for key in keys if _ANY_LOSS.fullmatch(key.column.encode() + b": 1")))
        if losses and any(key.column == "step" for key in keys):
            found = f"no trainer's format was recognised: lines with {name} and a loss were read by these words"
            remarks = (("", "format_by_words", found, False),)
            return LineFormat(f"text with {name} and a loss a line", b"", keys, losses, remarks=remarks)
    return None


def _keys_by_words(lines: list[bytes], step: re.Pattern[bytes]) -> tuple[Key, ...]:
    """The keys of some lines; another word for the step is taken where a line lacks those before it."""
    keys, steps = dict[str, Key](), list[Key]()
    for line in lines[:200]:
        for pattern in (step, _ANY_LOSS, _ANY_OTHER):
            for match in pattern.finditer(line):
                before = line[match.start(1) : match.start(2)].rstrip(b"'\" \t") if match[2] else b""
                if pattern is not step:
                    name = re.sub(r"[ /-]", "_", match[1].decode().strip("]").strip().lower())
                    unit = _UNIT.search(line, match.start(2), match.end() + 3) if "tokens" in name else None
                    if unit is not None:
                        name = f"{name}_{unit[0][-1:].decode().lower()}"  # which counts in millions by its name
                    keys.setdefault(name, Key(name, before or match[1], grouped="tokens" in name))
                elif step is _BAR:
                    steps = [Key("step", b"| ", inside=True)]
                elif not any(key.before in line for key in steps):
                    steps.append(Key("step", before or match[1], grouped=True))
    marker = _eval_marker(lines)
    apart = [key for name, key in keys.items() if marker and _ANY_LOSS.fullmatch(name.encode() + b": 1")]
    for key in apart:  # the same word on lines of training and of evaluation
        word = re.sub(r"\W", "", marker.decode()).lower()
        keys[key.column] = key._replace(off=marker)
        keys[f"{word}_{key.column}"] = key._replace(column=f"{word}_{key.column}", on=marker)
    return (*steps, *keys.values())


def _eval_marker(lines: list[bytes]) -> bytes:
    """What stands on lines of evaluations alone, such as `| valid |`; empty where nothing does."""
    found: Counter[bytes] = Counter()
    for line in lines:
        rest = _ANY_LOSS.sub(b"", line)  # `val loss` is named already
        if match := _EVAL.search(rest):
            found[rest[max(match.start() - 1, 0) : match.end() + 1]] += 1
    marker, count = max(found.items(), key=lambda entry: entry[1], default=(b"", 0))
    holds = sum(marker in line for line in lines)
    return marker if 0 < count == holds < len(lines) else b""


def read_text(path: Path, form: LineFormat | None = None) -> LogRows:
    """The rows of a text log of any of FORMATS, or with a step and a loss a line.

    Args:
        form: its format, where it is known.

    Raises:
        NotThisFormat: where there is no such line. OSError: if it cannot be read.
    """
    form = form or sniff_text(path)
    if form is None:
        raise NotThisFormat("no line with a step and a loss")
    log = read_lines(path, form)
    if form is TRAINER:
        log = _trainer_steps(log)
    if form is LITGPT and len(log):
        _merge_micro_batches(log)
    if form is NANOTRON:
        log.known["tokens_are_rounded"] = 1  # 41M
    if "batch_size" in log.known and "sequence_length" in log.known:
        log.known.setdefault("tokens_per_step", log.known["batch_size"] * log.known["sequence_length"])
    return log


def _merge_micro_batches(log: LogRows) -> None:
    """litgpt prints every micro-batch: `micro_step` tells them apart, and stitching takes their mean."""
    log.columns.setdefault("micro_step", np.full(len(log), np.nan))


def _trainer_steps(log: LogRows) -> LogRows:
    """Steps of the Trainer's lines where they have none: from the progress bar, or from the order of the rows."""
    if "step" in log.columns and np.isfinite(log.columns["step"]).any():
        return log
    data = read_whole(log.path)
    bars = [(m.start(), int(m[1]), int(m[2])) for m in re.finditer(rb"\| *(\d+)/(\d+) \[", data)]
    rows = [m.start() for m in re.finditer(rb"\{'(?:loss|eval_loss)': ", data)]
    total = bars[0][2] if bars else 0
    own = [(at, step) for at, step, of in bars if of == total]  # an evaluation has a bar of its own
    if own and len(rows) == len(log):
        place = np.searchsorted([at for at, _ in own], rows) - 1
        steps = np.array([own[max(k, 0)][1] for k in place], float)
        if len(np.unique(steps)) > len(steps) / 5:
            log.columns["step"] = steps
            log.note("step_inferred", "the lines have no step: it was taken from the progress bar before each", 0)
            return log
    is_train = np.isfinite(log.columns.get("train_loss", np.full(len(log), np.nan)))
    index = np.maximum(np.cumsum(is_train), 1).astype(float)
    each = _logging_steps(data, int(is_train.sum()))
    log.columns["step"] = index * each
    log.known["steps_a_row"] = each
    how = f"every {each:g} steps, from the run's length in its last line" if each > 1 else "row 1, 2, 3, ..."
    log.note("step_inferred", f"the lines have no step: rows were counted ({how}); --logging-steps N says how many")
    return log


def _logging_steps(data: bytes, rows: int) -> float:
    """Steps between two lines of training, from runtime and speed in the summary, else 1."""
    runtime = re.search(rb"'train_runtime': '?([\d.]+)", data)
    speed = re.search(rb"'train_steps_per_second': '?([\d.]+)", data)
    if not runtime or not speed or not rows:
        return 1.0
    return max(float(np.round(float(runtime[1]) * float(speed[1]) / rows)), 1.0)
