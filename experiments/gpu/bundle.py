"""Make gpu-bundle/: the text and the wheels that `quarter_hour.sh` needs on a machine with a GPU and no network.

    python experiments/gpu/bundle.py        (or: make gpu-bundle)

The text is a corpus of `tsl corpora build`, its tokens packed by xz; what its domains need is installed text, see
docs/corpora.md. The wheels are what a Python 3.12 with jax, flax, optax, orbax, tokenizers, xarray, pyarrow and rich
still lacks. The whole must stay under 60 MiB.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "gpu-bundle"
DOMAINS = ("dictionary", "linux", "cloud", "perl")
VOCABULARY = 8192
WHEELS = ("jaxopt", "tyro", "docstring-parser", "typeguard", "grain", "array-record", "portpicker")
PYTHON, PLATFORM = "3.12", "manylinux_2_28_x86_64"
MOST = 60 << 20  # bytes


def build_text(folder: Path) -> None:
    """The corpus, each of its large files packed."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        options = ("--out", str(corpus), "--vocabulary", str(VOCABULARY))
        subprocess.run([sys.executable, "-m", "tsl_jax.cli", "corpora", "build", *DOMAINS, *options], check=True)
        for file in sorted(path for path in corpus.rglob("*") if path.is_file()):
            packed = folder / file.relative_to(corpus).with_name(file.name + ".xz")
            packed.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, lzma.open(packed, "wb", preset=6) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def fetch_wheels(folder: Path) -> None:
    """The wheels, in the versions of constraints.txt."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in WHEELS]
    options = ("--no-deps", "--only-binary", ":all:", "--python-version", PYTHON, "--platform", PLATFORM)
    more = ("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64", "--dest", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, *more, *wanted], check=True)


def main() -> None:
    """Make what is missing, and say how large it is."""
    for name, make in (("text", build_text), ("wheels", fetch_wheels)):
        if not (BUNDLE / name).exists():
            unfinished = BUNDLE / f"{name}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            make(unfinished)
            unfinished.rename(BUNDLE / name)
    sizes = {
        name: sum(f.stat().st_size for f in (BUNDLE / name).rglob("*") if f.is_file()) for name in ("text", "wheels")
    }
    print(", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items()), f"in {BUNDLE}")
    if sum(sizes.values()) > MOST:
        sys.exit(f"the bundle has {sum(sizes.values()) / 2**20:.1f} MiB, more than {MOST >> 20}: leave a domain out")


if __name__ == "__main__":
    main()
