"""Where the figures' numbers come from: rows.json, results of the lab, diagnoses, run folders."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError
from adaptsft.files import distinct
from benchmarks.lab import plots, report, scores
from benchmarks.paper.figures.curves import Curve

FIELDS = {"model": str, "objective": str, "column": str, "value": (int, float)}
NUMBERS = ("value", "se", "n", "alpha", "percentile", "billions", "mean_p")
WHAT = "give rows.json files, folders of adaptsft.diagnose, or results of the lab by --lab"


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a rows.json (a list of objects), or of the base_stats.json of a diagnosis or its
    folder. Raises ConfigError."""
    found = next(
        (
            file
            for file in (path, path / "base_stats.json", path / "diagnosis" / "base_stats.json")
            if file.is_file()
        ),
        None,
    )
    if found is None:
        raise ConfigError(f"{path}: neither a file nor a folder with base_stats.json; {WHAT}")
    content = _json(found)
    if isinstance(content, dict) and "sources" in content:
        return diagnosed(found, content)
    if not isinstance(content, list):
        raise ConfigError(f"{found}: a list of rows was expected, or base_stats.json; {WHAT}")
    for number, row in enumerate(content):
        _check(f"{found}, row {number}", row)
    return content


def diagnosed(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per source of base_stats.json: mean p and the share above .55, with intervals."""
    fields = ("mean_p", "mean_p_interval", "above_0.55", "above_0.55_interval")
    try:
        model = Path(content["model"]["path"]).name
        return [
            {"model": model, "objective": "base", "column": name, "origin": "ours"}
            | {field: source[field] for field in fields}
            for name, source in content["sources"].items()
        ]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: {error} is missing: not a file of adaptsft.diagnose, or of another version"
        ) from None


def lab(place: Path) -> list[dict[str, Any]]:
    """Rows of the lab's folder or results.json. Raises ConfigError."""
    results = report.read(place)
    return plots.rows(
        {metric: scores.scores(results, metric) for metric in (*scores.METRICS, "train_mean_p")}
    )


def lab_curves(place: Path) -> list[Curve]:
    return plots.moves(report.read(place))


def runs(folders: list[Path]) -> list[Curve]:
    """alpha, lower and upper at every step of the runs' metrics.jsonl, per source. Raises
    ConfigError."""
    return [
        curve
        for folder, name in zip(folders, distinct(folders), strict=True)
        for curve in _run(folder, name)
    ]


def _run(folder: Path, name: str) -> list[Curve]:
    path = folder / "metrics.jsonl"
    try:
        text = path.read_text()
    except OSError:
        raise ConfigError(
            f"{folder}: no metrics.jsonl; give run folders (run_dir of adaptsft.train)"
        ) from None
    lines = text[
        : text.rfind("\n") + 1
    ].splitlines()  # a last line without its end is being written, or was cut by a kill
    steps = [_step(path, number, line) for number, line in enumerate(lines, 1)]
    curves = []
    for source in steps[0].get("sources", {"": None}) if steps else []:
        settings = [step["sources"][source] if source else step for step in steps]
        for quantity in ("alpha", "lower", "upper"):
            values = [setting[quantity] for setting in settings]
            curves.append(Curve(name, source, quantity, [step["step"] for step in steps], values))
    return curves


def only(found: list[dict[str, Any]], filters: list[str]) -> list[dict[str, Any]]:
    """Rows whose fields match every FIELD=PATTERN (shell patterns; a field's alternatives by `|`).
    Raises ConfigError if none is left."""
    for text in filters:
        field, equals, patterns = text.partition("=")
        if not equals:
            raise ConfigError(
                f"--only {text}: write FIELD=PATTERN, for example model=Qwen* or "
                "objective=nll|neg_p"
            )
        values = sorted({str(row.get(field)) for row in found})
        found = [
            row
            for row in found
            if any(fnmatchcase(str(row.get(field)), pattern) for pattern in patterns.split("|"))
        ]
        if not found:
            raise ConfigError(
                f"--only {text}: no row is left; {field} is one of: {', '.join(values[:20])}"
            )
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None


def _step(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"step", "alpha", "lower", "upper"} <= row.keys():
        raise ConfigError(
            f"{path}, line {number}: not a step of adaptsft.train (step, alpha, lower, upper)"
        )
    return row


def _check(where: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: {row!r} is no object")
    for field, kind in FIELDS.items():
        if not isinstance(row.get(field), kind):
            raise ConfigError(
                f"{where}: {field} is {row.get(field)!r}; a row needs model, objective and column "
                "(text) and value (a number)"
            )
    for field in NUMBERS:
        if row.get(field) is not None and not isinstance(row[field], (int, float)):
            raise ConfigError(f"{where}: {field} is {row[field]!r}, not a number")
    if row.get("side") not in (None, ">=", "<="):
        raise ConfigError(f"{where}: side is {row['side']!r}; it must be >= or <=")
