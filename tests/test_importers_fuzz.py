"""No input gives a traceback: whatever a file holds, it is read or refused with a sentence."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importers_material import FORMATS, wandb_chart
from test_importers_trackers import LOGS

import tsl_jax as tsl
from tsl_jax.importers import byte_search, line_scan
from tsl_jax.importers.decimal_scan import WIDEST, _any_numbers, numbers_at
from tsl_jax.importers.log_rows import TOGETHER, every, rises
from tsl_jax.importers.log_stitching import _Groups

SAMPLES = {name: (file, write().encode()) for name, (file, write, *_) in FORMATS.items()}
SAMPLES["W&B chart"] = ("chart.csv", wandb_chart().encode())
for kept in ("run-brisk.wandb", "tensorboard/events.out.tfevents.1795915659.host.1.0", "lightning_metrics.csv"):
    SAMPLES[kept] = (Path(kept).name, (LOGS / kept).read_bytes())
NAMES = (
    "step",
    "tokens",
    "loss",
    "val_loss",
    "lr",
    "ppl",
    "bpb",
    "run",
    "epoch",
    "Wall time",
    "acc_step",
    "samples",
    "",
)
FILE_NAMES = ("a.log", "a.csv", "a.json", "a.gz", "a.db", "a.wandb", "a")
FEW = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
CELLS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.none(),
    st.sampled_from(["nan", "NaN", "inf", "-inf", "1,234", "41M", "1e999", "", "x", "1_0", "0x10", "1;2", '"']),
    st.text(max_size=6),
)


def survives(folder: Path, name: str, data: bytes, **options) -> None:
    """The file is read into sound surfaces, or refused in a sentence."""
    file = folder / name
    file.write_bytes(data)
    try:
        result = tsl.read_log(file, **options)
    except ValueError as error:
        if not str(error):
            raise
        return
    assert str(result)
    assert result.surfaces
    for surface in result.surfaces.values():
        known = surface.loss.values[np.isfinite(surface.loss.values)]
        assert len(known)
        assert (known > 0).all()
        assert (np.diff(surface.tokens.values) > 0).all()


@FEW
@given(data=st.data())
def test_damaged_logs(data, tmp_path: Path) -> None:
    file, sample = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))]
    sample = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(sample) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "splice"]))
        if kind == "flip" and sample:
            sample[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del sample[at:]
        elif kind == "drop":
            del sample[at : at + data.draw(st.integers(1, 300))]
        elif kind == "insert":
            sample[at:at] = data.draw(st.binary(max_size=20))
        elif kind == "repeat":
            sample[at:at] = sample[max(0, at - data.draw(st.integers(1, 2000))) : at]
        else:
            _, other = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))]
            sample += other[: data.draw(st.integers(0, len(other)))]
    repeated = data.draw(st.sampled_from(["last", "first", "mean", "apart"]))
    survives(tmp_path, file, bytes(sample), repeated=repeated)


@FEW
@given(
    names=st.lists(st.sampled_from(NAMES) | st.text(max_size=5), min_size=1, max_size=6),
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=6), max_size=12),
    delimiter=st.sampled_from([",", ";", "\t", "|", " "]),
)
def test_tables_of_anything(names, rows, delimiter, tmp_path: Path) -> None:
    lines = [delimiter.join(names), *(delimiter.join("" if c is None else str(c) for c in row) for row in rows)]
    survives(tmp_path, "log.csv", "\n".join(lines).encode("utf-8", "surrogatepass"))


VALUES = st.recursive(
    CELLS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
)


@FEW
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), VALUES, max_size=5), max_size=8),
    whole=st.booleans(),
    per_step=st.sampled_from([None, 1000, [(0, 10), (5, 20)]]),
)
def test_json_of_anything(rows, whole, per_step, tmp_path: Path) -> None:
    text = json.dumps(rows) if whole else "".join(json.dumps(row) + "\n" for row in rows)
    survives(tmp_path, "log.json" if whole else "log.jsonl", text.encode(), tokens_per_step=per_step)


@FEW
@given(text=st.text(max_size=300) | st.binary(max_size=300), name=st.sampled_from(FILE_NAMES))
def test_files_of_anything(text, name, tmp_path: Path) -> None:
    survives(tmp_path, name, text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


@FEW
@given(values=st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1, 20) | st.just(math.nan)), min_size=2, max_size=30))
def test_curves_of_anything(values, tmp_path: Path) -> None:
    text = "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in values)
    for options in ({}, {"repeated": "first"}, {"tokens_per_step": 7}, {"loss_unit": "perplexity"}):
        survives(tmp_path, "log.csv", text.encode(), **options)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_prefix_of_a_log(name: str, tmp_path: Path) -> None:
    file, sample = SAMPLES[name]
    for part in np.linspace(1, len(sample), 8).astype(int):
        survives(tmp_path, file, sample[:part])


DECIMALS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**6, places=4).map(str),
    st.integers(0, 10**17).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(repr),
    st.floats(0, 100).map("{:.6E}".format),
    st.integers(0, 10**9).map("{:,}".format),
    st.sampled_from(["5.", ".5", "1.2.3", "12e", "3e+", "7e1234", "1e5K", "2.5B", "41M", "1,23", "9nan", "x", "-", ""]),
)


@settings(FEW, max_examples=100)
@given(cells=st.lists(st.tuples(DECIMALS, st.sampled_from(" ,|;}x\n")), min_size=1, max_size=60), grouped=st.booleans())
def test_many_numbers_at_once_are_those_of_one_at_a_time(cells, grouped: bool) -> None:
    parts = [f"{cell}{end}".encode() for cell, end in cells]
    block = np.frombuffer(b"".join(parts) + b"\n" * (WIDEST + 8), np.uint8)
    at = np.concatenate([[0], np.cumsum([len(part) for part in parts])[:-1]]).astype(np.int64)
    for_sure = [(k, cell) for k, (cell, _) in enumerate(cells) if cell]  # what comes next may not be skipped to
    at = at[[k for k, _ in for_sure]]
    np.testing.assert_array_equal(numbers_at(block, at, grouped), _any_numbers(block, at, grouped))


TEMPLATES = st.sampled_from(
    [
        b"step:%d/900 train_loss:%d.25 loss:1.0",
        b"step:%d val_loss:3.%d",
        b" iteration %d | lm loss: %d.5E+00 |\r",
        b"no key %d of %d",
        b"loss:%d loss:%d",
        b"",
    ]
)


@settings(FEW, max_examples=60)
@given(
    lines=st.lists(st.tuples(TEMPLATES, st.integers(0, 10**6), st.integers(0, 12)), min_size=1, max_size=80),
    cut=st.integers(0, 30),
)
def test_keys_are_where_the_search_of_every_byte_has_them(lines, cut: int) -> None:
    data = b"\n".join(template % (a, b) if b"%d" in template else template for template, a, b in lines)
    data = data[: max(len(data) - cut, 1)] or b"\n"
    search = byte_search.Search(data, np.frombuffer(data + b"\n" * (WIDEST + 8), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_search, "FEW_TIMES", 0)
        for key in (b"step:", b"loss:", b"lm loss:", b"train_loss:", b"iteration ", b"absent"):
            at = search.positions(key)
            for found, expected in zip(search.on_lines(key), (at, search.line_of(at)), strict=True):
                np.testing.assert_array_equal(found, expected)
            first = at[(at == 0) | np.isin(at - 1, search.ends)]
            np.testing.assert_array_equal(search.beginning_with(key)[0], first)


LOSSES = st.one_of(st.sampled_from([1.0, 2.0, 3.5]), st.just(math.nan), st.just(math.inf))


@settings(FEW, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 8), LOSSES), min_size=1, max_size=30),
    which=st.sampled_from(["last", "first", "mean"]),
)
def test_rows_of_one_checkpoint_are_put_together_as_a_loop_over_them_does(rows, which: str) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    clock, values = (np.array(column, float) for column in zip(*rows, strict=True))
    groups = _Groups.by(clock)
    by_clock = {at: [value for other, value in rows if other == at and math.isfinite(value)] for at, _ in rows}
    pick = {"last": lambda some: some[-1], "first": lambda some: some[0], "mean": lambda some: sum(some) / len(some)}
    chosen, count = groups.one_of_each(values, which)
    np.testing.assert_array_equal(chosen, [pick[which](some) if some else math.nan for some in by_clock.values()])
    several = [k for k, at in enumerate(by_clock) if (clock == at).sum() > 1]
    np.testing.assert_array_equal(groups.several, several)
    of_several = [list(by_clock.values())[k] for k in several]
    np.testing.assert_array_equal(count, [len(some) for some in of_several])
    if several:
        np.testing.assert_array_equal(groups.differ(values), [len(set(some)) > 1 for some in of_several])


@pytest.mark.parametrize("at", [1, TOGETHER - 1, TOGETHER, TOGETHER + 1, 2 * TOGETHER])
def test_one_row_that_breaks_a_condition_is_seen_in_any_block(at: int) -> None:
    values = np.arange(2 * TOGETHER + 1, dtype=float)
    assert rises(values)
    assert every(np.isfinite, values)
    values[at] = values[at - 1]
    assert not rises(values)
    values[at] = math.inf
    assert not every(np.isfinite, values)


def test_colours_are_taken_out_of_any_bytes() -> None:
    text = b"\x1b[32mstep: 1 \x1b[39mloss: 2.0\x1b[0;1m\n\x1b[2K" * 2000 + b"\x1b[95mend\x1b[0m\x1b"
    assert line_scan.without_colours(text) == line_scan.ANSI.sub(b"", text)
