"""What a diagnosis says of its figures."""

from adaptsft.analysis.continuum import REFERENCES, cautions, place_of
from adaptsft.analysis.diagnosis import markdown
from tests.analysis.diagnosed import stats_of


def test_the_place_is_that_of_the_papers_models_and_open_where_the_interval_leaves_it_open(folder):
    assert all(place_of(reference.mean_p) == reference.place for reference in REFERENCES)
    content = stats_of(folder / "run" / "diagnosis")
    source = content["sources"]["sums"]
    source |= {"mean_p": 0.70, "mean_p_interval": [0.66, 0.74], "place": place_of(0.70)}
    assert "MI or MS" in markdown(content, folder)
    assert "objective.name=neg_p" in markdown(content, folder)


def test_cautions_speak_up_where_mean_p_is_blind():
    calm = {
        "conflict": 0.05,
        "below_0.2": 0.1,
        "above_0.55": 0.8,
        "ece": 0.03,
        "overconfidence": 0.01,
    }
    assert cautions(calm) == []
    assert "redefines" in cautions(calm | {"conflict": 0.3})[0]
    assert "two groups" in cautions(calm | {"below_0.2": 0.4, "above_0.55": 0.5})[0]
    assert "less sure than it is right" in cautions(calm | {"ece": 0.2, "overconfidence": -0.2})[0]
