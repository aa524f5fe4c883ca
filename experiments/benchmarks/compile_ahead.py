"""The table of what compiles and fits: architectures x sizes x devices, each step compiled for devices not here.

    pip install "tsl_jax[cuda]" or "tsl_jax[tpu]", each in an environment of its own, then
    JAX_PLATFORMS=cpu python experiments/benchmarks/compile_ahead.py [--devices h100 v5e:4x4 ...] [--sizes 124m ...]

A row is kept in compile_ahead.jsonl as soon as it is there, with the versions of jax and of the compiler; rows that are
there already are not made again. --table prints the file as Markdown. A row takes half a minute to four minutes of two
cores. All devices lie along fsdp; activations are bfloat16, the vocabulary is 50,304, the context 1,024.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from tsl_jax.models.config import SIZES, ModelConfig, resolve
from tsl_jax.models.cost import n_params, n_params_embedding
from tsl_jax.training.compile_ahead import ACCELERATORS, compile_step, make_mesh, parse_devices

KEPT = Path(__file__).with_suffix(".jsonl")
# Size -> (shape, sequences a device on one device, sequences a device on many)
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "9.8m": ({"preset": "9.8m"}, 64, 16),
    "124m": ({"d_model": 768, "n_layers": 12, "n_heads": 12}, 32, 8),
    "468m": ({"preset": "468m"}, 16, 4),
    "1.2b": ({"preset": "1.2b"}, 8, 4),
    "6.7b": ({"preset": "6.7b"}, 1, 4),
}
DEVICES = ("h100", "h100x8", "v5e:4x4", "v5p:4x4x4")
COMPILERS = ("jax", "jaxlib", "jax-cuda12-plugin", "libtpu")


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row is of."""
    return row["architecture"], row["size"], row["devices"]


def compiled(architecture: str, size: str, devices: str) -> dict[str, Any]:
    """One row."""
    shape, alone, each = MODELS[size]
    if architecture == "lstm":
        shape = {name: value for name, value in shape.items() if name != "n_heads"}
    config = resolve(ModelConfig(**shape, architecture=architecture, dtype="bfloat16"), vocabulary=50_304, context=1024)
    mesh = make_mesh(devices)
    batch = alone if mesh.size == 1 else each * mesh.size
    step = compile_step(config, batch, mesh, ACCELERATORS[parse_devices(devices)[0]])
    facts = {name: value for name, value in asdict(step).items() if name != "accelerator"}
    versions = {name: version for name in COMPILERS if (version := _version(name))}
    return {
        "architecture": architecture,
        "size": size,
        "devices": devices,
        "parameters": n_params(config) + n_params_embedding(config),
        "batch": batch,
        "fits": step.fits,
        "remat": config.remat,
        **facts,
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ("devices", "size", "architecture", "parameters", "batch", "GB state", "GB temporaries", "fits", "kernels")
    lines = [" | ".join(("", *names, "collectives", "problems", "")).strip()]
    lines.append(" | ".join(("", *("---",) * (len(names) + 2), "")).strip())
    for row in rows:
        calls = ", ".join(f"{_short(name)} {count}" for name, count in sorted(row["kernels"].items()))
        moves = ", ".join(f"{name} {count}" for name, count in sorted(row["collectives"].items()))
        cells = (
            *(row["devices"], row["size"], row["architecture"], f"{row['parameters']:,}", str(row["batch"])),
            *(f"{row[name] / 1e9:.2f}" for name in ("argument_bytes", "temporary_bytes")),
            *("yes" if row["fits"] else "NO", calls or "none", moves or "none", "; ".join(row["problems"]) or "none"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(target: str) -> str:
    """The name of a library's call without its decoration."""
    return target.strip("_").replace("$", ".")


def main() -> None:
    """Make the rows that are missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=list(DEVICES))
    parser.add_argument("--sizes", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--architectures", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    if given.table:
        print(table(sorted(rows, key=lambda row: (DEVICES.index(row["devices"]), list(MODELS).index(row["size"])))))
        return
    there = {key(row) for row in rows}
    for size in given.sizes:
        for devices in given.devices:
            for architecture in given.architectures:
                if (architecture, size, devices) in there:
                    continue
                try:
                    row = compiled(architecture, size, devices)
                except ValueError as error:  # a TPU's compiler plans no program beyond its memory: there is no row
                    print(f"{devices}, {size}, {architecture}: {error}", flush=True)
                    continue
                with KEPT.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(table([row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
