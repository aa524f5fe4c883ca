"""Logs as trainers and trackers write them, by their shapes, of one run whose losses are known."""

import json
from collections.abc import Callable

STEPS = tuple(range(0, 1000, 50))  # of training losses
EVALS = tuple(range(0, 1000, 250))
SEQUENCE, BATCH = 1024, 64


def loss(step: int) -> float:
    return round(3 + 8 / (1 + step / 40) ** 0.7, 4)


def val(step: int) -> float:
    return round(loss(step) + 0.1, 4)


def lr(step: int) -> float:
    return round(6e-4 * min(1, (step + 1) / 100), 8)


def nanogpt(steps=STEPS) -> str:
    lines = ["Overriding: device = cuda", f"tokens per iteration will be: {SEQUENCE * BATCH:,}"]
    for s in steps:
        if s in EVALS:
            lines.append(f"step {s}: train loss {loss(s):.4f}, val loss {val(s):.4f}")
            lines.append("saving checkpoint to out")
        lines.append(f"iter {s}: loss {loss(s) + 0.05:.4f}, time 95.12ms, mfu 12.34%")
    return "\n".join(lines) + "\n"


def llm_c(steps=STEPS) -> str:
    lines = []
    for s in steps:
        if s in EVALS:
            lines.append(f"s:{s} tel:{val(s):.4f}")
            lines.append(f"s:{s} eval:0.2560")
        lines.append(f"s:{s} trl:{loss(s):.4f} lr:{lr(s):.6f} norm:15.37")
    return "\n".join(lines) + "\n"


def modded(steps=STEPS) -> str:
    source = (
        'import os\nprint(f"step:{step}/{n} val_loss:{val_loss:.4f} train_time:{t:.0f}ms")\n    step:5/9 val_loss:1.0\n'
    )
    lines = [source + "=" * 100]
    for s in steps:
        if s in EVALS:
            lines.append(
                f"step:{s}/950 val_loss:{val(s):.4f} train_time:{s * 100}ms step_avg:{'nan' if not s else 99}ms"
            )
        lines.append(f"step:{s}/950 train_loss:{loss(s):.4f} train_time:{s * 100}ms step_avg:363.41ms")
    return "\n".join(lines) + "\n"


def nanochat(steps=STEPS) -> str:
    lines = [f"Total batch size {SEQUENCE * BATCH:,} => gradient accumulation steps: 1"]
    for s in steps:
        if s in EVALS:
            lines.append(f"Step {s:05d} | Validation bpb: {val(s) / 4:.6f}")
        lines.append(
            f"step {s:05d}/00950 ({s / 9.5:.2f}%) | loss: {loss(s):.6f} | lrm: 1.00 | dt: 402.10ms | "
            "tok/sec: 1,234,567 | mfu: 40.1 | total time: 1.00m"
        )
    return "\n".join(lines) + "\n"


def torchtitan(steps=STEPS, colour: bool = True) -> str:
    on, off = ("\x1b[32m", "\x1b[39m") if colour else ("", "")
    head = "[rank0]:[titan] 2025-06-04 08:51:58,557 - root - INFO - "
    lines = [
        head + f"Trainer is initialized with local batch size 8, global batch size {BATCH}, gradient accumulation steps"
        f" 1, sequence length {SEQUENCE}, total steps 950 (warmup 100)"
    ]
    for s in steps:
        lines.append(
            f"{head}{on}step: {s:2}  {off}loss: {loss(s):7.4f}  {on}memory: 30.99GiB(32.62%)  tps: 7,034  "
            f"tflops: 407.35  mfu: N/A{off}"
        )
        if s in EVALS:
            lines.append(f"{head}validate step: {s:2}  loss: {val(s):7.4f}  memory: 30.99GiB(32.62%)  tps: 7,034")
    return "\n".join(lines) + "\n"


def megatron(steps=STEPS) -> str:
    lines = [f"  seq_length ...................................... {SEQUENCE}"]
    for s in steps:
        of_loss = f"lm loss: {loss(s):.6E} | "
        lines.append(
            f" [2025-08-01 07:19:37] iteration {s:8d}/    5000 | consumed samples: {s * BATCH:12d} | elapsed time per "
            f"iteration (ms): 1.2 | learning rate: {lr(s):.6E} | global batch size: {BATCH:5d} | {of_loss}loss "
            "scale: 1.0 | grad norm: 1.234 | number of skipped iterations: 0 | number of nan iterations: 0 |"
        )
        if s in EVALS:
            lines.append("-" * 60)
            of_loss = f"lm loss value: {val(s):.6E} | lm loss PPL: 8.1E+00 | "
            lines.append(f" validation loss at iteration {s} on validation set | {of_loss}")
    return "\n".join(lines) + "\n"


def neox(steps=STEPS) -> str:
    lines = [f"  seq_length ...................... {SEQUENCE}", f"  train_batch_size ........... {BATCH}"]
    for s in steps:
        lines.append(
            f" samples/sec: 12.3 | iteration {s:8d}/  320000 | elapsed time per iteration (ms): 2.0 | learning rate: "
            f"{lr(s):.3E} | approx flops per GPU: 1 | lm_loss: {loss(s):.6E} | loss scale: 65536.0 |"
        )
        if s in EVALS:
            lines.append(
                f" validation results at iteration {s} | lm_loss value: {val(s):.6E} | lm_loss_ppl value: 8.0E+00 | "
            )
    return "\n".join(lines) + "\n"


def olmo_core(steps=STEPS) -> str:
    lines = []
    for s in steps:
        lines.append(f"2025-01-01 00:00:00 host:0 olmo_core:120 INFO [step={s}/2000,epoch=0,eta=5h11m]")
        lines.append(f"    optim/LR (group 0)={lr(s):.3g}")
        lines.append(f"    train/CE loss={loss(s):.4f}")
        lines.append("    train/PPL=509.8")
        lines.append(f"    throughput/total tokens={s * BATCH * SEQUENCE:,}")
        if s in EVALS:
            lines.append(f"    eval/lm/c4_en-validation/CE loss={val(s):.4f}")
    return "\n".join(lines) + "\n"


def maxtext(steps=STEPS) -> str:
    lines = []
    for s in steps:
        lines.append(
            f"completed step: {s}, seconds: 7.9, TFLOP/s/device: 460.5, Tokens/s/device: 1036.0, "
            f"total_weights: 524288, loss: {loss(s):.3f}"
        )
        if s in EVALS:
            lines.append(f"eval metrics after step: {s}, loss={val(s):.3f}, total_weights=1048576.0")
    return "\n".join(lines) + "\n"


def nanotron(steps=STEPS) -> str:
    head = "09/26/2024 13:49:18 [INFO|DP=0|PP=0|TP=0|host]: "
    return "".join(
        f"{head}iteration: {s} / 5000 | consumed_tokens: {round(s * BATCH * SEQUENCE / 1e6)}M | "
        f"elapsed_time_per_iteration_ms: 2.1K | tokens_per_sec: 2M | global_batch_size: 65.5K | "
        f"lm_loss: {loss(s):.3g} | lr: {lr(s):.3g} | grad_norm: 1.2\n"
        for s in steps
        if s
    )


def trainer_text(steps=STEPS, version: int = 4) -> str:
    lines = []
    for s in steps:
        row: dict = {"loss": loss(s), "grad_norm": 1.2, "learning_rate": lr(s), "epoch": round(s / 100, 2)}
        row = {k: f"{v:.4g}" for k, v in row.items()} if version == 5 else {**row, "step": s}
        lines.append(f"\r  5%|▌         | {s}/950 [00:05<01:35, 9.9it/s]\r\x1b[A{row}")
        if s in EVALS:
            row = {"eval_loss": val(s), "eval_runtime": 1.2, "epoch": round(s / 100, 2)}
            row = {k: f"{v:.4g}" for k, v in row.items()} if version == 5 else {**row, "step": s}
            lines.append(f"{row}")
    lines.append("{'train_runtime': 1.0, 'train_steps_per_second': 950.0, 'train_loss': 3.5, 'epoch': 9.5}")
    return "\n".join(lines) + "\n"


def trainer_state(steps=STEPS) -> str:
    history: list[dict] = []
    for s in steps[1:]:
        history.append({"epoch": s / 100, "grad_norm": 47.8, "learning_rate": lr(s), "loss": loss(s), "step": s})
        if s in EVALS:
            history.append({"epoch": s / 100, "eval_loss": val(s), "eval_runtime": 1.0, "step": s})
    history.append({"epoch": 9.5, "step": steps[-1], "total_flos": 1e12, "train_loss": 4.4, "train_runtime": 9.0})
    return json.dumps({"log_history": history, "max_steps": steps[-1], "num_input_tokens_seen": 0}, indent=2)


def lightning(steps=STEPS) -> str:
    lines = ["epoch,step,train_loss_step,train_loss_epoch,val_loss"]
    for s in steps:
        lines.append(f"0,{s},{loss(s)},,")
        if s in EVALS:
            lines.append(f"0,{s},,,{val(s)}")
    lines.append(f"0,{steps[-1]},,4.5,")
    return "\n".join(lines) + "\n"


def wandb_chart(steps=STEPS) -> str:
    runs = ("brisk-pond-1", "calm-sea-2")
    head = ['"Step"'] + [f'"{run} - train/loss{part}"' for run in runs for part in ("", "__MIN", "__MAX")]
    rows = [
        ",".join(
            [f'"{s}"', *(f'"{loss(s) + k}"' for k in (0, 0, 0)), *(['"NaN"'] * 3 if s > 500 else [f'"{val(s)}"'] * 3)]
        )
        for s in steps
    ]
    return "\n".join([",".join(head), *rows]) + "\n"


def wandb_history(steps=STEPS) -> str:
    lines = ["_step,_runtime,_timestamp,train/loss,eval/loss,train/learning_rate"]
    for s in steps:
        lines.append(f"{s},{s * 2},{1.7e9 + s},{loss(s)},,{lr(s)}")
        if s in EVALS:
            lines.append(f"{s},{s * 2},{1.7e9 + s},,{val(s)},")
    return "\n".join(lines) + "\n"


def levanter(steps=STEPS) -> str:
    lines = []
    for s in steps:
        metrics = {"train/loss": loss(s), "optim/learning_rate": lr(s), "throughput/total_tokens": s * BATCH * SEQUENCE}
        if s in EVALS:
            metrics["eval/loss"] = val(s)
        event = {"tracker": "json_logger", "event": "log", "step": s, "metrics": metrics}
        lines.append(f"2025-06-04T08:51:58 INFO {json.dumps(event)}")
    lines.append(json.dumps({"tracker": "json_logger", "event": "finish", "step": None, "metrics": {"train/loss": 1}}))
    return "\n".join(lines) + "\n"


def maxtext_json(steps=STEPS) -> str:
    lines = []
    for s in steps:
        row = {"learning/loss": loss(s) + 0.01, "learning/lm_loss": loss(s), "learning/current_learning_rate": lr(s)}
        lines.append(json.dumps({**row, "step": float(s), "run_name": "base"}))
        if s in EVALS:
            lines.append(json.dumps({"eval/avg_loss": val(s), "step": float(s), "run_name": "base"}))
    return "\n".join(lines) + "\n"


def lingua(steps=STEPS) -> str:
    return "".join(
        json.dumps(
            {
                "global_step": s,
                "acc_step": k,
                "optim/lr": lr(s),
                "optim/total_tokens": s * BATCH * SEQUENCE,
                "loss/out": loss(s),
            }
        )
        + "\n"
        for s in steps
        for k in (0, 1)
    )


def golden(steps=STEPS) -> str:
    values = {str(s): loss(s) for s in steps} | {str(steps[-1] + 50 * k): "nan" for k in (1, 2)}
    return json.dumps({"lm loss": {"start_step": 0, "end_step": 1050, "step_interval": 50, "values": values}})


# name -> (file name, writer, split of training losses, split of evaluations or None, whether tokens are known)
FORMATS: dict[str, tuple[str, Callable[..., str], str, str | None, bool]] = {
    "nanoGPT": ("train.log", nanogpt, "train_loss", "val_loss", True),
    "llm.c": ("main.log", llm_c, "train_loss", "val_loss", False),
    "modded-nanogpt": ("8cfe.txt", modded, "train_loss", "val_loss", False),
    "nanochat": ("run.out", nanochat, "train_loss", None, True),
    "torchtitan": ("slurm.out", torchtitan, "train_loss", "val_loss", True),
    "Megatron-LM": ("slurm.out", megatron, "train_loss", "val_loss", True),
    "Megatron golden": ("golden.json", golden, "lm loss", None, False),
    "gpt-neox": ("stdout", neox, "train_loss", "val_loss", True),
    "OLMo-core": ("console.log", olmo_core, "train/CE loss", "eval/lm/c4_en-validation/CE loss", True),
    "trainer_state.json": ("trainer_state.json", trainer_state, "loss", "eval_loss", False),
    "Trainer text 4": ("out.txt", trainer_text, "train_loss", "eval_loss", False),
    "Trainer text 5": ("out.txt", lambda steps=STEPS: trainer_text(steps, 5), "train_loss", "eval_loss", False),
    "Lightning": ("metrics.csv", lightning, "train_loss_step", "val_loss", False),
    "W&B history": ("history.csv", wandb_history, "train/loss", "eval/loss", False),
    "Levanter": ("log.jsonl", levanter, "train/loss", "eval/loss", True),
    "MaxText": ("log.txt", maxtext, "train_loss", "val_loss", False),
    "MaxText JSON": ("metrics.jsonl", maxtext_json, "learning/lm_loss", "eval/avg_loss", False),
    "lingua": ("metrics.jsonl", lingua, "loss/out", None, True),
    "nanotron": ("log.txt", nanotron, "train_loss", None, True),
}
DIGITS = {"MaxText": 3, "nanotron": 2, "Trainer text 5": 2}  # decimals that a format keeps
