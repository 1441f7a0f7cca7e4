"""What a judge is sent, and the preference that is read from its answer.

The outputs are called m and M, in an order that is drawn from the instruction; with
p = p(m) / (p(m) + p(M)) the preference is 2 - p where the reference was m, and 1 + p where the
order was switched (`weighted_alpaca_eval_gpt4_turbo` of tatsu-lab/alpaca_eval@cd543a149df8). The
prompt, judge_prompt.txt, is that repository's alpaca_eval_clf.txt (Apache-2.0), byte for byte.

Outputs are written by models, and can address the judge (tatsu-lab/alpaca_eval#414: a constant
output "won" 86.5 %). So the chat's turns are split before outputs are put in, and triple quotes in
an output are escaped, since they delimit it.
"""

import math
import random
import re
from pathlib import Path

import numpy as np

from adaptsft.evals.protocol import Message

PROMPT = Path(__file__).with_name("judge_prompt.txt")
SEED = 0  # of the order; the default of that repository


def switched(instruction: str) -> bool:
    """Whether the model's output comes first, as m."""
    return random.Random(f"is_switched_outputs{instruction}{SEED}").choices([False, True])[0]


def preference(logprobs: dict[str, float], is_switched: bool) -> float:
    """From 1 (the reference) to 2 (the model); NaN where the judge gave neither m nor M."""
    m, big = (logprobs.get(letter, -math.inf) for letter in "mM")
    if max(m, big) == -math.inf:
        return math.nan
    p = float(np.exp(m - np.logaddexp(m, big)))
    return 1 + p if is_switched else 2 - p


def messages_of(
    instruction: str, reference: str, output: str, escape: bool = True
) -> list[Message]:
    """What the judge is sent. `escape` writes triple quotes in the texts as \\\"\\\"\\\"."""
    first, second = (output, reference) if switched(instruction) else (reference, output)
    texts = {"instruction": instruction, "output_1": first, "output_2": second}
    if escape:
        texts = {name: text.replace('"""', '\\"\\"\\"') for name, text in texts.items()}
    prompt = PROMPT.read_text(encoding="utf-8")
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", prompt, flags=re.DOTALL)

    def fill(template: str) -> str:
        # in one pass: what looks like a placeholder in an output is not one
        placeholder = r"\{(instruction|output_1|output_2)\}"
        return re.sub(placeholder, lambda found: texts[found[1]], template)

    return [{"role": role, "content": fill(content.strip())} for role, content in turns]
