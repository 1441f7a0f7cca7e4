"""The page: everything that was read and drawn, put into page.html by Jinja with autoescaping on.

Whatever comes from a run (names, settings, model output) is escaped, and characters that are not
seen or that turn the text around are made visible. The page may load nothing and run nothing but
the one script inside it: its Content-Security-Policy names that by hash.
"""

import base64
import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from adaptsft.analysis.report import curves, findings, outputs, summary
from adaptsft.analysis.report.changes import changes
from adaptsft.analysis.report.charts import Chart
from adaptsft.analysis.report.findings import Finding
from adaptsft.analysis.report.folder import SOURCES, RunFolder, mapping, number
from adaptsft.analysis.report.svg import HEIGHT, WIDTH, layout
from adaptsft.analysis.report.text import TEXT, VALUE, cut, figures, visible
from adaptsft.config.schema import all_keys
from adaptsft.evals.tables import OF_SAMPLES

POLICY = (
    "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; "
    "base-uri 'none'; form-action 'none'"
)
MAX_SKIPPED = 20  # steps listed

CAPABILITY = (
    ("mean_p", "mean p"),
    ("nll", "NLL"),
    ("below_0.2", "p < .2"),
    ("above_0.55", "p > .55"),
    ("top1", "likeliest"),
)


def build(
    runs: Sequence[RunFolder], evaluations: outputs.Evaluations, notes: list[str]
) -> tuple[str, list[Chart]]:
    """(the page, its charts)."""
    sourced, left_out = curves.per_source(runs)
    place = curves.continuum(runs)
    groups = {
        "capability": ([place] if place else []) + curves.before_and_after(runs),
        "training": curves.training(runs),
        "sources": sourced,
        "heat": curves.heatmaps(runs),
        "held_out": curves.held_out(runs),
        "tasks": curves.tasks(runs),
    }
    charts = [chart for group in groups.values() for chart in group]
    for chart in charts:
        _clean(chart)
    warned = [
        *findings.of_all(list(runs)),
        *(f for i, run in enumerate(runs) for f in findings.of_run(i, run)),
        *evaluations.findings,
    ]
    folder = files("adaptsft.analysis.report")
    style, script = (folder.joinpath(name).read_text() for name in ("page.css", "page.js"))
    environment = Environment(
        autoescape=True, finalize=visible, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cut": cut, "figures": figures}
    template = environment.from_string(folder.joinpath("page.html").read_text())
    page = template.render(
        width=WIDTH,
        height=HEIGHT,
        style=Markup(style),
        script=Markup(script),
        policy=POLICY.format(style=_hash(style), script=_hash(script)),
        version=_version(),
        written=time.strftime("%Y-%m-%d %H:%M"),
        runs=[_overview(i, run, evaluations.best.get(i, "")) for i, run in enumerate(runs)],
        warnings=_merged([f for f in warned if f.warning]),
        remarks=_merged([f for f in warned if not f.warning]),
        missing=_merged(
            [Finding([], note) for note in notes]
            + [Finding([i], note) for i, run in enumerate(runs) for note in run.notes]
        ),
        groups={
            name: [(chart, layout(chart)) for chart in group] for name, group in groups.items()
        },
        left_out=left_out,
        averaged=any(line.low is not None for chart in charts for line in chart.lines),
        metrics=CAPABILITY,
        capability=_capability(runs),
        evaluations=evaluations,
        score=outputs.score,
        of_samples=OF_SAMPLES,
        settings=_settings(runs),
        environments=_environments(runs),
        skipped=[
            (i, run.skipped[:MAX_SKIPPED], len(run.skipped))
            for i, run in enumerate(runs)
            if run.skipped
        ],
        hover={
            chart.name: _hover(chart) for chart in charts if chart.heat is None and not chart.bands
        },
        long=TEXT,
        middle=VALUE,
    )
    return page, charts


def _version() -> str:
    try:
        return importlib.metadata.version("adaptsft")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _merged(found: list[Finding]) -> list[tuple[list[int], str]]:
    """Runs and text; a text that holds of several runs is there once."""
    texts: dict[str, dict[int, None]] = {}  # as sets, in order
    for finding in found:
        texts.setdefault(finding.text, {}).update(dict.fromkeys(finding.runs))
    return [(list(runs), text) for text, runs in texts.items()]


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _clean(chart: Chart) -> None:
    """Names that came from data, ready for SVG, PNG and the script."""
    chart.title = visible(cut(chart.title))
    for line in chart.lines:
        line.label = visible(cut(line.label))
    chart.y_ticks = chart.y_ticks and [(value, visible(label)) for value, label in chart.y_ticks]


def _overview(number_: int, run: RunFolder, best: str) -> dict[str, Any]:
    kind, note = summary.state(run)
    left = run.step / run.planned if run.planned and kind == "unfinished" else None
    return {
        "number": number_,
        "label": run.label,
        "path": str(run.path),
        "state": kind,
        "progress": left,
        "note": note,
        "sentence": summary.sentence(run, best),
    }


def _capability(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """A table per basis of comparison: rows are runs and their sources."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for i, run in enumerate(runs):
        for change in changes(run):
            for source in (None, *run.sources[:SOURCES]):
                before, after = change.of(source)
                if not before or not after:
                    continue
                tables.setdefault(change.basis, []).append(
                    {
                        "run": i,
                        "label": run.label,
                        "source": source,
                        "when": "" if source else f"{change.before_label} → {change.after_label}",
                        "place": " → ".join(curves.place(side) for side in (before, after)),
                        "tokens": (number(before.get("tokens")), number(after.get("tokens"))),
                        "values": [
                            (number(before.get(key)), number(after.get(key)))
                            for key, _ in CAPABILITY
                        ],
                    }
                )
    return [
        {"basis": basis, "rows": rows, "several": any(row["source"] is not None for row in rows)}
        for basis, rows in tables.items()
    ]


def _settings(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Keys whose values differ between the runs, or of one run from the defaults; and all."""
    defaults = {name: default for name, _, default in all_keys()}
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    # an older run lacks keys that are newer: they had the default
    table = {
        key: [run.config.get(key, defaults.get(key)) if run.config else None for run in runs]
        for key in keys
    }
    shown = {key: [_setting(value) for value in values] for key, values in table.items()}
    # one whose config.yaml is missing differs in nothing that is known
    known = [i for i, run in enumerate(runs) if run.config]
    differ = [key for key in keys if key != "run_dir" and len({shown[key][i] for i in known}) > 1]
    own = {
        key
        for key, values in table.items()
        if any(value != defaults.get(key) for value in values if value is not None)
    }
    return {
        "all": shown,
        "differ": differ,
        "chosen": [key for key in keys if key in own and key not in differ],
    }


def _setting(value: Any) -> str:
    if value is None:
        return ""
    return cut(json.dumps(value) if isinstance(value, bool) or value == "" else value, VALUE)


def _environments(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Rows of (what, one value per run)."""
    flat = []
    for run in runs:
        environment = run.environment
        own = {"command": environment.get("command"), "ranks": environment.get("world_size")}
        parts = [own, mapping(environment.get("machine")), mapping(environment.get("versions"))]
        flat.append({name: value for part in parts for name, value in part.items()})
    names = dict.fromkeys(k for found in flat for k, value in found.items() if value is not None)
    return [
        (name, ["" if found.get(name) is None else cut(found[name], VALUE) for found in flat])
        for name in names
    ]


def _hover(chart: Chart) -> dict[str, Any]:
    """What the script shows under the pointer: the numbers of the lines, as in metrics.jsonl."""
    return {
        "lines": [
            {
                "run": line.run,
                "label": line.label,
                "x": list(line.x),
                "y": [_finite(y) for y in line.y],
            }
            for line in chart.lines
        ],
        "log_odds": chart.x_ticks is not None,
    }


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
