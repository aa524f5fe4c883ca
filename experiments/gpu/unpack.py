"""Unpack gpu-bundle/: wheels into gpu-bundle/site, the corpus into gpu-bundle/corpus. Standard library only.

python3 experiments/gpu/unpack.py       (quarter_hour.sh calls it)
"""

import lzma
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BUNDLE = Path(__file__).parents[2] / "gpu-bundle"


def unpack(packed: Path) -> None:
    """One file of the corpus, or one wheel."""
    if packed.suffix == ".whl":
        zipfile.ZipFile(packed).extractall(BUNDLE / "site")
        return
    target = BUNDLE / "corpus" / packed.relative_to(BUNDLE / "text").with_suffix("")
    target.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(packed) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


if __name__ == "__main__":
    files = [*BUNDLE.glob("wheels/*.whl"), *(path for path in BUNDLE.glob("text/**/*.xz"))]
    if not files:
        sys.exit(f"{BUNDLE} is empty: make it by `make gpu-bundle` on a machine with a network")
    with ThreadPoolExecutor() as pool:  # lzma works outside Python's lock
        list(pool.map(unpack, files))
    print(f"{len(files)} files unpacked in {BUNDLE}")
