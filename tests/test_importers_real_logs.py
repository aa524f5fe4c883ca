"""Public logs of real runs raise no alarm: nothing is dropped, changed or doubted that is not so."""

import os
from pathlib import Path

import pytest

import tsl_jax as tsl

CURVES = Path(os.environ.get("TSL_JAX_CURVES", "none"))
pytestmark = pytest.mark.skipif(not CURVES.is_dir(), reason="TSL_JAX_CURVES names no folder of public loss curves")

FILES = sorted(
    path.relative_to(CURVES)
    for pattern in ("multipower/*/*.csv", "gemstones/*.jsonl", "megatron/*.json", "modded_nanogpt/*/*")
    for path in CURVES.glob(pattern)
)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_real_log_is_read_without_flags_and_without_alarm(file: Path) -> None:
    result = tsl.read_log(CURVES / file)
    assert [str(finding) for finding in result.warnings] == []
    assert len(result.surfaces) == 1 or file.parts[0] == "gemstones"
    for surface in result.surfaces.values():
        assert 1.5 < float(surface.loss.dropna("tokens", how="all").min()) < 4.5


def test_whole_folders_are_read(tmp_path: Path) -> None:
    result = tsl.read_log(CURVES / "modded_nanogpt" / "20260430_muonh")
    assert len(result.surfaces) == len(list((CURVES / "modded_nanogpt" / "20260430_muonh").iterdir()))
    assert result.warnings == []
    result = tsl.read_log(CURVES / "lr_scheduling" / "runs.csv")
    assert len(result.surfaces) == 158
    assert result.warnings == []
    ladder = tsl.read_log(
        CURVES / "olmo_ladder" / "runs.csv", loss="c4_en", run=["size", "chinchilla_multiple", "rerun"]
    )
    assert len(ladder.surfaces) == 24
    assert ladder.warnings == []
