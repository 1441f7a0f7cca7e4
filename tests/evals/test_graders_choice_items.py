"""mcq-robust on real questions: answers of many forms, with the texts of their options."""

import random
from pathlib import Path

import pytest

from adaptsft.evals.data import load_items
from adaptsft.evals.graders.choice import grade
from adaptsft.evals.tasks import load_task

# {L} and {text}: the option that is chosen; {M}: another one; {listed}: all, as in the prompt
CHOSEN = (
    "The answer is {L}.",
    "\\boxed{{{L}}}",
    "{L}",
    "{L}. {text}",
    "{text}",
    "\\boxed{{\\text{{{L}. {text}}}}}",
    "Answer: **{L}. {text}**",
    "Therefore, the correct answer is {text} ({L}).",
    "The answer is {text}.",
    "The answer is not {M}. It is {L}.",
    "{listed}\n\nAnswer: {L}",
    "{listed}\n\n{L}",
    "{question}\n{listed}\nThe best choice is ({L}) {text}",
    "<think>{question} The answer is {M}</think>{text}",
    "Option {L} is correct because {question}",
)
NONE = (
    "{listed}",
    "{question}\n{listed}",
    "The answer is {L} or {M}.",
    "The answer is not {L}.",
    "<think>{question}\n{listed}\nThe answer is {L}.",
    "I cannot answer this. {question}",
)


@pytest.mark.parametrize("name", ["medqa", "medmcqa", "pubmedqa", "openbookqa"])
def test_no_answer_is_taken_for_another_one(shared_data: Path, name: str) -> None:
    chance = random.Random(0)
    items = chance.sample(load_items(load_task(name), shared_data).items, 100)
    missed = 0
    for item in items:
        options = item.fields["options"]
        chosen, other = chance.sample(list(options), 2)
        shown = {"question": item.fields["question"], "listed": item.fields["listed"]}
        shown |= {"L": chosen, "M": other, "text": options[chosen]}
        for form in (*CHOSEN, *NONE):
            record = {"response": form.format(**shown), "options": options, "gold": chosen}
            found = grade(record)["extracted"]
            assert found in ((chosen, None) if form in CHOSEN else (None,)), record
            missed += form in CHOSEN and found is None
    assert missed <= 0.01 * len(items) * len(CHOSEN)
