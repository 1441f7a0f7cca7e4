"""A loop of one's own around AdaptiveObjective, for its tests."""

import torch
from torch import Tensor, nn

from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.objectives.loss import next_tokens

STEPS = 8


class Loop:
    """A linear "language model" that fits random next tokens, [4, 12] of them in a step."""

    def __init__(self, objective: object = "auto", fused: bool = True, **named: object):
        torch.manual_seed(0)
        self.body, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        parameters = [*self.body.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=fused)
        named = {"total_steps": STEPS, "optimizer": self.optimizer} | named
        self.objective = AdaptiveObjective(objective, **named)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 50, (4, 12), generator=generator)
        labels = ids.clone()
        labels[torch.rand(4, 12, generator=generator) < 0.3] = -100
        return ids, next_tokens(labels)

    def step(self, step: int, split: int = 1) -> dict[str, float]:
        ids, targets = self.batch(step)
        count = int((targets != -100).sum())
        for x, y in zip(ids.chunk(split), targets.chunk(split), strict=True):
            loss, _ = self.objective.loss(self.body(x), self.head.weight, y, num_tokens=count)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.step()
        return self.objective.metrics()

    def run(self, first: int = 0, split: int = 1) -> list[dict[str, float]]:
        return [self.step(step, split) for step in range(first, STEPS)]
