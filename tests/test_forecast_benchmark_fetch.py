"""The public curves by name: what is made of the originals, with excerpts of them; hashes; interruptions; refusals."""

import csv
import hashlib
import io
import json
import os
import re
from itertools import product, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import Request

import pytest

from experiments.forecast_benchmark import data, extracts, fetch

CURVES = Path(os.environ.get("TSL_JAX_CURVES", "none"))
public = pytest.mark.skipif(not CURVES.is_dir(), reason="TSL_JAX_CURVES names no folder of public loss curves")
STEM = "slimpajama_llama_norm_nlayers8_nhead6_lr0.001_sched_wsd_warmup300_iter{}_bs50x2_ws2_seed0_data_seed1337"
TRUNK, BRANCH = f"data/sl_{STEM.format(10000)}.json", f"data/ann0.2_{STEM.format(3000)}.json"


def log(
    val: dict[int, float], rates: dict[int, float], n_params: int = 33479040, resume: str = "", **config: Any
) -> dict[str, Any]:
    """A log of lr_scheduling: the fields that are read, and one that is not."""
    defaults = {"n_layer": 8, "n_head": 6, "lr": 0.001, "scheduler": "wsd", "dataset": "slimpajama", "beta1": 0.9}
    config = defaults | {"resume_from": f"/exps/{Path(resume).stem}/ckpts/2000" if resume else None} | config
    history = {
        "val": {"iter": list(val), "val_loss": list(val.values())},
        "train": {"iter": list(rates), "train_lr": list(rates.values())},
    }
    return {"summary": {"parameters": n_params}, "config": config, "history": history}


def packed(logs: dict[str, Any]) -> extracts.Files:
    return {path: json.dumps(content, indent=4).encode() for path, content in logs.items()}


def test_a_branch_follows_its_trunk_as_in_the_logs_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk_rates = {200: 0.0006666666666666666} | dict.fromkeys((1800, 2000, 2200, 2600, 2800), 0.001)
    trunk = {0: 10.81832504272461, 200: 5.735574722290039, 1800: 3.8697640895843506, 2000: 3.8326683044433594}
    trunk |= {2200: 3.805717945098877, 2600: 3.7603931427001953, 2800: 3.742084264755249}
    branch_rates = {2200: 0.001, 2600: 0.0006666666666666668, 2800: 0.0003333333333333334, 3000: 0}
    branch = {2000: 3.832672595977783, 2200: 3.8057498931884766, 2600: 3.722099542617798, 2800: 3.664539337158203}
    logs = {
        TRUNK: log(trunk, trunk_rates, iterations=10000, wsd_fract_decay=0),
        BRANCH: log(branch, branch_rates, resume=TRUNK, iterations=3000, wsd_fract_decay=0.2),
    }
    runs = (("33M-sp", "const", "0.001", "10000"), ("33M-sp", "wsd0.2", "0.001", "3000"))
    monkeypatch.setattr(extracts, "LR_RUNS", runs)
    made = extracts.lr_scheduling(packed(logs))
    lines = made["runs.csv"].decode().split("\r\n")
    head = "33M-sp-wsd0.2-lr0.001-3000,33479040,wsd,0.001"
    assert lines[0] == "run,n_params,kind,peak,tokens,lr,val_loss"
    assert lines[1:7] == [  # lines of the table that the kept rows were made of
        f"{head},20480000,0.000666667,5.73557",
        f"{head},184320000,0.001,3.86976",
        f"{head},204800000,0.001,3.83267",
        f"{head},225280000,0.001,3.80575",
        f"{head},266240000,0.000666667,3.72210",
        f"{head},286720000,0.000333333,3.66454",
    ]
    assert lines[10] == "33M-sp-const-lr0.001-10000,33479040,const,0.001,225280000,0.001,3.80572"
    plans = json.loads(made["plans.json"])
    assert list(plans) == ["33M-sp-wsd0.2-lr0.001-3000", "33M-sp-const-lr0.001-10000"]
    assert plans["33M-sp-wsd0.2-lr0.001-3000"]["tokens"] == [0, 30720000, 245760000, 307200000]
    assert plans["33M-sp-const-lr0.001-10000"]["tokens"] == [0, 30720000, 286720000]

    monkeypatch.setattr(extracts, "LR_RUNS", (*runs, ("53M-sp", "cos", "0.002", "3650 7500")))
    with pytest.raises(
        ValueError, match=r"2 of 4 runs were not found: 53M-sp-cos-lr0.002-3650, 53M-sp-cos-lr0.002-7500"
    ):
        extracts.lr_scheduling(packed(logs))
    monkeypatch.setattr(extracts, "LR_RUNS", runs[1:])
    with pytest.raises(ValueError, match=r"goes on from sl_slimpajama.*, which is not among"):
        extracts.lr_scheduling(packed({BRANCH: logs[BRANCH]}))


def test_of_doubled_steps_the_later_counts_and_of_doubled_runs_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stem = "slimpajama_llama_norm_nlayers12_nhead12_lr0.0005_sched_wsd_warmup300_decay_linear_0.994_iter50000.json"
    run = log({200: 5.6, 4200: 3.433346748352051}, {200: 3e-4, 4200: 4.60765e-4}, n_layer=12, n_head=12)
    run["config"] |= {"lr": 0.0005, "iterations": 50000, "wsd_fract_decay": 0.994, "decay_type": "linear"}
    val = run["history"]["val"]
    val["iter"], val["val_loss"] = [*val["iter"], 4200], [*val["val_loss"], 3.4332633018493652]
    again = json.loads(json.dumps(run))
    again["history"]["val"]["val_loss"] = [9.0, 9.0, 9.0]
    monkeypatch.setattr(extracts, "LR_RUNS", (("124M-sp", "wsd0.994", "0.0005", "50000"),))
    logs = {f"data/grad_norm/ann124-0.994_{stem}": again, f"data/zz_{stem}": run}
    table = extracts.lr_scheduling(packed(logs))["runs.csv"].decode().splitlines()
    assert [line.rsplit(",", 1)[1] for line in table[1:]] == ["5.60000", "3.43326"]


def test_plans_of_every_schedule() -> None:
    plan = extracts._plan("124M-sp-wsd0.2sqrt-lr0.002-25000", 0.002, 24800)
    assert plan["tokens"][:5] == [0, 30720000, 2048000000, 2050572864, 2053145728]
    assert plan["lr"][2:5] == [0.002, 0.0018582237589983312, 0.0017994981171531638]
    assert extracts._plan("124M-sp-wsd0.994-lr0.001-50000", 0.001, 49800)["lr"] == [0.0, 0.001, 0.0]
    assert extracts._plan("124M-sp-wsd0.9-lr0.001-15000", 0.001, 14800)["tokens"][2] == 153599999
    ends = [extracts._plan(f"124M-sp-{kind}-lr0.001-25000", 0.001, 24800)["final_ratio"] for kind in ("cos", "coszero")]
    assert ends == [0.1, 0.0]
    cosine = {"scheduler": "cos", "lr": 0.001, "iterations": 25000}
    names = [extracts._run_name(log({}, {25000: end, 0: 0.0}, **cosine)) for end in (1e-4, 1e-7)]
    assert names == ["33M-sp-cos-lr0.001-25000", "33M-sp-coszero-lr0.001-25000"]


def test_columns_of_the_ladder_as_they_are_written_in_its_files() -> None:
    names = [extracts.OLMO[name] for name in extracts.OLMO]
    head = ",".join([*names[:1], *names[5:], "eval/downstream_bpb/mmlu_stem_val_rc_5shot_bpb", *names[1:5]])
    half = (
        "50,8.12406063079834,8.306267738342285,8.123252868652344,8.2640962600708,7.874430179595947,9.753824234008789,"
    )
    half += (
        "8.242361068725586,8.347729682922363,8.113774299621582,8.571754455566406,8.611902236938477,5.100905418395996,"
    )
    once = (
        "200,6.029934883117676,6.329421520233154,6.042535781860352,5.9411301612854,5.633138179779053,7.257562160491943,"
    )
    once += (
        "6.075063228607178,6.7180495262146,5.9042792320251465,6.404236793518066,6.812470436096191,3.5889554023742676,"
    )
    originals = {
        "190M-1xC.csv": f"{head}\r\n{once}104857600.0,0.0005359385778077217,0.000972728518721015,524288\r\n",
        "190M-0.5xC.csv": f"{head}\n{half}26214400,0.00013398464445193043,0.000972728518721015,524288\n",
        "190M-1xC-rerun.csv": f"{head}\n",
    }
    lines = extracts.olmo_ladder({path: text.encode() for path, text in originals.items()})["runs.csv"].decode()
    assert lines.splitlines()[1:] == [  # of the table that the kept rows were made of
        "190M,0.5,,50,26214400,0.00013398464445193043,0.000972728518721015,524288,8.12406063079834,8.306267738342285,"
        "8.123252868652344,8.2640962600708,7.874430179595947,9.753824234008789,8.242361068725586,8.347729682922363,"
        "8.113774299621582,8.571754455566406,8.611902236938477",
        "190M,1,,200,104857600.0,0.0005359385778077217,0.000972728518721015,524288,6.029934883117676,6.329421520233154,"
        "6.042535781860352,5.9411301612854,5.633138179779053,7.257562160491943,6.075063228607178,6.7180495262146,"
        "5.9042792320251465,6.404236793518066,6.812470436096191",
    ]


def test_copies_and_losses_alone() -> None:
    values = {"lm loss": {"start_step": 1, "values": {"1": 12.98419, "5": "nan"}}, "iteration-time": {"values": {}}}
    path = next(iter(extracts.MEGATRON))
    made = extracts.megatron({path: json.dumps(values, indent=4).encode()})
    assert made == {"gpt3_15b_a100.json": b'{"lm loss": {"start_step": 1, "values": {"1": 12.98419, "5": "nan"}}}'}
    assert extracts.multipower({"loss_curve_repo/csv_25/wsdcon_9.csv": b"1"}) == {"25M/wsdcon_9.csv": b"1"}
    assert extracts.gemstones({"wandb_dfs/wandb_df_for_fitting_lr_ablation_hot.jsonl": b"1"}) == {
        "constant_lr_half.jsonl": b"1"
    }
    assert extracts.modded_nanogpt({"records/2024-10-13_llmc/main.log": b"1"}) == {"2024-10-13_llmc/main.log": b"1"}


@public
def test_tables_of_the_ladder_and_of_megatron_come_back_bit_for_bit() -> None:
    rows = list(csv.DictReader(io.StringIO((CURVES / "olmo_ladder" / "runs.csv").read_text())))
    files: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        name = f"{row['size']}-{row['chinchilla_multiple']}xC" + ("-rerun" if row["rerun"] else "")
        files.setdefault(f"src/{name}.csv", []).append(row)
    originals = {}
    for path, group in files.items():
        cells = [
            ["eval/other", *extracts.OLMO.values()],
            *(["0", *(row[name] for name in extracts.OLMO)] for row in group),
        ]
        originals[path] = "\n".join(",".join(line) for line in cells).encode()
    known = data.known_hashes()
    assert len(originals) == fetch.SOURCES["olmo_ladder"].count
    assert data.digest(extracts.olmo_ladder(originals)["runs.csv"]) == known["olmo_ladder/runs.csv"]
    golden = {
        path: json.dumps(json.loads((CURVES / "megatron" / f"{name}.json").read_text()) | {"x": {}}, indent=4).encode()
        for path, name in extracts.MEGATRON.items()
    }
    for name, content in extracts.megatron(golden).items():
        assert data.digest(content) == known[f"megatron/{name}"]


@public
def test_runs_of_lr_scheduling_come_back_bit_for_bit_branches_on_their_trunks() -> None:
    rows = list(csv.DictReader(io.StringIO((CURVES / "lr_scheduling" / "runs.csv").read_text())))
    runs: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    grid = [(size, *case) for size, *rest in extracts.LR_RUNS for case in product(*map(str.split, rest))]
    assert set(runs) == {f"{size}-{kind}-lr{peak}-{steps}" for size, kind, peak, steps in grid}
    assert len(runs) == fetch.SOURCES["lr_scheduling"].count == 158
    layers = {size: shape for shape, size in extracts.LR_SIZES.items()}
    places = {name: f"data/{place:03}.json" for place, name in enumerate(runs)}
    logs, branches = {}, 0
    for name, own in runs.items():
        size, corpus, kind, rate, last = name.split("-")
        trunk, shared = trunk_of(name, runs)
        branches += bool(trunk)
        n_layer, n_head = layers[size]
        fraction = re.match(r"wsd([\d.]+)", kind)
        config = {"n_layer": n_layer, "n_head": n_head, "lr": float(rate[2:]), "iterations": int(last)}
        config |= {
            "scheduler": "cos" if kind.startswith("cos") else "wsd",
            "dataset": "chunk1" if corpus == "sp2" else "",
        }
        config |= {"wsd_fract_decay": float(fraction[1]) if fraction else 0.0}
        config |= {"decay_type": "sqrt" if "sqrt" in kind else "linear"}
        kept = own[max(shared - 1, 0) :]  # the first step of a branch is in its trunk too
        val = {int(row["tokens"]) // data.LR_SCHEDULING_BATCH: float(row["val_loss"]) for row in kept}
        rates = {n: float(row["lr"]) for n, row in zip(val, kept, strict=True)}
        rates[int(last)] = 0.1 * config["lr"] if kind == "cos" else 0.0
        logs[places[name]] = log(val, rates, int(own[0]["n_params"]), places.get(trunk, ""), **config)
    assert branches == 71
    made = extracts.lr_scheduling(packed(logs))
    for file in ("runs.csv", "plans.json"):
        assert data.digest(made[file]) == data.known_hashes()[f"lr_scheduling/{file}"]


def trunk_of(name: str, runs: dict[str, list[dict[str, str]]]) -> tuple[str, int]:
    """The constant run with which a decaying one has its first rows in common, and how many."""
    size, corpus, kind, rate, _ = name.split("-")
    best = ("", 0)
    for other, rows in runs.items():
        if kind.startswith("wsd") and other.startswith(f"{size}-{corpus}-const-{rate}-"):
            numbers = [[row[key] for key in ("tokens", "lr", "val_loss")] for row in rows]
            pairs = zip(runs[name], numbers, strict=False)
            shared = sum(1 for _ in takewhile(lambda p: [p[0][k] for k in ("tokens", "lr", "val_loss")] == p[1], pairs))
            best = max(best, (other, shared), key=lambda pair: pair[1])
    return best


def test_patterns_take_the_paths_of_the_repositories_and_leave_the_others() -> None:
    rest = "_bs50x2_ws2_seed0_data_seed1337.json"
    size = "llama_norm_nlayers12_nhead12_lr0.001"
    zero = f"cos-zero-124m_slimpajama_{size}_sched_cos_warmup300_decay_sqrt_0.0_iter25000{rest}"
    chunk = f"slimpajama_chunk1_{size}_sched_wsd_warmup300_decay_linear_0.2_iter50000{rest}"
    takes = {
        "multipower": ["loss_curve_repo/csv_25/wsdcon_9.csv", "loss_curve_repo/csv_100/wsdld_20000_24000.csv"],
        "olmo_ladder": [f"src/scripts/paper/data/ladder-runs/{name}.csv" for name in ("190M-1xC-rerun", "1B-0.5xC")],
        "gemstones": ["wandb_dfs/wandb_df_for_fitting_cool_end.jsonl"],
        "lr_scheduling": [TRUNK, BRANCH, f"data/grad_norm/{zero}", f"data/horizon_transfer/{chunk}"],
        "modded_nanogpt": ["records/track_1_short/2024-10-13_llmc/main.log"],
        "megatron": list(extracts.MEGATRON),
    }
    leaves = {
        "multipower": ["loss_curve_repo/csv_400/wsdcon_9.csv"],
        "olmo_ladder": [
            f"src/scripts/paper/data/ladder-runs/{name}.csv" for name in ("3B-1xC", "peteish7_eval_anneal")
        ],
        "gemstones": ["wandb_dfs/wandb_df_for_fitting_hot_477.jsonl"],
        "lr_scheduling": [
            TRUNK.replace("slimpajama", "openwebtext2"),
            BRANCH.replace("8_nhead6", "24_nhead12"),
            f"data/horizon_transfer/extend-50k_{chunk}",
        ],
    }
    for name, source in fetch.SOURCES.items():
        assert all(re.fullmatch(source.wanted, path) for path in takes[name]), name
        assert not any(re.fullmatch(source.wanted, path) for path in leaves.get(name, [])), name
    assert {file.split("/")[0] for file in data.known_hashes()} == set(fetch.SOURCES)


class GitHub:
    """Answers as GitHub's two kinds of addresses do, from memory; `asked` has what was asked for."""

    def __init__(self, files: extracts.Files, commit: str = "abc1234def", repository: str = "a/b") -> None:
        self.files, self.commit, self.repository = files, commit, repository
        self.asked: list[str] = []
        self.truncated, self.fails = False, ""

    def __call__(self, url: str, most: int = fetch.LARGEST) -> bytes:
        self.asked.append(url)
        if self.fails and self.fails in url:
            raise ValueError("fetch: the line is down")
        if "/commits/" in url:
            return json.dumps({"sha": self.commit, "commit": {"tree": {"sha": "t" * 40}}}).encode()
        if url == f"{fetch.API}/{self.repository}/git/trees/{'t' * 40}?recursive=1":
            files = [
                {"type": "blob", "path": path, "sha": fetch.git_hash(content), "size": len(content)}
                for path, content in self.files.items()
            ]
            return json.dumps({"tree": [{"type": "tree", "path": "x"}, *files], "truncated": self.truncated}).encode()
        return self.files[url.removeprefix(f"{fetch.RAW}/{self.repository}/{self.commit}/")]


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitHub:
    server = GitHub({"csv/1.csv": b"a\r\n1\r\n", "csv/2.csv": b"a\r\n2\r\n", "README.md": b"no"})
    source = fetch.Source("a/b", "abc1234", "MIT", 0.1, r"csv/\d\.csv", 2, dict)
    monkeypatch.setattr(fetch, "SOURCES", {"some": source})
    monkeypatch.setattr(fetch, "download", server)
    hashes = tmp_path / "hashes.json"
    known = {f"some/{path}": data.digest(content) for path, content in server.files.items() if "csv" in path}
    hashes.write_text(json.dumps(known))
    monkeypatch.setattr(data, "HASHES", hashes)
    return server


def test_a_source_is_fetched_checked_and_not_fetched_again(tmp_path: Path, github: GitHub) -> None:
    to = tmp_path / "curves"
    assert "2 files written" in fetch.fetch("some", to)
    assert (to / "some" / "csv" / "1.csv").read_bytes() == b"a\r\n1\r\n"
    assert data.check(to) == []
    assert not (to / fetch.ORIGINALS / "some").exists()
    github.asked.clear()
    assert "2 files are there" in fetch.fetch("some", to)
    assert github.asked == []
    (to / "some" / "csv" / "1.csv").write_text("a\n1\n")  # the same numbers with other line ends
    assert "2 files are there" in fetch.fetch("some", to)
    (to / "some" / "csv" / "1.csv").write_text("a\n3\n")
    found = hashlib.sha256(b"a\n3\n").hexdigest()
    with pytest.raises(ValueError, match=rf"1.csv is another file: expected SHA-256 [0-9a-f]{{64}}, found {found}"):
        fetch.fetch("some", to)
    assert (to / "some" / "csv" / "1.csv").read_text() == "a\n3\n"


@public
@pytest.mark.parametrize("name", ["multipower", "gemstones", "modded_nanogpt", "megatron"])
def test_a_fetched_source_is_what_the_benchmark_reads(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    kept = {file: (CURVES / file).read_bytes() for file in data.known_hashes() if file.startswith(f"{name}/")}
    stems = {new: old for old, new in extracts.GEMSTONES.items()}
    places = {
        "multipower": lambda file: f"loss_curve_repo/csv_{file.parent.name[:-1]}/{file.name}",
        "gemstones": lambda file: f"wandb_dfs/wandb_df_for_fitting_{stems[file.stem]}.jsonl",
        "modded_nanogpt": lambda file: f"records/track_1_short/{file.parent.name}/{file.name}",
        "megatron": lambda file: next(path for path, new in extracts.MEGATRON.items() if new == file.stem),
    }
    source = fetch.SOURCES[name]
    files = {places[name](Path(file)): content for file, content in kept.items()}
    server = GitHub({"other.csv": b"0"} | files, f"{source.commit:0<40}", source.repository)
    monkeypatch.setattr(fetch, "download", server)
    assert f"{len(kept)} files written" in fetch.fetch(name, tmp_path)
    assert {file: (tmp_path / file).read_bytes() for file in kept} == kept
    assert len(server.asked) == 2 + len(kept)
    assert name not in data.check(tmp_path)


def test_an_interrupted_fetch_goes_on(tmp_path: Path, github: GitHub) -> None:
    github.fails = "2.csv"
    with pytest.raises(ValueError, match="the line is down"):
        fetch.fetch("some", tmp_path)
    assert not (tmp_path / "some").exists()
    github.fails = ""
    github.asked.clear()
    (kept,) = (tmp_path / fetch.ORIGINALS / "some").iterdir()
    assert "2 files written" in fetch.fetch("some", tmp_path)
    assert not any(url.endswith("1.csv") for url in github.asked)
    (tmp_path / "some" / "csv" / "2.csv").unlink()
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half of it")  # what was kept is checked too
    github.asked.clear()
    fetch.fetch("some", tmp_path)
    assert any(url.endswith("1.csv") for url in github.asked)


def test_another_file_is_refused_with_both_hashes_and_nothing_is_kept(tmp_path: Path, github: GitHub) -> None:
    before = data.digest(github.files["csv/2.csv"])
    github.files["csv/2.csv"] = b"a\r\n9\r\n"  # the repository holds another one
    after = data.digest(github.files["csv/2.csv"])
    with pytest.raises(
        ValueError, match=rf"some/csv/2.csv, made of a/b@abc1234: expected SHA-256 {before}, found {after}"
    ):
        fetch.fetch("some", tmp_path)
    assert not (tmp_path / "some").exists()
    tree = fetch.listing(fetch.SOURCES["some"])[1]
    github.files["csv/1.csv"] = b"a\r\n8\r\n"  # and one was changed on its way
    kept = tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "listing", lambda source: ("abc1234def", tree))
        with pytest.raises(ValueError, match=f"git's hash is {tree['csv/1.csv'][0]}, found"):
            fetch.originals(fetch.SOURCES["some"], kept)
    assert list(kept.iterdir()) == []


def test_originals_of_another_form_are_one_sentence(tmp_path: Path, github: GitHub) -> None:
    for extract in (extracts.lr_scheduling, extracts.megatron, extracts.olmo_ladder, lambda files: files["none"]):
        fetch.SOURCES["some"] = fetch.Source("a/b", "abc1234", "MIT", 0.1, r"csv/\d\.csv", 2, extract)
        with pytest.raises(ValueError, match="fetch: the files of some are other than expected: "):
            fetch.fetch("some", tmp_path)
    assert not (tmp_path / "some").exists()


def test_lists_that_are_other_than_expected_are_refused(tmp_path: Path, github: GitHub, monkeypatch: Any) -> None:
    github.truncated = True
    with pytest.raises(ValueError, match="in a part of the list"):
        fetch.fetch("some", tmp_path)
    github.truncated, github.commit = False, "fff"
    with pytest.raises(ValueError, match="the list of commit fff"):
        fetch.fetch("some", tmp_path)
    github.commit = "abc1234def"
    del github.files["csv/2.csv"]
    with pytest.raises(ValueError, match=r"2 files .* were expected, found 1"):
        fetch.fetch("some", tmp_path)
    monkeypatch.setattr(fetch, "download", lambda url: b'{"message": "rate limit"}')
    with pytest.raises(ValueError, match="another form"):
        fetch.fetch("some", tmp_path)


def test_addresses_are_https_bounded_and_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not https"):
        fetch.download("http://example.org/a")
    handler, request = fetch._HttpsAlone(), Request("https://example.org/a")
    with pytest.raises(URLError, match="not https"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://example.org/b")
    onward = handler.redirect_request(request, None, 302, "Found", {}, "https://example.org/b")
    assert onward is not None
    assert onward.full_url == "https://example.org/b"

    def opener(content: bytes | Exception) -> Any:
        def opened(request: Request, timeout: float) -> io.BytesIO:
            assert timeout == fetch.TIMEOUT
            if isinstance(content, Exception):
                raise content
            return io.BytesIO(content)

        return lambda handler: SimpleNamespace(open=opened)

    monkeypatch.setattr(fetch, "build_opener", opener(b"1234"))
    assert fetch.download("https://example.org/a", 4) == b"1234"
    with pytest.raises(ValueError, match="more than the 3 bytes"):
        fetch.download("https://example.org/a", 3)
    for error in (TimeoutError("timed out"), URLError("no route")):
        monkeypatch.setattr(fetch, "build_opener", opener(error))
        with pytest.raises(ValueError, match=r"cannot be read: .*; the same command goes on"):
            fetch.download("https://example.org/a")


def test_the_command_lists_fetches_and_goes_on_after_a_failure(tmp_path: Path, github: GitHub, capsys: Any) -> None:
    fetch.main(["--list"])
    assert "a/b@abc1234" in capsys.readouterr().out
    for bad in (["other", "--to", str(tmp_path)], []):
        with pytest.raises(SystemExit) as end:
            fetch.main(bad)
        assert end.value.code == 2
    assert "no curves other; there are some" in capsys.readouterr().err
    fetch.main(["--to", str(tmp_path / "curves")])
    assert "2 files written" in capsys.readouterr().out
    fetch.SOURCES["gone"] = fetch.Source("a/b", "abc1234", "MIT", 0.1, r"none", 1, dict)
    known = data.known_hashes() | {"gone/none": "0"}
    data.HASHES.write_text(json.dumps(known))
    with pytest.raises(SystemExit) as end:
        fetch.main(["gone", "some", "--to", str(tmp_path / "curves")])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "2 files are there" in printed.out
    assert "1 files none were expected, found 0" in printed.err
