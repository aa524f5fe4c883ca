"""The run's facts as tables: what was trained, on what, by which plan, measured how. Long values are folded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsl_jax.reporting.markup import Html, folded, section, table, text

LONG = 110  # characters that fit two lines of a phone; longer values are folded
NAMES = {
    "run": "run",
    "n_params": "parameters (without embeddings)",
    "n_params_embedding": "parameters of embeddings",
    "model": "model",
    "schedule": "learning-rate schedule",
    "changes": "changes in mid-run",
    "batch_tokens": "tokens a step",
    "windows": "evaluation windows",
    "document_boundary": "document boundaries",
    "corpus": "corpus",
    "seed": "seed",
    "versions": "versions",
    "git_commit": "git commit",
    "config_hash": "hash of the configuration",
    "units": "units of loss",
    "loss_is": "loss",
    "warmup_tokens": "tokens of the warm-up",
    "source": "source",
}
HIDDEN = ("header",)  # the surface file's own copy of all the rest


def facts(given: Mapping[str, str] | None, attrs: Mapping[str, Any]) -> str:
    """The section, the caller's facts first, then the surface's in the order of `NAMES`."""
    ordered = [key for key in NAMES if key in attrs] + [str(key) for key in attrs if key not in NAMES]
    known = {NAMES.get(key, key): attrs[key] for key in ordered if key not in HIDDEN}
    rows = [(name, value(v)) for name, v in {**(given or {}), **known}.items() if v is not None]
    return section("facts", "The run’s facts", table((), rows, "", "facts")) if rows else ""


def value(of: Any) -> Html:
    """Markup of any value: mappings as tables or short lists, long text folded."""
    if hasattr(of, "item") and getattr(of, "size", 0) == 1:
        of = of.item()  # a numpy scalar
    if isinstance(of, list | tuple) and of and all(isinstance(one, Mapping) for one in of):
        of = {f"{number} of {len(of)}": one for number, one in enumerate(of, 1)}
    if isinstance(of, Mapping):
        return _mapping(of)
    if isinstance(of, bool) or not isinstance(of, int | float):
        return _string(_joined(of))
    return Html(f"{of:,}" if isinstance(of, int) and abs(of) >= 10_000 else f"{of:g}" if of == of else "–")


def _joined(of: Any) -> str:
    return ", ".join(str(one) for one in of) if isinstance(of, list | tuple) else str(of)


def _string(of: str) -> Html:
    if len(of) <= LONG:
        return Html(text(of))
    return Html(folded(of[: LONG // 2].rstrip() + " …", f"<p>{text(of)}</p>"))


def _mapping(of: Mapping[Any, Any]) -> Html:
    short = ", ".join(f"{str(key).replace('_', ' ')} {one}" for key, one in of.items())
    if len(short) <= LONG and not any(isinstance(one, Mapping) for one in of.values()):
        return _string(short)
    rows = [(str(key).replace("_", " "), value(one)) for key, one in of.items()]
    preview = ", ".join(str(key).replace("_", " ") for key in of)
    summary = preview if len(preview) <= LONG // 2 else preview[: LONG // 2].rsplit(",", 1)[0] + " …"
    return Html(folded(summary, table((), rows, "", "facts")))
