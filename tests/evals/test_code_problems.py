"""The files of HumanEval+ and MBPP+."""

import gzip
from pathlib import Path

import pytest

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.code import problems


def test_versions(data_dir: Path) -> None:
    assert problems.load("HumanEval", data_dir).name == "HumanEvalPlus-v9.9.10"
    assert (
        problems.load("HumanEval", data_dir, ["MbppPlus-v0.1.0", "v9.9.9"]).name
        == "HumanEvalPlus-v9.9.9"
    )
    with pytest.raises(
        ConfigError, match=r"choose one of HumanEvalPlus-v9.9.10, HumanEvalPlus-v9.9.9"
    ):
        problems.load("HumanEval", data_dir, ["v1.0.0"])
    with pytest.raises(ConfigError, match="evalplus/mbppplus_release"):
        problems.load("Mbpp", data_dir)
    (data_dir / "HumanEvalPlus-v0.1.9.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="not that version"):
        problems.load("HumanEval", data_dir, ["v0.1.9"])
    (data_dir / "HumanEvalPlus-v9.9.9.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="problem 1: cannot be read: KeyError"):
        problems.load("HumanEval", data_dir, ["v9.9.9"])


def test_mbpp_inputs_are_the_types_of_their_problems(shared_data: Path) -> None:
    by_id = problems.load("Mbpp", shared_data, ["v0.1.0"]).by_id
    assert by_id["Mbpp/2"].base[0] == [(3, 4, 5, 6), (5, 7, 4, 10)]
    assert by_id["Mbpp/63"].base[0] == [[(3, 5), (1, 7), (10, 3), (1, 2)]]
    assert by_id["Mbpp/115"].base[1] == [[{1, 2}, {}, {}]]
    assert type(by_id["Mbpp/124"].base[0][1]) is complex
    assert by_id["Mbpp/580"].base[0] == [(4, 5, (7, 6, (2, 4)), 6, 8)]
    assert by_id["Mbpp/722"].base[0][0]["Cierra Vega"] == (6.2, 70)
