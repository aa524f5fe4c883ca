"""What the benchmark reads, made of the originals that `fetch` brings: copies, columns of tables, joined branches.

Every function takes the originals of one source, by their path in its repository, and returns the files in the folder
of that source. `hashes.json` says whether they are those that the kept rows were made of.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from experiments.forecast_benchmark.data import LR_SCHEDULING_BATCH

Files = dict[str, bytes]  # path -> content
GEMSTONES = {"hot": "constant_lr", "lr_ablation_hot": "constant_lr_half", "cool_end": "cooldown_end"}
GOLDEN = "tests/functional_tests/test_cases"
MEGATRON = {
    f"{GOLDEN}/gpt/gpt3_15b_8t_release/golden_values_lts_dgx_a100.json": "gpt3_15b_a100",
    f"{GOLDEN}/gpt/gpt3_15b_8t_release/golden_values_dev_dgx_h100.json": "gpt3_15b_h100",
    f"{GOLDEN}/mixtral/mixtral_8x7b_alltoall_tp2pp4ep4_release/golden_values_dev_dgx_h100.json": "mixtral_8x7b_h100",
}
OLMO = {"step": "_step", "tokens": "throughput/total_tokens", "lr": "optim/learning_rate_group0"}
OLMO |= {name: name for name in ("learning_rate_peak", "batch_size_in_tokens")}
OLMO_SETS = "c4_en dolma_books dolma_common-crawl dolma_pes2o dolma_reddit dolma_stack dolma_wiki ice m2d2_s2orc pile"
OLMO |= {name: f"eval/{name}-validation/CrossEntropyLoss" for name in (*OLMO_SETS.split(), "wikitext_103")}
LR_SIZES = {(8, 6): "33M", (8, 8): "53M", (10, 8): "60M", (12, 10): "93M", (12, 12): "124M"}  # layers, heads
LR_WARMUP = 300  # steps
LR_FOLDERS = ("data", "data/horizon_transfer", "data/grad_norm")  # of a run in several the first counts
# Size and corpus, schedules, peaks, steps: all combinations of a row are runs of the benchmark.
LR_RUNS = (
    ("33M-sp", "cos", "0.002", "3000 7000 10000"), ("33M-sp", "const", "0.001", "10000"),
    ("33M-sp", "wsd0.2", "0.001", "3000 7000"),
    ("53M-sp", "cos", "0.002", "3650 7500 11250"), ("53M-sp", "const", "0.001", "11250"),
    ("53M-sp", "wsd0.2", "0.001", "3650 7500"),
    ("60M-sp", "cos", "0.002", "7500 12500 17500"), ("60M-sp", "const", "0.001", "17500"),
    ("60M-sp", "wsd0.2", "0.001", "7500 12500"),
    ("93M-sp", "cos", "0.002", "10000 17500 25000"), ("93M-sp", "const", "0.001", "25000"),
    ("93M-sp", "wsd0.2", "0.001", "10000 17500"),
    ("124M-sp", "cos", "0.001", "30000"), ("124M-sp", "const", "0.0005", "30000"),
    ("124M-sp2", "wsd0.2", "0.001", "50000"),
    ("124M-sp", "cos wsd0.1 wsd0.2 wsd0.4 wsd0.6 wsd0.8 wsd0.9", "0.001 0.002", "15000 25000 35000 50000"),
    ("124M-sp", "wsd0.1 wsd0.2 wsd0.4 wsd0.6 wsd0.8 wsd0.9", "0.0005", "15000 25000 35000 50000"),
    ("124M-sp", "wsd0.1 wsd0.2 wsd0.4 wsd0.6 wsd0.8 wsd0.9", "0.0001", "25000 50000"),
    ("124M-sp", "cos", "0.0001 0.0005", "25000 50000"), ("124M-sp", "coszero", "0.003 0.005", "50000"),
    ("124M-sp", "coszero wsd0.2sqrt", "0.0001 0.0005 0.001 0.002", "25000 50000"),
    ("124M-sp", "const wsd0.994", "0.0001 0.0005 0.001 0.002 0.003", "50000"),
    ("124M-sp", "wsd0.1 wsd0.2 wsd0.2sqrt wsd0.4 wsd0.6 wsd0.8 wsd0.9", "0.003", "50000"),
)  # fmt: skip


def multipower(originals: Files) -> Files:
    """The CSV files as they are."""
    return {re.sub(r"loss_curve_repo/csv_(\d+)", r"\1M", path): content for path, content in originals.items()}


def gemstones(originals: Files) -> Files:
    """The JSON lines as they are, under other names."""
    return {f"{GEMSTONES[Path(path).stem.split('fitting_')[1]]}.jsonl": content for path, content in originals.items()}


def modded_nanogpt(originals: Files) -> Files:
    """The log as it is."""
    (log, *_) = originals.values()
    return {"2024-10-13_llmc/main.log": log}


def megatron(originals: Files) -> Files:
    """Of the golden values the losses alone."""
    losses = {MEGATRON[path]: {"lm loss": json.loads(content)["lm loss"]} for path, content in originals.items()}
    return {f"{name}.json": json.dumps(values).encode() for name, values in losses.items()}


def olmo_ladder(originals: Files) -> Files:
    """One table of all runs: their losses, tokens and learning rate, cells as they are written."""
    rows = []
    for path in sorted(originals):
        size, multiple, *rerun = Path(path).stem.replace("xC", "").split("-")
        for row in csv.DictReader(io.StringIO(originals[path].decode(), newline="")):
            rows.append([size, multiple, *(rerun or [""]), *(row[column] for column in OLMO.values())])
    return {"runs.csv": _table(["size", "chinchilla_multiple", "rerun", *OLMO], rows)}


def lr_scheduling(originals: Files) -> Files:
    """The validation losses of the runs of `LR_RUNS`, each branch after its trunk, and the plans of their rates."""
    logs = {path: json.loads(content) for path, content in originals.items()}
    wanted = {"-".join((s, k, f"lr{p}", n)) for s, *rest in LR_RUNS for k, p, n in product(*map(str.split, rest))}
    runs: dict[str, str] = {}
    for path in sorted(logs, key=lambda path: (LR_FOLDERS.index(str(Path(path).parent)), path)):
        if (name := _run_name(logs[path])) in wanted:
            runs.setdefault(name, path)
    if absent := sorted(wanted - set(runs)):
        raise ValueError(f"{len(absent)} of {len(wanted)} runs were not found: {', '.join(absent)}")
    rows, plans = [], {}
    for name, path in runs.items():
        losses, rates = _curves(path, logs)
        kind, peak = re.sub(r"zero|[\d.]+(sqrt)?", "", name.split("-")[2]), logs[path]["config"]["lr"]
        fixed = [name, logs[path]["summary"]["parameters"], kind, peak]
        steps = sorted(step for step in losses if step)
        numbers = ((n * LR_SCHEDULING_BATCH, f"{rates[n]:.6g}", f"{losses[n]:.5f}") for n in steps)
        rows += [[*fixed, *row] for row in numbers]
        plans[name] = _plan(name, peak, steps[-1])
    header = ["run", "n_params", "kind", "peak", "tokens", "lr", "val_loss"]
    return {"runs.csv": _table(header, rows), "plans.json": json.dumps(plans).encode()}


def _curves(path: str, logs: dict[str, Any]) -> tuple[dict[int, float], dict[int, float]]:
    """Validation losses and learning rates by step. A branch follows its trunk; of doubled steps the later counts."""
    log, losses, rates = logs[path], {}, {}
    if log["config"].get("resume_from"):
        file = f"{log['config']['resume_from'].split('/')[-3]}.json"
        trunk = next((found for folder in (Path(path).parent, "data") if (found := f"{folder}/{file}") in logs), None)
        if trunk is None:
            raise ValueError(f"{path} goes on from {file}, which is not among the originals")
        start = log["history"]["val"]["iter"][0]
        losses, rates = ({n: y for n, y in of.items() if n <= start} for of in _curves(trunk, logs))
    val, train = log["history"]["val"], log["history"]["train"]
    losses |= dict(zip(val["iter"], val["val_loss"], strict=True))
    return losses, rates | dict(zip(train["iter"], train["train_lr"], strict=True))


def _run_name(log: Any) -> str:
    """As in 124M-sp-wsd0.2-lr0.001-50000. Its last rate says whether a cosine goes to zero or to a tenth."""
    config, train = log["config"], log["history"]["train"]
    size = f"{LR_SIZES[config['n_layer'], config['n_head']]}-{'sp2' if 'chunk1' in config['dataset'] else 'sp'}"
    if config["scheduler"] == "cos":
        _, last = max(zip(train["iter"], train["train_lr"], strict=True))
        kind = "cos" if last > 0.01 * config["lr"] else "coszero"
    else:
        decay = config["wsd_fract_decay"]
        kind = f"wsd{decay}{'sqrt' if config.get('decay_type') == 'sqrt' else ''}" if decay else "const"
    return f"{size}-{kind}-lr{config['lr']}-{config['iterations']}"


def _plan(name: str, peak: float, last: int) -> dict[str, Any]:
    """The learning rate by tokens: linear warm-up, then a cosine, or a constant rate and its decay."""
    kind, total = name.split("-")[2], int(name.rsplit("-", 1)[1])
    warm = LR_WARMUP * LR_SCHEDULING_BATCH
    if kind.startswith("cos"):
        plan = {"kind": "cosine", "peak": peak, "warmup_tokens": warm, "total_tokens": total * LR_SCHEDULING_BATCH}
        return plan | {"final_ratio": 0.0 if kind == "coszero" else 0.1}
    steps, rates = np.array([last]), np.array([peak])
    if kind != "const":
        start = total * (1 - float(kind[3:].removesuffix("sqrt")))
        steps, rates = np.array([start, total]), np.array([peak, 0.0])
        if kind.endswith("sqrt"):
            steps = np.linspace(start, total, 200)
            rates = peak * (1 - np.sqrt((steps - start) / (total - start)))
    knots = [
        (int(n), rate) for n, rate in zip(steps * LR_SCHEDULING_BATCH, rates.tolist(), strict=True) if int(n) > warm
    ]
    tokens, lr = zip((0, 0.0), (warm, peak), *knots, strict=True)
    return {"kind": "table", "tokens": list(tokens), "lr": list(lr), "warmup_tokens": warm}


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([header, *rows])
    return file.getvalue().encode()
