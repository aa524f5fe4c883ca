"""The run pool: training runs that are made once, and whose surfaces all later analyses read instead of training.

    python experiments/run_pool.py              the plans: done, begun or to do, and what each costs
    python experiments/run_pool.py NAME ...     make these runs, or go on with them, and keep their surfaces

A plan is `experiments/pool/PLAN.yaml`, a configuration of `tsl train`. A run is named by its plan, and as PLAN@SEED
with another seed than the plan's: `small-cosine@3`. It goes to `runs/pool/NAME`, which git does not keep; once it is
complete `NAME.npz` beside the plan is its surface, packed with a few clusters of documents a split (losses exact, well
under 1 MB), and `NAME.json` says how it was made: resolved configuration, seed, commit, hardware, versions, seconds. A
run whose surface is there with the plan's configuration is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import yaml

import tsl_jax as tsl
from tsl_jax.data import corpora
from tsl_jax.durable import write_durably
from tsl_jax.training import folder
from tsl_jax.training.config import TrainConfig, config_hash, from_dict, to_dict

POOL = Path(__file__).parent / "pool"
RUNS = Path("runs/pool")
CLUSTERS = 8
CLUSTERS_OF_SEEDED = 4  # these runs are many
KEPT = ("model", "n_params", "n_params_embedding", "flops_per_token", "batch_tokens", "total_tokens")
MADE = ("seed", "corpus", "environment", "later_environments", "seconds", "tokens_per_second")


def plan_of(name: str) -> TrainConfig:
    """The configuration of a run, PLAN or PLAN@SEED."""
    plan, at, seed = name.partition("@")
    path = POOL / f"{plan}.yaml"
    if not path.exists() or bool(at) != seed.isdigit():
        plans = ", ".join(sorted(path.stem for path in POOL.glob("*.yaml")))
        raise ValueError(f"run_pool: a run is PLAN or PLAN@SEED, found {name}; the plans are {plans}")
    config = from_dict(TrainConfig, yaml.safe_load(path.read_text()))
    return replace(config, seed=int(seed)) if at else config


def names() -> list[str]:
    """The plans, and the runs that were made or begun of them with other seeds."""
    folders = [path for path in RUNS.glob("*@*") if path.is_dir()]
    return sorted({path.stem for path in (*POOL.glob("*.yaml"), *POOL.glob("*.npz"), *folders)})


def is_kept(name: str) -> bool:
    """Whether the surface is there, and was made with the plan as it is now."""
    manifest = POOL / f"{name}.json"
    if not (manifest.exists() and (POOL / f"{name}.npz").exists()):
        return False
    return json.loads(manifest.read_text())["config_hash"] == config_hash(plan_of(name))


def make(name: str) -> None:
    """Train, or go on, in a process of its own, as the command line does it; then keep the surface."""
    run = RUNS / name
    resume = ["--resume"] if (run / folder.CONFIG).exists() else []
    plan, at, seed = name.partition("@")
    command = [sys.executable, "-m", "tsl_jax.cli", "train", "--config", str(POOL / f"{plan}.yaml"), "--out", str(run)]
    done = subprocess.run([*command, *(["--seed", seed] if at else []), *resume])
    if done.returncode:
        raise SystemExit(done.returncode)
    keep(name, run)


def keep(name: str, run: Path) -> None:
    """Pack the surface of a finished run beside its plan, the manifest last."""
    record = folder.read_record(run)
    surface = tsl.load_surface(
        tsl.pack(run, POOL / f"{name}.npz", clusters=CLUSTERS_OF_SEEDED if "@" in name else CLUSTERS)
    )
    final = surface.loss.isel(tokens=-1).mean("position")
    facts = {name: record[name] for name in (*KEPT, *MADE) if name in record}
    config = folder.read_config(run)
    facts |= {"config_hash": config_hash(config), "config": to_dict(config)}
    facts |= {
        "checkpoints": surface.sizes["tokens"],
        "final_loss": {str(s): float(final.sel(split=s)) for s in final.split.values},
    }
    write_durably(POOL / f"{name}.json", lambda file: file.write(json.dumps(facts, indent=1).encode() + b"\n"))


def listed() -> str:
    """A line a plan."""
    from tsl_jax.commands.train import cost

    lines = []
    for name in names():
        begun = (RUNS / name / folder.RECORD).exists()
        state = "done" if is_kept(name) else "begun" if begun else "to do"
        try:
            said = cost(plan_of(name))
        except ValueError as error:  # its text is not built yet
            said = str(error)
        lines.append(f"{name:<24}{state:<8}{said}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="plans to make; none: list them")
    wanted = parser.parse_args().names
    if not wanted:
        print(listed())
    try:
        for name in wanted:
            corpora.find(plan_of(name).data)  # a wrong name, plan or corpus is known before the first run
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    for name in wanted:
        if is_kept(name):
            print(f"{name}: kept already")
        else:
            make(name)


if __name__ == "__main__":
    main()
