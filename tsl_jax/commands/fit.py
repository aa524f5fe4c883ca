"""`tsl fit CURVES`: fit a law to every curve of a file or run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tsl_jax.curve_tables import TableSummary
    from tsl_jax.laws import Law

# What x is, by the usual names of its column, for `--law all`; a step is always so many tokens.
COVARIATE_OF = {"position": "position", "tokens": "tokens", "step": "tokens"}


@dataclass(frozen=True)
class FitCommand:
    """Fit a law to every curve; write one row a curve: parameters, standard errors, sse, r2, range of x, status.

    Files of any size pass through fixed memory; a call that was interrupted continues when it is repeated.
    """

    curves: tyro.conf.Positional[Path]
    """.npy of (curves, positions); .csv or .parquet, a row a point, with columns curve,x,y[,weight] or those that
    --curve, --x, --y and --weight name; a run's folder; a surface."""
    law: str = "hyperbolic"
    """Name of the law, a wrong one lists them; or a law or function f(x, a, b, ...) of your own, as ./file.py:NAME,
    which is run. Several, as power,log, or all that read the covariate (all, or all:tokens where the column has another
    name) are compared: a row a curve and law, and a table that says which law to take."""
    out: Path = Path("fits.parquet")
    """Where the rows go (.parquet or .csv)."""
    curve: str | None = None
    """Of a table: the column with the name of the curve; default curve. For laws of several covariates all rows are one
    curve where there is no such column."""
    x: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[NAME=]COLUMN")] = ()
    """Of a table: the column with the covariate, default x; it names the range in the output (step_low, step_high). For
    laws of several covariates once for each, as n_params=COLUMN, default the columns of their names.
    Of a .npy of curves: a .npy with the covariate at each position, default 1 to n."""
    y: str | None = None
    """Of a table: the column that is fitted; default y."""
    weight: str | None = None
    """Of a table: the column with weights; default weight, if there is one."""
    method: Annotated[
        Literal["auto", "varpro", "lm"], tyro.conf.arg(help="varpro: global; lm: Levenberg-Marquardt")
    ] = "auto"
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the fit."""
    loss: Annotated[
        Literal["squares", "huber", "log", "log_huber"], tyro.conf.arg(help="of residuals, or of those of logarithms")
    ] = "squares"
    delta: float | None = None
    """Where Huber's loss turns linear, in units of y or its logarithm; default 1.345 robust standard deviations."""
    starts: int | None = None
    """Starts of Levenberg-Marquardt over the range of the shapes; default those of the law (4 to 8)."""
    coef_limits: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="COEF=LOW:HIGH")] = ()
    """Keep a coefficient within limits, either side may be empty: a2=0: is not negative, a2=1.6:1.6 is fixed. May be
    repeated."""
    strict: bool = False
    """Stop at a malformed row, instead of listing it and going on."""
    ray: str | None = None
    """Distribute the shards over the Ray cluster at this address; "local" starts one here."""


def run_fit(command: FitCommand) -> None:
    """Fit, write, and print the result."""
    import json

    from tsl_jax.atomic_write import check_outputs
    from tsl_jax.commands import options
    from tsl_jax.curve_tables import check_output

    check_output(command.out)
    options.check_folder(command.out.absolute().parent, "fit")
    covariates = [Path(x) for x in command.x if command.curves.suffix == ".npy"]
    check_outputs([command.curves, *covariates], [command.out], "fit")
    stamp = {"tsl_jax": json.dumps(options.stamp(command))}
    surface = command.curves.is_dir() or command.curves.suffix == ".npz"
    if command.law.partition(":")[0] == "all" or "," in command.law:
        return _compare(command, stamp, surface)
    law = _law(command, command.law)
    summary = (_fit_run if surface else _fit_file)(command, law, stamp)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(summary.status.items(), key=lambda item: -item[1]))
    print(f"{law.formula}: {summary.curves} curves, {counts}\nrows: {command.out}")
    _finish(command, law, summary, surface)


def _finish(command: FitCommand, law: Law, summary: TableSummary, surface: bool) -> None:
    """Say which points were left out; a table without any fit is a failure."""
    from tsl_jax.fitting.status import UNSOLVED

    if summary.left_out:
        print("points left out:", ", ".join(f"{count} where {why}" for why, count in summary.left_out.items()))
    if set(summary.status) <= {status.short for status in UNSOLVED}:
        raise ValueError(f"fit: no curve of {command.curves} could be fitted; {_advice(law, summary, surface)}")


def _law(command: FitCommand, named: str) -> Law:
    """A law of `--law`, by its name or from the Python file or module that it names."""
    from tsl_jax import laws, user_code

    if named in laws.BY_NAME:
        return laws.BY_NAME[named]
    if not user_code.is_named(named):
        expected = f"one of {', '.join(laws.BY_NAME)}, all, or a law of your own as ./file.py:NAME"
        raise ValueError(f"fit: --law {named!r} is unknown; expected {expected}")
    module, _, name = named.rpartition(":")
    if command.ray is not None and module.endswith(".py"):
        raise ValueError(f"fit: --ray needs a law that its machines can import, found {module}; install it as a module")
    try:
        law = user_code.load(module, name)
    except ValueError as error:
        raise ValueError(f"fit: --law {named}: {error!s:.300}; correct it, or take a law by its name") from error
    if callable(law) and not isinstance(law, laws.Law | type):
        several = [x.partition("=")[0] for x in command.x]
        return laws.from_function(law, covariates=several if len(several) > 1 else ("x",))
    if not isinstance(law, laws.Law):
        found = "nothing" if law is None else f"a {type(law).__name__}"
        expected = f"{name} = tsl_jax.laws.Law(...) or def {name}(x, a, b, ...) in {module}"
        raise ValueError(f"fit: --law {named}: expected {expected}, found {found}")
    return law


def _compared_laws(command: FitCommand) -> list[Law]:
    """The laws of `--law`: those listed, or all that read the covariate.

    Raises:
        ValueError: where it is not known which covariate that is.
    """
    from tsl_jax.laws import BY_NAME

    word, _, covariate = command.law.partition(":")
    if word != "all":
        return [_law(command, name.strip()) for name in command.law.split(",")]
    read = (covariate,)
    if not covariate:
        matrix = command.curves.suffix == ".npy"
        named = tuple(x.partition("=")[0] for x in command.x if not matrix or "=" in x)
        column = named or (("x",) if command.x or not matrix else ("position",))
        read = tuple(COVARIATE_OF.get(name, name) for name in column) if len(column) == 1 else column
        covariate = ", ".join(read)
    laws = [law for law in BY_NAME.values() if sorted(law.covariates) == sorted(read)]
    if len(laws) < 2:
        several = ", ".join(f"all:{name}" for name in dict.fromkeys(COVARIATE_OF.values()))
        what = f"fewer than two laws read {covariate!r}" if laws else f"no law reads {covariate!r}"
        raise ValueError(f"fit: --law all: {what}; say what x is by --law {several}, or list laws, as power,log")
    return laws


def _compare(command: FitCommand, stamp: dict[str, str], surface: bool) -> None:
    """Compare the laws of `--law` on every curve; print a row a law, and which to take."""
    from tsl_jax.commands.progress import rate
    from tsl_jax.curve_tables import compare_table, open_source, read_comparison
    from tsl_jax.curve_tables.comparison import FITS_PER_LAW
    from tsl_jax.diagnostics.law_comparison import in_words, summarise, verdict

    if surface:
        how = "tsl.compare_laws(tsl.load_surface(...).loss, over='position') compares them from Python"
        raise ValueError(f"fit: --law {command.law} reads .npy, .csv and .parquet, found {command.curves}; {how}")
    of_one = ("method", "dtype", "coef_limits", "loss", "delta", "starts")
    for option in of_one:
        if getattr(command, option) != getattr(FitCommand, option):
            name = option.replace("_", "-")
            raise ValueError(f"fit: --{name} is of one law, found --law {command.law}; leave it out, or give one law")
    laws = _compared_laws(command)
    columns = _columns(command, laws[0])
    print(open_source(command.curves, **columns, covariates=laws[0].covariates).describe())
    names = ", ".join(law.name for law in laws)
    print(
        f"{len(laws)} laws ({names}), each fitted {FITS_PER_LAW} times to a curve, once to all points and then without "
        f"a block of them: {len(laws) * FITS_PER_LAW} fits a curve",
        flush=True,
    )
    with ExitStack() as stack:
        summary = compare_table(
            laws,
            command.curves,
            command.out,
            **columns,
            strict=command.strict,
            executor=_executor(command, stack),
            progress=stack.enter_context(rate("compare", "curves")),
            metadata=stamp,
            version=",".join(_version(name) for name in command.law.split(",")),
        )
    rows = read_comparison(summary.out, laws)
    of_usable = "aic and bic less the least of each curve, where the law is usable"
    print(f"{summary.curves:,} curves; numbers are medians over them, {of_usable}")
    print(f"{in_words(summarise(rows))}\n{verdict(rows)}")
    if unusable := summary.curves - rows.loc[rows["usable"], "curve"].nunique():
        print(f"no law is usable on {unusable:,} of {summary.curves:,} curves (their status says why)")
    print(f"rows: {command.out}")
    _finish(command, laws[0], summary, surface=False)


def _columns(command: FitCommand, law: Law) -> dict[str, Any]:
    """The columns that the options name, as `fit_table` takes them.

    Raises:
        ValueError: for an --x that names no covariate of the law, or one of them twice.
    """
    first, *others = names = law.covariates
    given: dict[str, str] = {}
    for text in command.x:
        name, _, column = text.partition("=")
        if name not in names or not column:  # the column alone, whose name may hold anything
            name, column = first, text
            if others:
                expected = " ".join(f"--x {name}=COLUMN" for name in names)
                raise ValueError(f"fit: {law.name} reads {', '.join(names)}; expected {expected}, found --x {text}")
        if name in given:
            raise ValueError(f"fit: --x names the column of {name} twice, {given[name]} and {column}; give one")
        given[name] = column
    x = given if others else given.get(first)
    return {"x": x, "curve": command.curve, "y": command.y, "weight": command.weight}


def _limits(command: FitCommand) -> dict[str, tuple[float | None, float | None]]:
    """The limits of `--coef-limits COEF=LOW:HIGH`, by coefficient."""
    limits: dict[str, tuple[float | None, float | None]] = {}
    for text in command.coef_limits:
        name, _, ends = (part.strip() for part in text.partition("="))
        try:
            low, high = (float(end) if end.strip() else None for end in ends.split(":"))
        except ValueError:
            expected = "COEF=LOW:HIGH such as a2=0: or a2=1.6:1.6"
            raise ValueError(f"fit: --coef-limits: expected {expected}, found {text!r}") from None
        if name in limits:
            raise ValueError(f"fit: --coef-limits names {name} twice; give it once, as {name}=LOW:HIGH")
        limits[name] = low, high
    return limits


def _version(law: str) -> str:
    """The hash of a user's file with a law, else nothing."""
    import hashlib

    file = law.rpartition(":")[0]
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file.endswith(".py") else ""


def _advice(law: Law, summary: TableSummary, surface: bool) -> str:
    """What to do about a table none of whose curves could be fitted."""
    from tsl_jax.fitting.status import Status

    if summary.malformed_rows:
        return f"see {summary.errors}; correct its rows"
    (short, _), *_ = sorted(summary.status.items(), key=lambda item: -item[1])
    status = Status[short.upper()]
    if surface and status == Status.TOO_FEW_POINTS and law.covariates == ("position",):
        return f"{status.message()}; a surface of the mean only has one position: fit it over tokens by --law power"
    return f"{short}: {status.message()}"


def _fit_run(command: FitCommand, law: Law, stamp: dict[str, str]) -> TableSummary:
    """The curves of a run or a surface, which are few: along positions or tokens, as the law reads it."""
    from tsl_jax.curve_tables import check_request, write_fit
    from tsl_jax.fitting import fit
    from tsl_jax.surface import load_surface

    if law.covariates not in (("position",), ("tokens",)):
        raise ValueError(
            f"fit: --law {law.name} is a law over {' and '.join(law.covariates)}; a run has losses over position and "
            "over tokens only. Choose a law over one of these, or fit tsl.load_surface(...).loss from Python with x="
        )
    named = [option for option in ("curve", "x", "y", "weight") if getattr(command, option)]
    if named:
        raise ValueError(
            f"fit: --{named[0]} names a column of a table, found the run or surface {command.curves}; leave it out"
        )
    limits = _limits(command)
    robust = {"loss": command.loss, "delta": command.delta}
    check_request(law, command.method, command.dtype, limits, starts=command.starts, **robust)
    surface = load_surface(command.curves)
    law = law if command.starts is None else replace(law, starts=command.starts)
    options = {"method": command.method, "dtype": command.dtype, "coef_limits": limits, **robust}
    result = fit(law, surface.loss, over=law.covariates[0], **options)
    return write_fit(law, result, command.out, stamp)


def _fit_file(command: FitCommand, law: Law, stamp: dict[str, str]) -> TableSummary:
    from tsl_jax.commands.progress import rate
    from tsl_jax.curve_tables import fit_table, open_source

    columns = _columns(command, law)
    print(open_source(command.curves, **columns, covariates=law.covariates).describe(), flush=True)
    with ExitStack() as stack:
        return fit_table(
            law,
            command.curves,
            command.out,
            **columns,
            method=command.method,
            dtype=command.dtype,
            coef_limits=_limits(command),
            loss=command.loss,
            delta=command.delta,
            starts=command.starts,
            strict=command.strict,
            executor=_executor(command, stack),
            progress=stack.enter_context(rate("fit", "curves")),
            metadata=stamp,
            version=_version(command.law),
        )


def _executor(command: FitCommand, stack: ExitStack) -> Executor | None:
    """Where `--ray` says that shards are fitted, until the stack is left."""
    from tsl_jax.curve_tables import RayExecutor

    if command.ray is None:
        return None
    try:
        return stack.enter_context(RayExecutor(command.ray))
    except ModuleNotFoundError as error:  # a mistake of the user here, with its fix
        raise ValueError(str(error)) from None
