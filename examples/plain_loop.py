"""The adaptive objective in a loop of your own, on one device.

    python examples/plain_loop.py MODEL DATA.jsonl [STEPS]

MODEL is a Hugging Face name or folder, DATA.jsonl has lines {"question": …, "answer": …}.
"""

import sys

import torch
from batches import batches
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import AdaptiveObjective

name, data, *limit = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
steps = list(batches(data, tokenizer, size=8))[: int(limit[0]) if limit else None]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
objective = AdaptiveObjective("auto", total_steps=len(steps), optimizer=optimizer)

for step, batch in enumerate(steps, start=1):
    ids, mask, targets = (x.to(device) for x in batch)
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    loss, _ = objective.loss(hidden, model.lm_head.weight, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    objective.step()
    if step % 10 == 0 or step in (1, len(steps)):
        seen = objective.metrics()
        print(
            f"step {step}  nll {seen['nll']:.4f}  p {seen['mean_p']:.4f}  alpha {seen['alpha']:.4f}"
        )

state = {"optimizer": optimizer.state_dict(), "objective": objective.state_dict()}
torch.save(state, "state.pt")  # load_state_dict of both continues to the bit
