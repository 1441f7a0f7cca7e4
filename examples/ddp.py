"""The adaptive objective under DDP: the model and its loss are one module, which DDP wraps.

    torchrun --standalone --nproc-per-node 2 examples/ddp.py MODEL DATA.jsonl [STEPS]

The numbers are those of plain_loop.py, whatever the number of ranks.
"""

import os
import sys

import torch
import torch.distributed as dist
from batches import batches
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import AdaptiveObjective


class WithLoss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, objective, ids, mask, targets, num_tokens):
        hidden = self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return objective.loss(hidden, self.model.lm_head.weight, targets, num_tokens=num_tokens)[0]


name, data, *limit = sys.argv[1:]
dist.init_process_group()
rank, ranks, cuda = dist.get_rank(), dist.get_world_size(), torch.cuda.is_available()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
wrapped = DistributedDataParallel(WithLoss(model))
steps = list(batches(data, tokenizer, 8, rank, ranks))[: int(limit[0]) if limit else None]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
objective = AdaptiveObjective("auto", total_steps=len(steps), optimizer=optimizer)

for step, batch in enumerate(steps, start=1):
    ids, mask, targets = (x.to(device) for x in batch)
    num_tokens = (targets != -100).sum()
    dist.all_reduce(num_tokens)  # of the whole step; DDP averages the gradients over ranks
    wrapped(objective, ids, mask, targets, num_tokens / ranks).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    objective.step()
    if (step % 10 == 0 or step in (1, len(steps))) and rank == 0:
        seen = objective.metrics()
        print(
            f"step {step}  nll {seen['nll']:.4f}  p {seen['mean_p']:.4f}  alpha {seen['alpha']:.4f}"
        )

dist.destroy_process_group()
