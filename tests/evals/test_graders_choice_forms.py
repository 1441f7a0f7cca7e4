"""mcq-robust: forms of one answer, and forms of none, in English."""

from adaptsft.evals.graders.choice import grade

OPTIONS = {"A": "Aspirin", "B": "Warfarin", "C": "Clopidogrel", "D": "Heparin"}

C = (
    "Answer choice: C", "Correct choice - (C)", "The correct letter is C", "I'd answer C",
    "I would answer C.", "Ans: C", "Ans. C", "[Answer] C", "\u3010\u7b54\u6848\u3011C",
    "\u7b54\u6848\uff1a**C**", "Answer is C", "C is my answer.", "I'd have to go with C",
    "The correct answer would therefore be C)", "Solution: (C)", "Option (C)", "(Option C)",
    "Choice (C) Clopidogrel", "It's (C)", "Must be C.", "Going with C", "C, definitely.",
    "C (Clopidogrel)", "C = Clopidogrel", "Clopidogrel = C", "the answer: C", "answer \u2192 C",
    "answer -> C", "**Answer**\nC) Clopidogrel", "My final choice is C.", "So C is the answer.",
    "That leaves C.", "We are left with C.", "Only C fits.", "C fits best.", "C seems right.",
    "C appears to be correct.", "C would be the best choice.", "the only correct option is C",
    "The answer has to be C", "The answer can only be C.", "The answer cannot be A, so it is C.",
    "The answer cannot be anything but C.",
    "It can't be A or B. D is also impossible. The answer is C", "FINAL ANSWER: C",
    "Final answer is C.", "final answer - c", "The final answer is (c).", "ANSWER: C", "Answer:C",
    "Answer :C", "Answer\uff1a C", "answer C.", "The right answer is C!",
    "Correct answer \u2192 C", "\u2705 C", "\u2713 Answer: C", "Answer: \u2705 C",
    "\U0001f449 **C**", "The answer is option C: Clopidogrel, as it inhibits P2Y12.",
    "In conclusion, the answer is C.", "In conclusion, C is the correct answer.",
    "Based on the above, C.", "Based on this, the answer is C", "To summarize: C", "Hence C",
    "So the correct choice is C", "Thus the answer would be C.",
    "Therefore, the correct answer is option C, Clopidogrel.", "Therefore option C is correct.",
    "Option C is the correct answer.", "Option C is correct", "Option C: Clopidogrel",
    "Option C. Clopidogrel is correct", "option C is right", "The correct response is C.",
    "The best response is C", "The correct alternative is C.", "The most suitable option is C",
    "The best answer here is C.", "The most likely answer is C.",
    "The best option from the list is C.", "Of these, C is the best.",
    "Of the options given, C is correct.", "Among A, B, C and D, the correct answer is C.",
    "Out of A, B, C, and D, I would choose C.", "A, B and D can be excluded. C.",
    "A is incorrect.\nB is incorrect.\nD is incorrect.\n\nSo C.", "The answer is C and not D.",
    "The answer is C instead of D.", "The answer is C rather than D",
    "While A is tempting, C is correct.", "Although B is often chosen, the correct answer is C.",
    "Some would say A, but the correct answer is C.", "You might think it's A, but it's C.",
    "One might choose A; however, the answer is C.", "A? No. The answer is C.",
    "Is it A? No, it's C.", "I first considered A, then B, and finally settled on C.",
    "I'm confident the answer is C.", "I am confident that it is C.", "I'm sure it's C",
    "Definitely C", "Surely C.", "Let me double check... Yes, the answer is C.",
    "Answer: C (confidence: 90%)", "Answer: C; Explanation: A is antiplatelet",
    "Answer: C | Confidence: high", "{'answer': 'C'}", "{\"final_answer\": \"C\"}",
    "```json\n{\"answer\": \"C\"}\n```", "{\"answer_letter\": \"C\"}", "answer_choice: C",
    "<final>C</final>", "<option>C</option>", "(C).", "C.)", "C. ", "\n\nC\n\n", "C\nC",
    "C\n\nThe answer is C.", "\\text{C}", "\\textbf{Answer: C}", "\\mathbf{C}", "$C$", "$$C$$",
    "\\(C\\)", "\\boxed{C}\\boxed{C}", "\\boxed{\\textbf{C}}.", "\\boxed{$C$}",
    "\\boxed{\\text{C}\\}", "$\\boxed{\\text{C: Clopidogrel}}$",
    "\\boxed{\\text{C - Clopidogrel}}", "\\boxed{\\text{Clopidogrel (C)}}",
    "\\boxed{\\text{the answer is C}}", "\\boxed{3}\nAnswer: C", "\\boxed{\\mathrm{C}}",
    "\\boxed{'C'}", "\\boxed{\"C\"}", "\\boxed{\\boxed{C}}", "\\framebox{C}",
    "The answer is \\underline{C}.", "The answer is <b>C</b>.", "<p>The answer is C</p>",
    "&nbsp;Answer: C", "The answer is C.<|im_end|>", "The answer is C</s>",
    "The answer is C.<|eot_id|>", "C<|endoftext|>", "### Response:\nC", "Assistant: C",
    "Output: C",
)  # fmt: skip

NONE = (
    "I don't think it's C", "It isn't C.", "C isn't correct", "C is incorrect",
    "C is wrong, so try again", "C is not right.", "C is unlikely.", "C can be ruled out.",
    "Rule out C.", "Exclude C.", "Except C", "All except C.", "All but C", "Everything but C",
    "Anything but C.", "We can eliminate C.", "C is a distractor.", "C might be correct.",
    "C could be right.", "C may be the answer.", "Is C correct?",
    "Whether C is correct is unclear.", "If C is correct, then A is not.",
    "Suppose the answer is C.", "Assume C is correct.", "Let C be the capacitance.", "Let C = 5.",
    "Vitamin C", "vitamin C is needed", "Hepatitis C", "Hepatitis C is the diagnosis",
    "protein C deficiency", "C-section", "C. elegans", "Grade C",
    "Stage C is the answer to staging", "Figure C shows", "Column C", "point C", "Type C",
    "Group C streptococcus", "C++", "C#", "C\xb0", "37 C", "37 \xb0C", "a C-terminal end",
    "The C. in his name", "Plan B", "Appendix A", "Team A", "Section B", "An A-level student",
    "A friend of mine", "A man is ill.", "B-cell", "D-dimer", "T cells", "I see.", "I", "II", "IV",
    "i", "OK", "Okay.", "Sure!", "The correct answer is provided below.", "See the answer above.",
    "Answer:", "The answer is", "The answer is:", "The answer is ...", "The answer is **",
    "\\boxed{}", "\\boxed{ }", "\\boxed{\\text{}}", "$\\boxed{?}$", "Answer: ?", "Answer: ___",
    "Answer: [insert letter]", "Answer: X", "Answer: (X)",
    "The answer is (X), where X is the letter.", "Please end with \"The answer is (X)\".",
    "the correct answer is the one which inhibits P2Y12", "Answer: all", "Answer: any of A, B, C",
    "Answer: A through D", "Answer: A-D", "Answer: A to D", "answers: A, C and D",
    "Answer: (A) (C)", "Answer: A B", "Answer: A; C", "Answer: A or C", "A or C?", "A vs. B",
    "between A and B", "It's a toss-up between A and B.", "either A, or B", "A, B", "A,B", "A&B",
    "A+C", "A / B", "A|B", "(A), (B)", "A and/or B", "Both", "neither", "Neither A nor B",
    "None of A, B, C, D", "no answer", "no idea", "Not sure.", "I'm not certain.",
    "Unable to answer", "As a language model I cannot pick an option.",
    "I cannot select an answer such as C without more information.",
    "It would be unethical to answer C or D.", "A B C", "Options A, B",
    "The options are A, B, C and D.", "Consider option C.", "Look at C.", "See C.", "C versus D",
    "I would rank them: B > C > A.", "1. B\n2. C\n3. A", "B > A", "Dr. A. Smith says so.",
    "<think>\nanswer B\n</think>\nI can't answer.", "<think>\nanswer B\n</think>\n",
    "\\boxed{\\text{B or C}}", "\\boxed{B/C}", "\\boxed{\\text{not A}}",
    "\\boxed{\\text{B}; \\text{C}}", "The correct answer is A and B.", "Correct answers: A, B",
    "Answers: A, B and E", "I choose A and B", "I choose A, B", "A and B.", "So A and B",
    "It is both.", "A as well as B", "A, also B", "A plus B", "A & B are right",
    "Answer: A (or B)", "Answer: A, or B",
)  # fmt: skip


def read(response: str) -> str | None:
    return grade({"response": response, "options": OPTIONS, "gold": "C"})["extracted"]


def test_forms_of_an_answer() -> None:
    assert {response: read(response) for response in C if read(response) != "C"} == {}


def test_forms_of_none() -> None:
    assert {response: read(response) for response in NONE if read(response) is not None} == {}
