"""docs/scaling.md says what the arithmetic says today: all but the activations, whose tracing takes
minutes, is computed again for a dense model and one of experts."""

import json

import pytest

from benchmarks.scaling.__main__ import (
    BEGIN,
    DOCUMENT,
    END,
    RESULT,
    SHAPES,
    result_of,
    tables,
    traced,
)


@pytest.mark.parametrize("name", ["8b", "30b_a3b"])
def test_the_published_figures_are_those_of_the_code(name):
    published = json.loads(RESULT.read_text())["models"][name]
    assert result_of(name, traced(name, published["activations"])) == published


def test_the_page_shows_the_result():
    models = json.loads(RESULT.read_text())["models"]
    assert list(models) == list(SHAPES)
    page = DOCUMENT.read_text()
    assert page.split(BEGIN)[1].split(END)[0].strip() == tables(models).strip()
