"""A stage is one line: its title, what it did last, and its seconds."""

import re

import pytest

from benchmarks.lab.stages import WIDTH, stage


def test_a_line_per_stage_with_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("training") as show:
        show("step 1/2")
        show("step 2/2")
    with stage("report"):
        pass
    lines = capsys.readouterr().out.splitlines()
    assert [line[:WIDTH].rstrip() for line in lines] == ["training: step 2/2", "report"]
    assert all(re.fullmatch(r" *\d+ s", line[WIDTH:]) for line in lines)


def test_an_error_begins_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), stage("training"):
        raise ValueError("no")
    assert capsys.readouterr().out == "training\n"
