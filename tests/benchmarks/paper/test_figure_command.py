"""The figures' command: what it writes, and what it refuses."""

import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks.paper.figures.command import main
from tests.benchmarks.paper.figure_rows import row
from tests.conftest import REPO


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ("focl", "did you mean focal"),
        ("focl:2", "did you mean focal"),
        ("nll:3", "nll has no parameter"),
        ("alpha:x", "x is no number"),
        ("focal:gama=2", r"params\.gama"),
        ("nll:mean_p=0.3", "does not read mean_p"),
    ],
)
def test_weights_refuse_what_is_no_objective(specification, words, capsys):
    assert main(["weights", specification]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        (
            "quantiles",
            [row("nll", 1.0, alpha=1.0)],
            "none of 1 rows has percentile and side; they have: alpha, column",
        ),
        ("quantiles", [row("nll", 1.0, percentile=0, side=">=")], "a line needs several values"),
        ("alpha", [row("nll", 1.0)], "none of 1 rows has alpha"),
        (
            "alpha",
            [row("nll", 1.0, alpha=0.0)],
            r"a line needs several values, but there is one each \(M: 0\)",
        ),
        ("scale", [row("nll", 1.0)], "billions"),
        ("continuum", [row("nll", 1.0, mean_p=0.5)], "mean_p with objective base"),
        ("alpha", [{"objective": "nll"}], "row 0: model is None"),
        ("alpha", [row("nll", 1.0, alpha="one")], "row 0: alpha is 'one', not a number"),
        ("quantiles", [row("nll", 1.0, percentile=1, side=">")], "side is '>'"),
        ("alpha", {"rows": []}, "a list of rows was expected"),
        ("alpha", "missing", "neither a file nor a folder with base_stats.json"),
    ],
)
def test_rows_that_cannot_fill_a_figure_are_refused(kind, rows, words, tmp_path, capsys):
    file = tmp_path / "rows.json"
    if rows != "missing":
        file.write_text(json.dumps(rows))
    assert main([kind, str(file), "--out", str(tmp_path)]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not list(tmp_path.glob("*.png"))


def test_the_command_writes_png_and_pdf(tmp_path, capsys):
    file = tmp_path / "rows.json"
    file.write_text(
        json.dumps(
            [row("alpha", 1.0 + x, alpha=x, model=model) for x in (0, 1) for model in ("A", "B")]
        )
    )
    assert main(["alpha", str(file), "--only", "model=A", "--out", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "new" / f"alpha.{suffix}") for suffix in ("png", "pdf")
    ]
    assert (tmp_path / "new" / "alpha.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "alpha.pdf").read_bytes().startswith(b"%PDF")
    assert main(["alpha", str(file), "--only", "model=C"]) == 2
    assert "model is one of: A, B" in capsys.readouterr().err
    assert (
        main(["trajectories", str(tmp_path)]) == 2 and "no metrics.jsonl" in capsys.readouterr().err
    )


def test_figures_do_not_need_a_display_or_pyplot():
    code = (
        "import sys; from benchmarks.paper.figures.formulas import weights; weights(); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=REPO,
        env=os.environ | {"DISPLAY": "", "MPLBACKEND": "TkAgg"},
    )
