"""A run in a sentence: what it was to do, how far it is, and what it changed."""

import math

import numpy as np

from adaptsft.analysis.report.changes import changes
from adaptsft.analysis.report.folder import RunFolder, number
from adaptsft.analysis.report.text import duration, figures


def state(run: RunFolder) -> tuple[str, str]:
    """(finished, unfinished or started; a note on it, or empty)."""
    planned, step = run.planned, run.step
    if run.final and (planned is None or step >= planned or not run.rows):
        return "finished", ""
    if planned and step >= planned:
        note = "all steps are taken, but there is no final/: it was removed, or is being written"
        return "finished", note
    if not run.rows:
        return "started", "no step logged yet"
    of = f" of {planned:,}" if planned else ""
    ago = f"last written {duration(run.age)} before this report" if run.age is not None else ""
    seconds, left = run.column("seconds")[-50:], math.nan
    if planned and np.isfinite(seconds).any():
        left = (planned - step) * float(np.nanmean(seconds))
    eta = f"; {duration(left)} to go if it still runs" if left > 0 else ""
    return "unfinished", f"at step {step:,}{of}; {ago}{eta}"


def objective(run: RunFolder) -> str:
    """The objective with its settings, as on a command line."""
    get = run.config.get
    name = str(get("objective.name", "unknown objective"))
    settings = []
    if name in ("alpha", "mixture", "concentration") or get("objective.alpha"):
        settings.append(f"alpha={figures(get('objective.alpha'))}")
    if get("objective.floor"):
        settings.append(f"floor={figures(get('objective.floor'))}")
    for key, unused in (("lower", 0.0), ("upper", 1.0)):
        value, quantile = get(f"objective.{key}"), get(f"objective.{key}_quantile")
        if isinstance(quantile, int | float):
            settings.append(f"{key}_quantile={figures(quantile)}")
        elif "threshold" in name and number(value) != unused:
            settings.append(f"{key}={figures(value)}")
    if get("objective.reference") == "base":
        settings.append("reference=base")
    settings += [
        f"{key.rsplit('.', 1)[1]}={figures(value)}"
        for key, value in run.config.items()
        if key.startswith("objective.params.")
    ]
    return name + (f" ({', '.join(settings)})" if settings else "")


def controller(run: RunFolder) -> str:
    """Its name, or empty where nothing moves the objective."""
    name = str(run.config.get("controller.name", "fixed"))
    return "" if name == "fixed" else name


def method(run: RunFolder) -> str:
    """Objective and controller; runs of the same method have comparable losses."""
    return objective(run) + controller(run)


def sentence(run: RunFolder, best: str) -> str:
    """`best` is the best task result as text, or empty."""
    moved = controller(run)
    text = f"Objective {objective(run)}"
    if moved:
        text += f", moved by the controller {moved}"
    if not run.rows:
        return f"{text}: {state(run)[1]}."
    tokens, examples = np.nansum(run.column("tokens")), np.nansum(run.column("sequences"))
    spent = duration(float(np.nansum(run.column("seconds"))))
    text += (
        f": {run.step:,} steps, {tokens:,.0f} target tokens in {examples:,.0f} examples, {spent}."
    )
    for change in changes(run)[:1]:
        before, after = change.before, change.after
        nll = f"{figures(before.get('nll'))} → {figures(after.get('nll'))}"
        p = f"{figures(before['mean_p'])} → {figures(after['mean_p'])}"
        when = f"{change.before_label} → {change.after_label}"
        text += f" On {change.basis}, NLL went {nll}, mean p {p} ({when})."
    return text + (f" Best task result: {best}." if best else "")
