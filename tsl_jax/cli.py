"""`tsl`: one screen of verbs. Nothing heavy is imported before the verb is known.

A verb such as `fit` is a frozen dataclass `FitCommand`, whose fields are its options, and a function `run_fit`, which
gets it, in a module of `tsl_jax.commands`. A user's mistake ends in one sentence and exit code 2, Ctrl-C in 130,
SIGTERM in 143, SIGHUP in 129; `--debug` shows the traceback.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module

from tsl_jax import processes

VERBS = {  # verb: (its module in tsl_jax.commands, what it does)
    "demo": ("train", "train, fit, forecast and draw an embedded example: minutes on two cores"),
    "train": ("train", "train a decoder on text, measuring the loss of every position at every checkpoint"),
    "evaluate": ("evaluate", "measure the checkpoints of a run, or of a published model (--hf), on text"),
    "benchmark": ("benchmark", "zero-shot accuracies of the checkpoints of a run, or of a published model (--hf)"),
    "export": ("evaluate", "write a checkpoint of a run in the format of transformers"),
    "corpora": ("corpora", "list domains of text, build a corpus of several, describe it"),
    "import": ("import_table", "make surfaces of any log: of trainers, trackers, tables"),
    "fit": ("fit", "fit a law to every curve of a file or run, one row a curve"),
    "forecast": ("forecast", "forecast where the loss of a run will end"),
    "watch": ("watch", "beside a running job: where it will end as known now, and whether to stop it"),
    "check": ("watch", "is a log still inside the forecast that was registered of it? exit code 5 if not"),
    "score": ("watch", "settle a registered forecast: what came, beside what was said"),
    "backtest": ("backtest", "what would have been forecast of finished runs, and did the intervals hold?"),
    "compare": ("compare", "which of several runs, or groups of seeds, ends lower, and how sure that is"),
    "select": ("select", "which data mixture, or other candidate, of runs or tables: best, stop, try next"),
    "report": ("report", "fit, forecast and draw a run: report.html and summary.json"),
    "sweep": ("sweep", "many runs from one file, each made once and kept"),
    "reproduce": ("reproduce", "an experiment of the papers: its runs, tables, figures and page"),
    "scale": ("scale", "scaling laws of many runs: fit, predict, allocate compute, which run next, simulate one"),
    "models": ("models", "sizes by name: parameters, memory, and how long they would train here"),
    "fits": ("fits", "does a model fit on GPUs or TPUs that are not here? its step is compiled for them"),
}
HELP = "\n".join(
    (
        "tsl VERB [options]: loss dynamics of language-model pre-training    tsl VERB --help explains one",
        *(f"  {verb:<10}{sentence}" for verb, (_, sentence) in VERBS.items()),
        "every verb: --config FILE.yaml, --debug (tracebacks)    tsl --print-completion bash|zsh|tcsh",
        "exit codes: 0 done, 2 a mistake, 3 stopped early, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP",
    )
)
TUNED = ("demo", "train", "evaluate", "benchmark", "fit")
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
        with processes.interruptible():
            try:
                processes.forget_current_folder()
                if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be of any bytes
                    sys.stdout.reconfigure(errors="backslashreplace")
                code = _command_line(sys.argv[1:])
                sys.stdout.flush()
            except KeyboardInterrupt:  # before the verb was known, or after it
                code = _interrupted("")
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code > 128:
        processes.exit_at_once(code)
    sys.exit(code)


def _command_line(arguments: list[str]) -> int:
    """The exit code of one command line."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] == "--version":
        from tsl_jax import __version__

        print(f"tsl_jax {__version__}")
        return 0
    if arguments[0] == "--print-completion":
        return _print_completion(arguments[1:])
    verb, options = arguments[0], [argument for argument in arguments[1:] if argument != "--debug"]
    if verb not in VERBS:
        return _fail(f"expected one of {', '.join(VERBS)}, found {verb!r}; see tsl --help", code=2)
    if verb in TUNED and not {"-h", "--help"} & set(options):
        _restart_with_tuned_allocator()
    return run_verb(verb, options, debug="--debug" in arguments)


def _print_completion(shells: list[str]) -> int:
    """Print the script that completes verbs and their options in a shell."""
    from tsl_jax.commands import options

    if len(shells) != 1 or shells[0] not in options.SHELLS:
        found = " ".join(shells) or "nothing"
        return _fail(f"--print-completion: expected one of {', '.join(options.SHELLS)}, found {found}", code=2)
    modules = {verb: import_module(f"tsl_jax.commands.{module}") for verb, (module, _) in VERBS.items()}
    commands = {verb: getattr(module, f"{verb.title()}Command") for verb, module in modules.items()}
    try:
        print(options.completion(commands, shells[0]), end="")
    except ImportError:
        return _fail("--print-completion tcsh needs the package shtab: pip install shtab", code=2)
    return 0


def run_verb(verb: str, arguments: list[str], *, debug: bool) -> int:
    """Parse the options of a verb and run it; its exit code."""
    with processes.interruptible():
        return _run(verb, arguments, debug)


def _run(verb: str, arguments: list[str], debug: bool) -> int:
    from tsl_jax.commands import options
    from tsl_jax.data.cache import root

    # jax keeps what it compiles, unless the user says where or not to: seconds at the next start
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root() / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    try:
        module = import_module(f"tsl_jax.commands.{VERBS[verb][0]}")
        options.show_warnings_as_sentences()
        command = options.parse(getattr(module, f"{verb.title()}Command"), verb, arguments)
        return getattr(module, f"run_{verb}")(command) or 0
    except KeyboardInterrupt as interrupt:
        return _interrupted(str(interrupt))
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:  # the system's own, which is no sentence
            return _fail(f"{error.filename}: {error.strerror}", code=2)
        return _fail(str(error), code=2)
    except Exception as error:
        if debug:
            raise
        if processes.received():  # a library has made an error of its own of the interrupt
            return _interrupted("")
        if isinstance(error, MemoryError):
            return _fail("memory is used up; give less, or a smaller model or batch", code=2)
        if isinstance(error, RecursionError):
            return _fail("what was given is nested too deep, or refers to itself; write it out flat", code=2)
        defect = "This is a defect of tsl_jax; --debug shows where it happened"
        return _fail(f"unexpected {type(error).__name__}: {error}", defect, code=1)


def _interrupted(advice: str) -> int:
    sentence = f"interrupted; {advice or processes.ON_DISK}"
    return _fail(sentence, code=128 + (processes.received() or signal.SIGINT))


def _fail(sentence: str, last: str = "", *, code: int) -> int:
    print("\n".join(filter(None, [processes.message(f"tsl: {sentence}"), last])), file=sys.stderr)
    return code


def _restart_with_tuned_allocator() -> None:
    """Start this command once more with glibc's allocator tuned (Linux; TSL_JAX_NO_TUNE=1 leaves it alone)."""
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or os.environ.get("TSL_JAX_NO_TUNE"):
        return
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError, AttributeError):  # another C library does not know the name
        return
    if libc:
        environment = {**processes.environment(), "GLIBC_TUNABLES": TUNABLES}
        os.execve(sys.executable, [*processes.python("-m"), "tsl_jax.cli", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
