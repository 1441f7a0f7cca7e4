"""mcq-robust: which option an answer in English commits to, and when it commits to none."""

import json
import re
import time
from pathlib import Path

import pytest

from adaptsft.evals.graders import mmlu_prox
from adaptsft.evals.graders.choice import grade
from adaptsft.evals.graders.grading import grade_all
from adaptsft.evals.graders.medical import extract_box, match_choice
from tests.conftest import REPO

DRUGS = {"A": "Aspirin", "B": "Warfarin", "C": "Clopidogrel", "D": "Heparin"}
TEN = {letter: f"option text {number}" for number, letter in enumerate("ABCDEFGHIJ")}
PUBMED = {"A": "yes", "B": "no", "C": "maybe"}
POWERS = {"A": "1", "B": "10", "C": "100", "D": "1000"}
DOSES = {"A": "10 mg", "B": "100 mg", "C": "1,000 mg", "D": "0.5 mg"}
GERMS = {"A": "E. coli", "B": "C. difficile", "C": "S. aureus", "D": "H. pylori", "E": "None"}
BOTH = {"A": "Fever", "B": "Cough", "C": "Both A and B", "D": "None of the above"}
HEPARINS = {"A": "Heparin", "B": "Low molecular weight heparin", "C": "Vitamin K", "D": "Vitamin C"}


def extracted(response: str, options: dict[str, str]) -> str | None:
    """After a check that the verdict is consistent, whatever the gold."""
    found = set()
    for gold in options:
        verdict = grade({"response": response, "options": options, "gold": gold})
        assert verdict["correct"] is (verdict["extracted"] == gold)
        assert verdict["unparsed"] is (verdict["extracted"] is None)
        found.add(verdict["extracted"])
    assert len(found) == 1, "what is extracted does not depend on the gold"
    return found.pop()


CASES = {
    "box": [
        ("\\boxed{C}", DRUGS, "C"),
        ("$\\boxed{C}$", DRUGS, "C"),
        ("$$\\boxed{\\textbf{C}}$$", DRUGS, "C"),
        ("\\boxed{\\mathrm{(B)}}", DRUGS, "B"),
        ("\\boxed{C. Clopidogrel}", DRUGS, "C"),
        ("\\boxed{\\text{C) Clopidogrel 75 mg}}", DRUGS, "C"),
        ("\\boxed{clopidogrel.}", DRUGS, "C"),
        ("\\boxed{c}", DRUGS, "C"),
        ("\\boxed{C", DRUGS, "C"),
        ("\\boxed{C}}", DRUGS, "C"),
        ("\\fbox{B}", DRUGS, "B"),
        ("\\boxed{\\text{Answer: D}}", DRUGS, "D"),
        ("First \\boxed{A}; on reflection \\boxed{B}.", DRUGS, "B"),
        ("\\boxed{B} although some would say the answer is C", DRUGS, "B"),
        ("\\boxed{C} and also see option A", DRUGS, "C"),
        ("We put it in \\boxed{}. The answer is D.", DRUGS, "D"),
        ("The dose is \\boxed{42}. So the answer is C.", DRUGS, "C"),
        ("<answer>B</answer>", DRUGS, "B"),
        ("\\boxed{10}", POWERS, "B"),
        ("\\boxed{\\text{maybe}}", PUBMED, "C"),
        ("\\boxed{A, B}", DRUGS, None),
        ("\\boxed{A} and \\boxed{B}", DRUGS, None),
        ("\\boxed{A \\text{ or } C}", DRUGS, None),
        ("\\boxed{C. Heparin}", DRUGS, None),
        ("\\boxed{E}", DRUGS, None),
        ("\\boxed{B cells}", DRUGS, None),
        ("\\boxed{C = 12}", DRUGS, None),
    ],
    "stated": [
        ("Answer: **C**", DRUGS, "C"),
        ("**Answer:** C", DRUGS, "C"),
        ("### Answer\n\nC", DRUGS, "C"),
        ("## Final answer: (C)", DRUGS, "C"),
        ("**Final Answer**: `C`", DRUGS, "C"),
        ("The correct answer is:\n\n**B. Warfarin**", DRUGS, "B"),
        ("The answer is $\\text{D}$.", DRUGS, "D"),
        ("The answer is \\(C\\).", DRUGS, "C"),
        ("| **Answer** | **C** |", DRUGS, "C"),
        ('{"answer": "C"}', DRUGS, "C"),
        ("ANSWER - D", DRUGS, "D"),
        ("Answer C", DRUGS, "C"),
        ("The best choice is option B.", DRUGS, "B"),
        ("The answer to this question is therefore most likely C, clopidogrel.", DRUGS, "C"),
        ("The correct option would be (D) Heparin.", DRUGS, "D"),
        ("I would choose B.", DRUGS, "B"),
        ("I'll go with option D because of the renal failure.", DRUGS, "D"),
        ("So I pick (C).", DRUGS, "C"),
        ("I think it's B", DRUGS, "B"),
        ("Therefore, C.", DRUGS, "C"),
        ("This corresponds to option D.", DRUGS, "D"),
        ("C is correct.", DRUGS, "C"),
        ("Option B is the right answer because of its half-life.", DRUGS, "B"),
        ("I believe that (D) is the best choice.", DRUGS, "D"),
        ("Heparin is the correct answer.", DRUGS, "D"),
        ("The answer is heparin.", DRUGS, "D"),
        ("The correct answer is Warfarin (B).", DRUGS, "B"),
        ("The answer is A.", DRUGS, "A"),
        ("The answer is A because it inhibits platelets.", DRUGS, "A"),
        ("The answer is (a).", DRUGS, "A"),
        ("the answer is b, since the others fail", DRUGS, "B"),
        ("The answer is C.\n\nWhy not A? A is tempting. B acts slowly.", DRUGS, "C"),
        ("Answer: B\n\n**A**\nToo weak.\n\n**C**\nToo new.", DRUGS, "B"),
        ("The answer is A. Wait, let me check. No: the answer is D.", DRUGS, "D"),
        ("The answer is A. Wait, B is correct.", DRUGS, "B"),
        ("There is no doubt that the answer is C.", DRUGS, "C"),
        ("The answer is ~~A~~ C.", DRUGS, "C"),
        ("Answer: I", TEN, "I"),
        ("The correct answer is I.", TEN, "I"),
        ("Answer: \uff23", DRUGS, "C"),
        ("The answer is E. coli.", GERMS, "A"),
        ("The answer is C. difficile.", GERMS, "B"),
        ("The answer is C. S. aureus.", GERMS, "C"),
        ("The answer is both A and B.", BOTH, "C"),
        ("Answer: none of the above", BOTH, "D"),
        ("The answer is low molecular weight heparin.", HEPARINS, "B"),
        ("Answer: Vitamin C", HEPARINS, "D"),
        ("The answer is 1000 mg.", DOSES, "C"),
        ("Answer: yes", PUBMED, "A"),
        ("Question: which drug?\nAnswer: C\nQuestion: another one?\nAnswer: A", DRUGS, "C"),
    ],
    "nothing, or more than one": [
        ("", DRUGS, None),
        ("   \n\n", DRUGS, None),
        ("The answer is A or B.", DRUGS, None),
        ("Both A and B are correct.", DRUGS, None),
        ("A is correct. C is correct too.", DRUGS, None),
        ("Answer: A/B", DRUGS, None),
        ("Answer: A & C", DRUGS, None),
        ("A, B, C or D", DRUGS, None),
        ("Either B or C", DRUGS, None),
        ("Please answer with A, B, C or D.", DRUGS, None),
        ("The answer is either aspirin or heparin.", DRUGS, None),
        ("Aspirin, warfarin, clopidogrel and heparin are all used.", DRUGS, None),
        ("The answer is C. Heparin", DRUGS, None),
        ("The answer is E.", DRUGS, None),
        ("The answer is unclear.", DRUGS, None),
        ("The answer is a matter of debate.", DRUGS, None),
        ("Answer: A patient like this is rarely seen.", DRUGS, None),
        ("Answer: A car is faster.", DRUGS, None),
        ("Is the answer B?", DRUGS, None),
        ("If the answer is A, the patient bleeds.", DRUGS, None),
        ("The answer could be A.", DRUGS, None),
        ("As an AI model, I cannot choose B or give medical advice.", DRUGS, None),
        ("I'm sorry, but I can't help.", TEN, None),
        ("I think I need more information.", TEN, None),
        ("A 45-year-old man with hepatitis B and vitamin C deficiency in group D.", DRUGS, None),
        ("Vitamin K reverses it.", DRUGS, None),
        ("The answer is B cell lymphoma.", DRUGS, None),
        ("A. Aspirin\nB. Warfarin\nC. Clopidogrel\nD. Heparin", DRUGS, None),
        ("(A) Aspirin (B) Warfarin (C) Clopidogrel (D) Heparin", DRUGS, None),
        ("Which is correct?\nA. Aspirin\nB. Warfarin\nC. Clopidogrel\nD. Heparin", DRUGS, None),
        ("The answer:\nA. Aspirin\nB. Warfarin\nC. Clopidogrel\nD. Heparin", DRUGS, None),
        ("A\nB\nC\nD", DRUGS, None),
        ("\u0410", DRUGS, None),  # Cyrillic A
        ("The answer is \u0412.", DRUGS, None),  # Cyrillic Ve
        ("The answer is \u0391.", DRUGS, None),  # Greek Alpha
        ("There is no evidence of an association.", PUBMED, None),
        ("Yes and no.", PUBMED, None),
        ("We gave 10 mg to 100 patients.", POWERS, None),
        ("It is between 10 and 100.", POWERS, None),
        ("The result is 1001.", POWERS, None),
        ("The result is 10.5.", POWERS, None),
        ("The result is 10%.", POWERS, None),
    ],
    "negation": [
        ("The answer is not A.", DRUGS, None),
        ("The answer isn't B, it's C.", DRUGS, "C"),
        ("It is not A but D.", DRUGS, "D"),
        ("The answer is B, not A.", DRUGS, "B"),
        ("A is incorrect. B is not correct. The answer is C.", DRUGS, "C"),
        ("Option A is wrong.", DRUGS, None),
        ("I don't think the answer is B.", DRUGS, None),
        ("The answer is C. No, wait: C is wrong.", DRUGS, None),
        ("The answer is neither A nor B.", DRUGS, None),
        ("Not heparin.", DRUGS, None),
        ("Aspirin is contraindicated.", DRUGS, None),
        ("Rather than warfarin, give heparin.", DRUGS, "D"),
        ("A common wrong answer is B. The correct one is D.", DRUGS, "D"),
        ("Answer: C. The answers A and B are wrong.", DRUGS, "C"),
        ("A and B are wrong so the answer is C.", DRUGS, "C"),
        ("It is not B so it must be C.", DRUGS, "C"),
        ("A is wrong and B is wrong so it's D.", DRUGS, "D"),
        ("If she is pregnant then the answer is D.", DRUGS, None),
    ],
    "lone letter": [
        ("C.", DRUGS, "C"),
        ("(C)", DRUGS, "C"),
        ("[[C]]", DRUGS, "C"),
        ("**C**", DRUGS, "C"),
        ("c", DRUGS, "C"),
        ("A", DRUGS, "A"),
        ("I", TEN, "I"),
        ("C) Clopidogrel", DRUGS, "C"),
        ("C: Clopidogrel", DRUGS, "C"),
        ("C Clopidogrel", DRUGS, "C"),
        ("- **C. Clopidogrel**", DRUGS, "C"),
        ("C\n\nClopidogrel blocks the ADP receptor, aspirin does not.", DRUGS, "C"),
        ("B. It blocks the recycling of vitamin K.", DRUGS, "B"),
        ("B because it blocks the recycling of vitamin K.", DRUGS, "B"),
        ("The patient has a stent and an allergy.\n\n**C**", DRUGS, "C"),
        ("A. Aspirin\nB. Warfarin\nC. Clopidogrel\nD. Heparin\n\nB", DRUGS, "B"),
        ("A. Aspirin\nB. Warfarin\nC. Clopidogrel\nD. Heparin\nC. Clopidogrel", DRUGS, "C"),
        ("He needs an ADP blocker (C).", DRUGS, "C"),
        ("C. difficile grows there.", DRUGS, None),
        ("A and B", DRUGS, None),
        ("B?", DRUGS, None),
        ("E", DRUGS, None),
        ("C-reactive protein", DRUGS, None),
    ],
    "option text": [
        ("Clopidogrel", DRUGS, "C"),
        ("I would prescribe some heparin.", DRUGS, "D"),
        ("A patient takes aspirin.", DRUGS, "A"),
        ("The drug of choice is warfarin", DRUGS, "B"),
        ("Aspirin fails and warfarin is slow. Therefore the patient gets heparin.", DRUGS, "D"),
        ("Heparin-induced thrombocytopenia is likely.", DRUGS, None),
        ("Aspirinase", DRUGS, None),
        ("Is it heparin?", DRUGS, None),
        ("It might be heparin.", DRUGS, None),
        ("Give low molecular weight heparin.", HEPARINS, "B"),
        ("He lacks vitamin C.", HEPARINS, "D"),
        ("Yes, there is an association, with no exception.", PUBMED, "A"),
        ("No.", PUBMED, "B"),
        ("Maybe", PUBMED, "C"),
        ("x = 100", POWERS, "C"),
        ("10", POWERS, "B"),
        ("The dose is 0.5 mg.", DOSES, "D"),
        ("It is 10.5 mg", DOSES, None),
    ],
    "thoughts": [
        ("<think>The answer is A.</think>\n\nThe answer is D.", DRUGS, "D"),
        ("The answer is A.</think>C", DRUGS, "C"),
        ("<think>It could be A. The answer is B", DRUGS, None),
        ("The answer is C. <think>or is the answer A", DRUGS, "C"),
        ("<thinking>\\boxed{A}</thinking> \\boxed{B}", DRUGS, "B"),
        ("<think>The answer is A.</think>", DRUGS, None),
        ("<|channel|>analysis<|message|>A? B?<|end|><|channel|>final<|message|>C", DRUGS, "C"),
        ("## Thinking\n\nThe answer is A.\n\n## Final Response\n\nThe answer is B.", DRUGS, "B"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("response", "options", "letter"),
    [pytest.param(*case, id=f"{rule}: {case[0]}"[:60]) for rule in CASES for case in CASES[rule]],
)
def test_rules(response: str, options: dict[str, str], letter: str | None) -> None:
    assert extracted(response, options) == letter


@pytest.mark.parametrize(
    "unit",
    [
        "a", " ", "A ", "(", "\\boxed{", "<think>", "</think>", "the answer is ", "not ", "A, ",
        "A and ", "answer ", "answer: ", "aspirin ", "aspirin or ", "~~", "*", "\n", "A.\n",
        "A is ", "question: ", "answer: A. ", "if ", "A (", "is ", "so ", "10,", "{", "\\text{",
        "\u0301", "the the answer is not ",
    ],
)  # fmt: skip
def test_time_is_linear_in_the_answer(unit: str) -> None:
    """40,000 characters of anything take a second; what is quadratic takes minutes."""
    response = unit * (40_000 // len(unit))
    start = time.process_time()
    grade({"response": response, "options": DRUGS, "gold": "A"})
    grade({"response": response, "lang": "sw", "gold": "A"})
    assert time.process_time() - start < 10


def test_field_cases(shared_data: Path) -> None:
    cases = json.loads((shared_data.parent / "cases" / "mcq_field.json").read_text())["cases"]
    verdicts = grade_all("mcq-robust", cases)
    pairs = list(zip(cases, verdicts, strict=True))
    wrong = [case for case, verdict in pairs if verdict["correct"] != case["expected"]]
    assert len(wrong) <= 0.05 * len(cases), wrong
    for case, verdict in pairs:
        if case["family"] in ("mcq-two", "mcq-none"):
            assert verdict == {"correct": False, "extracted": None, "unparsed": True}, case
        elif case["expected"]:
            assert not verdict["unparsed"], case


def test_where_it_differs_from_the_imitations_as_the_page_says() -> None:
    page = (REPO / "docs" / "graders.md").read_text()
    rows = re.findall(r"^\| `(.+)` \| (\w\??) \| (\w\??) \| ([A-D-]) \|$", page, re.MULTILINE)
    assert len(rows) >= 12
    for response, *letters in rows:
        found = [match_choice(text, DRUGS) for text in (response, extract_box(response))]
        told = [letter + "?" * guessed for letter, guessed in found]
        assert [*told, extracted(response, DRUGS) or "-"] == letters, response
    rows = re.findall(r"^\| (\w\w) \| `(.+)` \| (\S+) \| ([A-J-]) \|$", page, re.MULTILINE)
    assert len(rows) >= 5
    for lang, response, *letters in rows:
        record = {"lang": lang, "response": response, "gold": "B"}
        told = mmlu_prox.grade(record)["extracted"], grade(record)["extracted"] or "-"
        assert [*told] == letters, response


def test_what_is_refused() -> None:
    def refusal(record: dict) -> str:
        (verdict,) = grade_all("mcq-robust", [record])
        assert verdict["correct"] is None and verdict["extracted"] is None
        return verdict["error"]

    assert "mcq-robust reads options or lang" in refusal({"response": "", "gold": "A"})
    for record, message in (
        ({"options": DRUGS, "gold": "E"}, r"gold is 'E'.*A, B, C, D"),
        ({"options": {"1": "one"}, "gold": "1"}, r"options are .*capital letters"),
        ({"options": {"A": 1}, "gold": "A"}, r"options are .*texts"),
        ({"options": {}, "gold": "A"}, "options are"),
        ({"lang": "xx", "gold": "A"}, r"lang is 'xx'.*zu"),
        ({"lang": "sw", "gold": "K"}, r"gold is 'K'.*J"),
        ({"options": ["x"], "gold": "A"}, "options is .*must be an object"),
    ):
        assert re.match(message, refusal({"response": "A"} | record))
