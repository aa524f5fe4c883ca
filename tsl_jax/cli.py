"""`tsl`: one screen of verbs. Nothing heavy is imported until a verb is known.

Each verb is a module of `tsl_jax.commands` with a frozen dataclass `Command`, which is its command line, and
`run(command)`. A user's mistake ends in one sentence and exit code 2, Ctrl-C in 130; `--debug` shows the traceback.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

VERBS = {
    "demo": "train, fit, forecast and draw an embedded example: minutes on two cores",
    "train": "train a decoder on text, measuring the loss of every position at every checkpoint",
    "evaluate": "measure the checkpoints of a run on other text or other windows",
    "corpora": "list domains of text, build a corpus of several, describe it",
    "import": "make surfaces of losses in a table: CSV, JSONL, Parquet",
    "fit": "fit a law to every curve of a file or run, one row a curve",
    "forecast": "forecast where the loss of a run will end",
    "backtest": "what would have been forecast of finished runs, and did the intervals hold?",
    "report": "fit, forecast and draw a run: report.html and summary.json",
    "sweep": "many runs from one file, each made once and kept",
    "reproduce": "an experiment of the papers: its runs, tables, figures and page",
    "models": "sizes by name: parameters, memory, and how long they would train here",
}
MODULES = {"import": "import_table"}  # no module can have the name of a verb that Python keeps for itself
TUNED = ("demo", "train", "evaluate", "fit")
# XLA's temporaries fault in hundreds of megabytes of fresh pages at every step; keeping them makes a step on a CPU
# about 1.5 times as fast. glibc reads this before main(), so the command starts itself once more.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (
        ("hugetlb", 1),
        ("mmap_threshold", 4294967296),
        ("trim_threshold", 8589934592),
        ("top_pad", 268435456),
    )
)


def main() -> None:
    """The entry point of `tsl`."""
    try:
        code = _command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _command(arguments: list[str]) -> int:
    """The exit code of one command line."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_screen())
        return 0
    if arguments[0] == "--version":
        from tsl_jax import __version__

        print(f"tsl_jax {__version__}")
        return 0
    verb, rest = arguments[0], [a for a in arguments[1:] if a != "--debug"]
    if verb not in VERBS:
        return _say(f"expected one of {', '.join(VERBS)}, found {verb!r}; see tsl --help", code=2)
    if verb in TUNED and not {"-h", "--help"} & set(rest):
        _tune_allocator()
    return _run(verb, rest, debug="--debug" in arguments)


def _screen() -> str:
    verbs = "\n".join(f"  {verb:<10}{line}" for verb, line in VERBS.items())
    return (
        "tsl: loss dynamics of language-model pre-training\n\n"
        f"usage: tsl VERB [options]        tsl VERB --help explains a verb\n\n{verbs}\n\n"
        "every verb: --config FILE.yaml   options from a file; those on the command line win\n"
        "            --debug              show the traceback of an error\n"
        "exit codes: 0 done, 2 a mistake that the message explains, 130 interrupted"
    )


def _run(verb: str, arguments: list[str], *, debug: bool) -> int:
    """Parse and run one verb; its exit code."""
    from tsl_jax.commands import options

    _keep_programs()
    try:
        module = import_module(f"tsl_jax.commands.{MODULES.get(verb, verb)}")
        options.show_warnings_as_sentences()
        module.run(options.parse(module.Command, verb, arguments))
    except KeyboardInterrupt as stopped:
        told = str(stopped) or "what was computed is on disk: repeat the command to go on"
        return _say(f"interrupted; {told}", code=130)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        return _say(_sentence(error), code=2)
    except Exception as error:
        if debug:
            raise
        told = f"unexpected {type(error).__name__}: {error}"
        return _say(f"{told}\nThis is a defect of tsl_jax; --debug shows where it happened", code=1)
    return 0


def _sentence(error: Exception) -> str:
    """The error in words; the system's own errors name the file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _say(sentence: str, *, code: int) -> int:
    print(f"tsl: {sentence}", file=sys.stderr)
    return code


def _keep_programs() -> None:
    """Let jax keep what it compiles in the cache folder (seconds at the next start), unless told where or not to."""
    from tsl_jax.data.cache import root

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root() / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _tune_allocator() -> None:
    """Start this command once more with glibc's allocator tuned (Linux; TSL_JAX_NO_TUNE=1 leaves it alone)."""
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or os.environ.get("TSL_JAX_NO_TUNE"):
        return
    if "libc" not in str(_libc_version()):
        return
    environment: dict[str, Any] = {**os.environ, "GLIBC_TUNABLES": TUNABLES}
    os.execve(sys.executable, [sys.executable, "-m", "tsl_jax.cli", *sys.argv[1:]], environment)


def _libc_version() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError, AttributeError):
        return None


if __name__ == "__main__":
    main()
