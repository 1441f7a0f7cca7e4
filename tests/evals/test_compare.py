"""`evals compare`: two runs item by item, and the answers that a person should look at."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

from adaptsft.evals import samples
from tests.conftest import REPO
from tests.evals.pipeline import BOTH, M1_ALONE, NEITHER, evals

PAGE = REPO / "docs" / "evaluation.md"


def figures(text: str, metric: str) -> list[str]:
    row = next(line for line in text.splitlines() if re.search(rf" {metric}  ", line))
    return re.sub(r" to ", "/", row.partition(metric)[2]).split()


def items(text: str) -> list[str]:
    return re.findall(r"── \d+ of \d+: item (\S+): ", text)


def test_the_page_shows_what_its_commands_print(tmp_path, monkeypatch, capsys):
    section = PAGE.read_text().partition("## Item by item")[2].partition("\n## ")[0]
    commands, shown = re.findall(r"```(?:sh|text)\n(.*?)```", section, re.DOTALL)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "examples").symlink_to(REPO / "examples")
    monkeypatch.chdir(tmp_path)
    lines = commands.replace("\\\n", " ").splitlines()
    for line in lines:
        capsys.readouterr()
        words = shlex.split(line, comments=True)
        assert words[:3] == ["python", "-m", "adaptsft.evals"]
        assert evals(*words[3:]) == 0
    assert len(lines) == 3 and capsys.readouterr().out.strip() == shown.strip()


def test_both_directions(evaluated, compared):
    a = evaluated("a", [BOTH] * 6 + [NEITHER] * 2 + [M1_ALONE] * 2)
    b = evaluated("b", [NEITHER] * 3 + [BOTH] * 4 + [NEITHER] + [BOTH] * 2)
    there, back = compared(a, b), compared(b, a)
    assert "b against a" in there and "a against b" in back
    assert "runs by medical-m1" in there, "the column of the report: no grader is called robust"
    forth = figures(there, "medical-m1")
    assert (forth[:3], forth[4:]) == (["80.0", "60.0", "-20.0"], ["10", "3", "1"])
    low, high = map(float, forth[3].split("/"))
    assert low < -20 < high
    mirrored = figures(back, "medical-m1")
    assert (mirrored[:3], mirrored[4:]) == (["60.0", "80.0", "+20.0"], ["10", "1", "3"])
    assert mirrored[3] == f"{-high:+.1f}/{-low:+.1f}"
    assert figures(there, "medical-paper")[:3] == ["60.0", "60.0", "+0.0"]
    assert "A right, B wrong: 3 items\nA wrong, B right: 1 item\n" in there
    assert "graders differ in A: 2 items\ngraders differ in B: 0 items\n" in there
    assert "A right, B wrong: 1 item\nA wrong, B right: 3 items\n" in back
    assert "graders differ in A: 0 items\ngraders differ in B: 2 items\n" in back
    # one of each kind that there is
    chosen = items(there)
    assert chosen[0] in ("q0", "q1", "q2") and chosen[1] == "q6" and chosen[2] in ("q8", "q9")
    assert set(items(compared(a, b, "--disagreements", 99))) == {"q0", "q1", "q2", "q6", "q8", "q9"}
    block = there[there.index("3 of 3: item ") :]
    assert f"item {chosen[2]}: graders differ in A" in block
    assert re.search(r"│ Question \d\?\n  │ A. yes\n  │ B. no\nGold: B\n", block)
    rows = [line.split() for line in block.splitlines() if re.match("[AB]    ", line)]
    assert rows == [
        ["A", "medical-paper", "wrong", "A"],
        ["A", "medical-m1", "right", "B"],
        ["B", "medical-paper", "right", "B"],
        ["B", "medical-m1", "right", "B"],
    ]
    assert f"A answered (ended by stop):\n  │ {M1_ALONE}\n" in block


def test_which_items_are_shown_is_drawn_by_the_seed(evaluated, compared):
    a, b = evaluated("a", [BOTH] * 40), evaluated("b", [NEITHER] * 39 + [BOTH])
    first = compared(a, b, "--disagreements", 5)
    assert compared(a, b, "--disagreements", 5) == first
    drawn = {tuple(items(compared(a, b, "--disagreements", 5, "--seed", i))) for i in range(4)}
    assert len(drawn) == 4 and tuple(items(first)) in drawn
    assert all(len(set(chosen)) == 5 and "q39" not in chosen for chosen in drawn)
    assert items(compared(a, b, "--disagreements", 0)) == []


def test_filters(evaluated, compared, capsys):
    a, b = evaluated("a", [BOTH, M1_ALONE, BOTH]), evaluated("b", [NEITHER, BOTH, BOTH])
    evaluated("a", [BOTH], task="other")
    evaluated("b", [NEITHER], task="other")
    assert re.findall(r"══ (\S+),", compared(a, b)) == ["letters/greedy", "other/greedy"]
    for name in ("other", "other/greedy"):
        assert re.findall(r"══ (\S+),", compared(a, b, "--tasks", name)) == ["other/greedy"]
    assert evals("compare", a, b, "--tasks", "letter") == 2
    assert "--tasks letter: not evaluated; did you mean letters?" in capsys.readouterr().err
    runs = compared(a, b, "--tasks", "letters", "--kind", "runs")
    assert items(runs) == ["q0"] and "graders differ" not in runs
    graders = compared(a, b, "--tasks", "letters", "--kind", "graders")
    assert items(graders) == ["q1"] and "A right, B wrong" not in graders
    paper = compared(a, b, "--tasks", "letters", "--metric", "medical-paper")
    assert "A wrong, B right: 1" in paper and "A wrong, B right: 0" in runs
    assert re.findall(r"^letters/greedy  (\S+)", paper, re.M) == ["medical-paper"]
    for metric, reason in (("figfont", "it is not in both"), ("medical-m1/pass@2", "from 1 to 1")):
        assert evals("compare", a, b, "--metric", metric) == 3
        assert f"--metric {metric}: " in (said := capsys.readouterr().err) and reason in said


def test_graders_of_one_run(evaluated, compared, capsys):
    run = evaluated("a", [BOTH, M1_ALONE, NEITHER, M1_ALONE])
    text = compared(run, "--disagreements", 9)
    row = figures(text, "medical-paper, medical-m1")
    assert row[:3] == ["25.0", "75.0", "+50.0"] and row[4:] == ["4", "0", "2"]
    assert "medical-paper wrong, medical-m1 right: 2" in text
    assert set(items(text)) == {"q1", "q3"} and "A answered" not in text
    for option in (["--kind", "runs"], ["--metric", "medical-m1"]):
        assert evals("compare", run, *option) == 2
        assert "name a second run" in capsys.readouterr().err


def test_remarks_and_figures(evaluated, compared):
    """A guess is told from an answer that was found; the figures are those of result.json."""
    a, b = evaluated("a", ["???", BOTH]), evaluated("b", [NEITHER, BOTH])
    result = samples.read_json(a / "letters" / "greedy" / "result.json")
    text = compared(a, b)
    assert items(text) == ["q0"]
    for name in ("medical-paper", "medical-m1"):
        assert float(figures(text, name)[0]) == 100 * result["metrics"][name]["value"] == 100
        assert result["rates"]["unparsed"][name] == 0.5
        assert re.search(rf"^A    {name} +right \(unparsed\)  (B|[?]+)$", text, re.M)
        assert re.search(rf"^B    {name} +wrong  +A$", text, re.M)


def test_of_several_samples_a_differing_one_is_shown(evaluated, compared):
    a = evaluated("a", [[NEITHER, BOTH, BOTH], [BOTH, BOTH, BOTH], [BOTH, NEITHER, M1_ALONE]])
    b = evaluated("b", [[BOTH, BOTH, NEITHER], [BOTH, NEITHER, NEITHER], [NEITHER] * 3])
    text = compared(a, b, "--disagreements", 1)
    assert figures(text, "medical-m1")[:3] == ["77.8", "33.3", "-44.4"]
    assert "A better: 2 items\nB better: 0 items\ngraders differ in A: 1 item\n" in text
    assert items(text)[0] in ("q1", "q2")
    text = compared(a, b, "--disagreements", 9)
    chosen = dict(zip(items(text), text.split("── ")[1:], strict=False))
    assert set(chosen) == {"q1", "q2"}, "of q0 each run has two right samples"
    assert "A answered (sample 1 of 3, their medical-m1 100.0 %" in text
    assert "B answered (sample 2 of 3, their medical-m1 33.3 %" in text
    if items(text)[0] == "q1":
        assert "A answered (sample 3 of 3, their medical-m1 66.7 %" in text, "graders differ there"
    by_chance = compared(a, b, "--metric", "medical-m1/pass@2")
    assert figures(by_chance, "medical-m1/pass@2")[:2] == ["100.0", "55.6"]


def test_answers_of_any_content(evaluated, compared, tmp_path):
    """Terminal escapes, lone surrogates, fences, pipes, wide letters, and long ones."""
    fences = "```\n````text\n| a | b |\n## No heading"
    a = evaluated("a", [f"{fences}\n\x1b[31mred\x1b[0m X \u202e {BOTH}", "数" * 300 + BOTH])
    b = evaluated("b", [NEITHER, "".join(f"line {i}\n" for i in range(400)) + NEITHER])
    scored = a / "letters" / "greedy" / "scored.jsonl"
    rows = samples.read_lines(scored)[0]
    rows[0]["output"] = rows[0]["output"].replace("X", "\ud800")
    rows[0]["extracted"]["medical-m1"] = "`|` \ud800\n|x|"
    rows[0]["extracted"]["medical-paper"] = None
    scored.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = compared(a, b, "--to", tmp_path / "to")
    assert "⟨U+001B⟩[31mred⟨U+001B⟩[0m ⟨U+D800⟩ ⟨U+202E⟩" in text and "\x1b" not in text
    assert re.search(r"A    medical-paper  right    nothing\n", text)
    assert re.search(r"its last \d+ of 3,\d+ characters", text) and "│ line 0\n" not in text
    assert "│ line 399\n" in text and "│ line 0\n" in compared(a, b, "--full")
    wide = [line for line in text.splitlines() if "数" in line]
    assert {len(line) for line in wide[:-1]} == {4 + 48}, "two columns each"
    page = (tmp_path / "to" / "disagreements.md").read_text()
    assert r"| A | `medical-m1` | right | `` `\|` ⟨U+D800⟩ \|x\| `` |" in page
    assert any(block.startswith(f"{fences}\n⟨U+001B⟩[31mred") for block in blocks(page))
    assert "## No heading" not in outside_blocks(page)
    # a terminal that is narrow, and one that knows ASCII alone
    program = [sys.executable, "-m", "adaptsft.evals", "compare", a, b]
    environment = os.environ | {"COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
    environment |= {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"}
    done = subprocess.run(program, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\\u6570" in done.stdout
    assert "letters/greedy\n  medical-paper" in done.stdout.decode()


def blocks(page: str) -> list[str]:
    """The contents of a page's fenced code, by CommonMark's rule: as many backticks end it."""
    return [block for _, block in _parts(page) if block is not None]


def outside_blocks(page: str) -> str:
    return "\n".join(line for line, block in _parts(page) if block is None)


def _parts(page: str):
    fence, block = "", []
    for line in page.splitlines():
        if not fence:
            fence, block = (re.match(r"`{3,}", line) or [""])[0], []
            yield line, None
        elif re.fullmatch(rf" {{0,3}}{fence}`*\s*", line):
            yield line, "\n".join(block)
            fence = ""
        else:
            block.append(line)
    assert not fence, "a fence is never closed"


def test_report_writes_them_beside_its_tables(evaluated, tmp_path, capsys):
    runs = [evaluated("a", [BOTH, M1_ALONE]), evaluated("b", [NEITHER, BOTH])]
    runs.append(evaluated("c", [BOTH, NEITHER]))
    assert evals("report", "--compare", *runs, "--disagreements", 2, "--to", tmp_path / "to") == 0
    assert "to/disagreements.md" in capsys.readouterr().out
    text = (tmp_path / "to" / "disagreements.md").read_text()
    assert re.findall(r"^# (.*)", text, re.M) == ["`b` against `a`", "`c` against `a`"]
    assert len(re.findall(r"^### ", text, re.M)) == 2 + 1 and M1_ALONE in blocks(text)
    assert "](disagreements.md)" in (tmp_path / "to" / "report.md").read_text()
    assert evals("report", *runs, "--to", tmp_path / "without") == 0
    assert not (tmp_path / "without" / "disagreements.md").exists()
    assert "disagreements" not in (tmp_path / "without" / "report.md").read_text()


def test_runs_that_cannot_be_compared(evaluated, compared, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no line of a message is broken
    a, b = evaluated("a", [BOTH, BOTH]), evaluated("b", [NEITHER, BOTH])

    def refused(code: int, *arguments: object) -> str:
        assert evals("compare", *arguments) == code
        return capsys.readouterr().err

    assert "the same folder is named twice" in refused(2, a, a)
    assert "takes two runs, or one" in refused(2, a, b, tmp_path / "c")
    assert "no run.json below it" in refused(3, a, tmp_path / "nothing")
    sampled = evaluated("sampled", [[BOTH, NEITHER], [BOTH, BOTH]])
    said = refused(3, a, sampled)
    assert "a has letters/greedy; " in said and "sampled has letters/T1. " in said
    text = compared(a / "letters" / "greedy", sampled / "letters" / "T1")
    assert "letters/greedy and letters/T1, runs by medical-m1" in text
    assert "Note: temperature: 0.0 in A, 1.0 in B" in text and "Note: n: 1 in A, 2 in B" in text
    fewer = evaluated("fewer", [BOTH], data=2)
    assert "Note: A has 2 items, B 1: the 1 of both are compared" in compared(a, fewer)
    evaluated("b", [BOTH], task="other")
    assert "Not compared: other/greedy: only in B" in compared(a, b)

    folder = b / "letters" / "greedy"
    result = samples.read_json(folder / "result.json")
    result["grader"][1]["version"] = "0" * 16
    samples.write_json(folder / "result.json", result)
    text = compared(a, b)
    assert "Note: medical-m1: A and B were graded by other versions" in text
    assert f"python -m adaptsft.evals score {folder}" in text
    assert evals("score", b) == 0 and "other versions" not in compared(a, b)

    few = evaluated("few", [BOTH, BOTH], graders="medical-m1")
    assert "Note: medical-paper: only in A. `generate` with the same" in compared(a, few)
    assert evaluated("few", [BOTH, BOTH]) == few and "only in" not in compared(a, few)

    rows = samples.read_lines(folder / "scored.jsonl")[0]
    for row in rows:
        row["scores"]["medical-m1"] = None
    samples.write_lines(folder / "scored.jsonl", rows)
    assert "no item has a medical-m1 in both" in refused(3, a, b)
    (folder / "result.json").unlink()
    assert f"not scored yet: run `python -m adaptsft.evals score {folder}` first" in refused(
        3, a, b
    )
    assert evals("score", b) == 0
    samples.write_lines(folder / "scored.jsonl", rows[:1])
    assert f"has other items: run `python -m adaptsft.evals score {folder}`" in refused(3, a, b)
    data = evaluated("more", [BOTH, BOTH], data=3)
    assert "evaluated on other data" in refused(3, a, data)
    shutil.copytree(a / "letters", a / "again" / "letters")
    assert "has letters/greedy twice" in refused(3, a, data)
