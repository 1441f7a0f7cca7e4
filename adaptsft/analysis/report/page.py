"""The page: everything that was read and drawn, put into page.html by Jinja with autoescaping on.

Whatever comes from a run (names, settings, model output) is escaped, and characters that are not seen or that turn the text around are
made visible. The page may load nothing and run nothing but the one script inside it: its Content-Security-Policy names that by hash.
"""

import base64
import hashlib
import importlib.metadata
import json
import math
import time
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from adaptsft.analysis.report import curves, findings, outputs
from adaptsft.analysis.report.charts import HEIGHT, WIDTH, Chart, layout
from adaptsft.analysis.report.findings import Finding, changes, figures
from adaptsft.analysis.report.folder import SOURCES, RunFolder, mapping, number
from adaptsft.config.schema import all_keys

NAME, VALUE, TEXT = 80, 400, 1500  # characters of a name, a setting and a text that are shown
POLICY = "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"
MAX_SKIPPED = 20  # steps listed
INVISIBLE = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
)  # Unicode categories: control, format (bidi and zero-width), surrogates, …

CAPABILITY = (
    ("mean_p", "mean p"),
    ("nll", "NLL"),
    ("below_0.2", "p < .2"),
    ("above_0.55", "p > .55"),
    ("top1", "likeliest"),
)


def visible(value: Any) -> Any:
    """Text whose invisible characters are shown as ⟨U+202E⟩; line breaks and tabs stay. Anything else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    seen = {
        c
        for c in set(value)
        if unicodedata.category(c) in INVISIBLE and c not in "\n\t\u200c\u200d"
    }
    return value.translate({ord(c): f"⟨U+{ord(c):04X}⟩" for c in seen}) if seen else value


def cut(value: Any, longest: int = NAME) -> str:
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, default=str)
        if isinstance(value, list | dict)
        else str(value)
    )
    return (
        text
        if len(text) <= longest
        else f"{text[:longest]}… [cut: {len(text) - longest:,} more characters]"
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
    style, script = (
        files("adaptsft.analysis.report").joinpath(name).read_text()
        for name in ("page.css", "page.js")
    )
    environment = Environment(
        autoescape=True, finalize=visible, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cut": cut, "figures": figures}
    template = environment.from_string(
        files("adaptsft.analysis.report").joinpath("page.html").read_text()
    )
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
    """Runs and text, what holds of several runs said once."""
    texts = dict.fromkeys(finding.text for finding in found)
    return [
        (
            list(
                dict.fromkeys(i for finding in found if finding.text == text for i in finding.runs)
            ),
            text,
        )
        for text in texts
    ]


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _clean(chart: Chart) -> None:
    """Names that came from data, ready for SVG, PNG and the script."""
    chart.title = visible(cut(chart.title))
    for line in chart.lines:
        line.label = visible(cut(line.label))
    chart.y_ticks = chart.y_ticks and [(value, visible(label)) for value, label in chart.y_ticks]


def _overview(number_: int, run: RunFolder, best: str) -> dict[str, Any]:
    kind, said = findings.state(run)
    left = run.step / run.planned if run.planned and kind == "unfinished" else None
    return {
        "number": number_,
        "label": run.label,
        "path": str(run.path),
        "state": kind,
        "progress": left,
        "said": said,
        "sentence": findings.sentence(run, best),
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
                values = [
                    (number(before.get(key)), number(after.get(key))) for key, _ in CAPABILITY
                ]
                tables.setdefault(change.basis, []).append(
                    {
                        "run": i,
                        "label": run.label,
                        "source": source,
                        "when": f"{change.before_label} → {change.after_label}"
                        if source is None
                        else "",
                        "place": " → ".join(curves.place(side) for side in (before, after)),
                        "tokens": (number(before.get("tokens")), number(after.get("tokens"))),
                        "values": values,
                    }
                )
    return [
        {"basis": basis, "rows": rows, "several": any(row["source"] is not None for row in rows)}
        for basis, rows in tables.items()
    ]


def _settings(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Keys whose values differ between the runs, or of one run from the defaults; and all of them."""
    defaults = {name: default for name, _, default in all_keys()}
    keys = list(
        dict.fromkeys(key for run in runs for key in run.config)
    )  # an older run lacks keys that are newer: they had the default
    table = {
        key: [run.config.get(key, defaults.get(key)) if run.config else None for run in runs]
        for key in keys
    }
    shown = {key: [_setting(value) for value in values] for key, values in table.items()}
    known = [
        i for i, run in enumerate(runs) if run.config
    ]  # one whose config.yaml is missing differs in nothing that is known
    differ = [key for key in keys if key != "run_dir" and len({shown[key][i] for i in known}) > 1]
    chosen = [
        key
        for key in keys
        if key not in differ
        and any(value != defaults.get(key) for value in table[key] if value is not None)
    ]
    return {"all": shown, "differ": differ, "chosen": chosen}


def _setting(value: Any) -> str:
    return cut(
        ""
        if value is None
        else json.dumps(value)
        if isinstance(value, bool) or value == ""
        else value,
        VALUE,
    )


def _environments(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Rows of (what, one value per run)."""
    flat = []
    for run in runs:
        found = {
            "command": run.environment.get("command"),
            "ranks": run.environment.get("world_size"),
        }
        flat.append(
            found
            | mapping(run.environment.get("machine"))
            | mapping(run.environment.get("versions"))
        )
    names = list(
        dict.fromkeys(name for found in flat for name, value in found.items() if value is not None)
    )
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
