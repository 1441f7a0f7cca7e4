"""Data laid out as the hub's, for the tests of lm-eval."""

import json
from pathlib import Path
from typing import Any

QUESTIONS = [
    (
        "The sun is responsible for",
        [
            "puppies learning new tricks",
            "children growing up",
            "flowers wilting in a vase",
            "plants sprouting",
        ],
        3,
    ),
    (
        "Gas can fill any container it is given, and liquid",
        ["is standard weight", "is the opposite", "only needs a few", "uses what it needs"],
        3,
    ),
    (
        "There is most likely going to be fog around:",
        ["a marsh", "a tundra", "the plains", "a desert"],
        0,
    ),
    (
        "As a car approaches you in the night",
        ["the headlights become more intense", "they recede", "they remain", "they go"],
        0,
    ),
    (
        "When the weather changes from cool to cold",
        ["animals put on fat", "ice melts", "insects multiply", "the sun grows"],
        0,
    ),
]


def hub_folder(folder: Path, subset: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    """A data set as `hf download --local-dir` leaves it: files, and a README that names them."""
    (folder / subset).mkdir(parents=True)
    listed = "".join(f"  - split: {split}\n    path: {subset}/{split}.jsonl\n" for split in splits)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n{listed}---\n"
    )
    for split, records in splits.items():
        (folder / subset / f"{split}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )


def openbookqa_records() -> list[dict[str, Any]]:
    """QUESTIONS in the hub's layout of OpenBookQA."""
    return [
        {
            "id": str(i),
            "question_stem": stem,
            "choices": {"text": options, "label": list("ABCD")},
            "answerKey": "ABCD"[gold],
        }
        for i, (stem, options, gold) in enumerate(QUESTIONS)
    ]


# subjects of MMLU-ProX
CATEGORIES = (
    "biology",
    "business",
    "chemistry",
    "computer science",
    "economics",
    "engineering",
    "health",
    "history",
    "law",
    "math",
    "other",
    "philosophy",
    "physics",
    "psychology",
)


def mmlu_prox_sw(folder: Path) -> None:
    """MMLU-ProX in Swahili below `folder`: one question per subject, with the answer B."""
    question = {
        "question": "Je, 2 + 2 ni ngapi?",
        "cot_content": "Jibu: Hebu tufikiri. Jibu ni (B).",
        "answer": "B",
        "answer_index": 1,
    }
    question |= {f"option_{i}": str(3 + i) if i < 4 else None for i in range(10)}
    rows = [question | {"category": category} for category in CATEGORIES]
    hub_folder(
        folder / "li-lab" / "MMLU-ProX",
        "sw",
        {"test": rows, "validation": [row for row in rows for _ in range(5)]},
    )
