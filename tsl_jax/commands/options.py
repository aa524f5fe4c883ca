"""Options of a verb: from its dataclass, a YAML file and the command line; and the stamp that every output carries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SHELLS = ("bash", "zsh", "tcsh")


def parse(command: type[T], verb: str, arguments: list[str]) -> T:
    """The command in `arguments`; entries of `--config FILE.yaml` replace the defaults.

    Raises:
        ValueError: for a file that is not YAML or names unknown entries. SystemExit: tyro's own, for wrong options.
    """
    import tyro

    file, rest = _config_file(arguments)
    default: dict[str, Any] = {} if file is None else {"default": _from_file(command, file)}
    settings = {"config": (tyro.conf.FlagCreatePairsOff,), "registry": _types_of_one_word()}
    _refuse_empty_lists(command, verb, rest)
    parsed = tyro.cli(command, args=rest, prog=f"tsl {verb}", **settings, **default)
    _require_named_law(parsed, verb, file, rest)
    _require_named_tasks(parsed, verb, file, rest)
    train: Any = getattr(parsed, "train", None)
    if file is not None and train is not None and train.position_weights.runs_code:
        named = any(argument.partition("=")[0].replace("_", "-") == "--position-weights" for argument in rest)
        require_trust(parsed, [] if named else [train.position_weights], str(file))
    return parsed


def completion(commands: Mapping[str, type], shell: str) -> str:
    """The script of one of SHELLS that completes `tsl`: its verbs, and the options and choices of each.

    Raises:
        ImportError: for tcsh without the package shtab.
    """
    import contextlib
    import io
    import typing

    import tyro

    verbs = [typing.Annotated[kind, tyro.conf.subcommand(verb)] for verb, kind in commands.items()]
    all_verbs: Any = typing.Union[tuple(verbs)]  # noqa: UP007  (of a list)
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        tyro.cli(
            all_verbs,
            args=["--tyro-print-completion", shell],
            prog="tsl",
            config=(tyro.conf.FlagCreatePairsOff,),
            registry=_types_of_one_word(),
        )
    lines = written.getvalue().splitlines(keepends=True)
    # The shell reads a completion a line, so no help may have two; what is not completed is the name of a file.
    lines = [line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line for line in lines]
    return "".join(lines).replace("complete -F", "complete -o default -F")


def _require_named_law(command: Any, verb: str, file: Path | None, arguments: list[str]) -> None:
    """A law that is Python of somebody's runs where the command line names it, not where a file of options does."""
    from tsl_jax.user_code import is_named

    law = getattr(command, "law", None)
    if file is None or not isinstance(law, str) or not is_named(law):
        return
    if not any(argument.partition("=")[0] == "--law" for argument in arguments):
        raise ValueError(
            f"{verb}: {file} names the law {law}, which is Python that would run; look at it, then give --law {law}"
        )


def _require_named_tasks(command: Any, verb: str, file: Path | None, arguments: list[str]) -> None:
    """The same of task files of benchmarks, which may name Python functions."""
    tasks = [str(task) for task in getattr(command, "tasks", ()) if str(task).endswith((".yaml", ".yml"))]
    named = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for option, values in (("--tasks", tasks), ("--include-path", getattr(command, "include_path", ()))):
        if file is not None and values and option not in named:
            code = f"{file} names {values[0]}, and task files may name Python that would run"
            raise ValueError(f"{verb}: {code}; look at it, then give {option} on the command line")


def _refuse_empty_lists(command: type, verb: str, arguments: list[str]) -> None:
    """`--text` without a value would be the empty list, which is the default: not what somebody means who writes it."""
    import typing

    lists: set[str] = set()

    def collect(kind: Any, before: str) -> None:
        for name, hint in typing.get_type_hints(kind).items():
            if typing.get_origin(hint) is tuple:
                lists.add(f"--{before}{name}".replace("_", "-"))
            elif dataclasses.is_dataclass(hint):
                collect(hint, before if name == "train" else f"{before}{name}.")

    collect(command, "")
    for argument, following in pairwise([*arguments, "--"]):
        if argument.replace("_", "-") in lists and following.startswith("--"):
            raise ValueError(f"{verb}: {argument} needs a value or more; leave it out for the default")


def require_trust(command: Any, rules: Iterable[Any], named_by: str) -> None:
    """Nothing, where no rule of position weights runs Python of others, or the user trusts it: `command.trust`.

    Raises:
        ValueError: naming the rule.
    """
    for rule in rules:
        if rule.runs_code and not command.trust:
            code = f"{named_by} names the rule {rule.source}, which is Python that would run"
            raise ValueError(f"{stamp(command)['command']}: {code}; look at it, then add --trust")


def _config_file(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The file of `--config`, or of the run that `--resume` continues, and the other arguments."""
    file, rest = None, []
    iterator = iter(arguments)
    for argument in iterator:
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        value = value if equals else next(iterator, None)
        if not value:
            raise ValueError("--config needs a file; give --config FILE.yaml")
        file = Path(value)
    if file is None and "--resume" in rest:
        outs = [value for name, value in pairwise(rest) if name == "--out"]
        outs += [argument.partition("=")[2] for argument in rest if argument.startswith("--out=")]
        files = [Path(out) / "config.yaml" for out in outs]
        file = next((file for file in files if file.exists()), None)
    return file, rest


def _from_file(command: type[T], file: Path) -> T:
    """A command from a file's entries; what they leave out keeps its default, or must come on the command line."""
    import typing

    import tyro

    from tsl_jax.training.config import value_of
    from tsl_jax.yaml_files import read_yaml

    try:
        values = read_yaml(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; write options as `name: value`") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a mapping of options, found {type(values).__name__}")
    hints = typing.get_type_hints(command)
    fields: tuple[Any, ...] = dataclasses.fields(command)  # pyright: ignore[reportArgumentType]
    names = [field.name for field in fields]
    inner = next((name for name in ("train", "pretrained") if name in names), None)
    if inner and inner not in values:  # its options stand beside the verb's own, as on the command line
        own = {name: value for name, value in values.items() if name in names}
        values = own | {inner: {name: value for name, value in values.items() if name not in names}}
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(f"{file}: {unknown[0]!r} is not an option; expected some of {', '.join(names)}")
    try:
        options = {name: value_of(hints[name], name, value) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for field in fields:
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            options.setdefault(field.name, tyro.MISSING)
    return command(**options)


def _types_of_one_word() -> Any:
    """The rules by which tyro reads integers (1e6 is one) and weights over positions (one text)."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    from tsl_jax.training.config import whole
    from tsl_jax.training.position_weights.weights import PositionWeights

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def integer(info: Any) -> Any:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: whole(words[0]),
            is_instance=lambda value: type(value) is int,
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def weights(info: Any) -> Any:
        if info.type is not PositionWeights:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="RULE",
            instance_from_str=lambda words: PositionWeights.parse(words[0]),
            is_instance=lambda value: isinstance(value, PositionWeights),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def stamp(command: Any) -> dict[str, Any]:
    """What every output carries: the resolved options, their hash, and the version that made it."""
    from tsl_jax import __version__

    resolved = json.loads(json.dumps(dataclasses.asdict(command), default=str))
    digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]
    return {
        "command": type(command).__name__.removesuffix("Command").lower(),
        "config": resolved,
        "config_hash": digest,
    } | {"tsl_jax": __version__}


def check_folder(folder: Path, area: str) -> None:
    """Nothing, where the folder can be written or made; known before the work, not after it.

    Raises:
        OSError: saying why not.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{area}: {place} is no folder, {folder} cannot be made there; give another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{area}: {place} is not writable; give another --out")


def check_json_output(command: Any, out: Path, *inputs: Path | None) -> None:
    """Nothing, where `write_json` may write `out`: nothing is there, or what the same verb wrote before.

    Raises:
        ValueError: for a file of somebody else's, or one of the inputs.
    """
    from tsl_jax.atomic_write import check_outputs

    verb = stamp(command)["command"]
    check_outputs(inputs, [out], verb)
    check_folder(out.parent, verb)
    if os.path.lexists(out):
        try:
            made_by = json.loads(out.read_text())["made_by"]["command"]
        except (OSError, ValueError, KeyError, TypeError):
            made_by = ""
        if made_by != verb:
            raise ValueError(
                f"{verb}: {out} is there and is no result of tsl {verb}; move it away, or give another --out"
            )


def write_json(out: Path, result: dict[str, Any]) -> None:
    """A result as a JSON file, whole or not at all; its folder is made."""
    from tsl_jax.atomic_write import write_atomically

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(result, indent=1))


def forecast_methods(names: Sequence[str], default: Sequence[str], verb: str) -> tuple[str, ...]:
    """The methods asked for by `--methods`, each once; "all" is every one, and without any it is the default.

    Raises:
        ValueError: for a name of no method.
    """
    from tsl_jax.forecasting.methods import METHODS

    unknown = [name for name in names if name not in (*METHODS, "all")]
    if unknown:
        raise ValueError(f"{verb}: --methods are of {', '.join(METHODS)}, or all; found {unknown[0]!r}")
    return tuple(METHODS) if "all" in names else tuple(dict.fromkeys(names or default))


def output_folder(run: Path) -> Path:
    """The folder for what a verb makes of a run: its own, or beside the file of a surface one of the file's name."""
    return run.with_suffix("") if run.is_file() or (run.suffix == ".npz" and not run.is_dir()) else run


def show_warnings_as_sentences() -> None:
    """Warnings of the library reach the user as one line on stderr, without a place in the code."""

    from tsl_jax import processes

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        print(processes.message(f"tsl: warning: {message}"), file=sys.stderr)

    warnings.showwarning = show
