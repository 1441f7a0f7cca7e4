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
# of a letter in a token: spaces, also as tokenizers write them, emphasis, and quotes
_AROUND = " \t\r\n\u00a0\u0120\u010a\u2581*_`'\""
SEED = 0  # of the order; the default of that repository


def switched(instruction: str) -> bool:
    """Whether the model's output comes first, as m."""
    seed = f"is_switched_outputs{instruction}{SEED}".encode(errors="surrogatepass")  # as of a str
    return random.Random(seed).choices([False, True])[0]


def preference(logprobs: dict[str, float], is_switched: bool) -> float:
    """From 1 (the reference) to 2 (the model); NaN where the judge gave neither m nor M.

    Tokens with spaces or emphasis around a letter count as the letter, and those of one letter are
    summed; but where both letters are there by themselves and are likelier than these, they alone
    count, as in the published judgements.
    """
    bare = [logprobs.get(letter, -math.inf) for letter in "mM"]
    read = [
        np.logaddexp.reduce(
            [value for token, value in logprobs.items() if token.strip(_AROUND) == letter],
            initial=-math.inf,
        )
        for letter in "mM"
    ]
    if max(read) == -math.inf:
        return math.nan
    as_published = min(bare) > -math.inf and np.exp(bare).sum() >= np.exp(read).sum() / 2
    m, big = bare if as_published else read
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
