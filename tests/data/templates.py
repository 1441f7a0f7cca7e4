"""Short chat templates of several families, and tokenizers that have their tokens."""

from adaptsft.model.tiny import CHATML
from tests.data.records import GEMMA, LLAMA3, tokenizer


def turns(user: str, assistant: str, system: str = "") -> str:
    """A chat template, from what it makes of each role's content."""
    cases = [("user", user), ("assistant", assistant), ("system", system or user)]
    branches = "".join(
        f"{{% {'elif' if i else 'if'} message.role == '{role}' %}}{text}"
        for i, (role, text) in enumerate(cases)
    )
    return f"{{% for message in messages %}}{branches}{{% endif %}}{{% endfor %}}"


CONTENT = "{{ message.content }}"
MISTRAL = turns(f"[INST] {CONTENT} [/INST]", f" {CONTENT}{{{{ eos_token }}}}")
# the end-of-text token only where the conversation ends there
PHI = (
    turns(f"<|user|>\n{CONTENT}<|end|>\n", f"<|assistant|>\n{CONTENT}<|end|>\n")
    + "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
)
GPT_OSS = turns(
    f"<|start|>user<|message|>{CONTENT}<|end|>",
    "{% if message.thinking %}<|channel|>analysis<|message|>{{ message.thinking }}<|end|>"
    f"{{% endif %}}<|channel|>final<|message|>{CONTENT}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}",
)
# the same without thoughts: nothing but a turn ends with <|end|>
TWO_ENDS = turns(
    f"<|user|>{CONTENT}",
    f"<|assistant|>{CONTENT}{{{{ '<|return|>' if loop.last else '<|end|>' }}}}",
)
CALLS = turns(
    f"<|user|>{CONTENT}<|end|>",
    "{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>"
    "{{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|call|>"
    f"{{% else %}}{CONTENT}<|end|>{{% endif %}}",
)
NEWLINE_FIRST = CHATML.replace("<|im_end|>", "\n <|im_end|>")
WANTS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
IN_PARTS = CHATML.replace("{{ message['content'] }}", "{{ message['content'][0]['text'] }}")
EOS_AT_THE_END = turns(f"User: {CONTENT}\n", f"Bot: {CONTENT}\n") + "{{ eos_token }}"
COMMAND = turns(f"<USER>{CONTENT}<END_TURN>", f"<BOT><START>{CONTENT}<END><END_TURN>")

SPECIAL = {
    LLAMA3: ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    GEMMA: ("<start_of_turn>", "<end_of_turn>"),
    MISTRAL: ("[INST]", "[/INST]", "</s>"),
    PHI: ("<|user|>", "<|assistant|>", "<|end|>"),
    GPT_OSS: ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
    TWO_ENDS: ("<|user|>", "<|assistant|>", "<|end|>", "<|return|>"),
    CALLS: ("<|user|>", "<|end|>", "<|call|>", "</tool_call>"),
    COMMAND: ("<USER>", "<BOT>", "<START>", "<END>", "<END_TURN>"),
}


def made(template: str | None, eos: str = "<|endoftext|>", **added):
    """A tokenizer whose eos_token is `eos`, whatever the template ends its turns with."""
    tok = tokenizer(template, SPECIAL.get(template, ()))
    tok.add_special_tokens({"eos_token": eos} | added)
    return tok
