"""What FSDP2 does, and does not, on a single rank."""

from adaptsft.objectives.build import NLL
from adaptsft.statistics.step import StepStatistics
from tests.model.batches import LENGTHS, Operators, built, packed_batch


def test_a_single_rank_neither_divides_gradients_nor_sums_statistics_over_ranks(tiny_model, device):
    model, pretrained = built(tiny_model("llama", tied=False), device)
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    loss, tokens, kept = model.token_loss(batch, NLL, None, 1.0)
    statistics = StepStatistics(1, device)
    statistics.add(tokens, kept, batch)
    with Operators() as operators:
        loss.backward()
        statistics.all_reduce()
    names = {name for name, _ in operators.seen}
    assert "aten::mm" in names and not {"aten::div.Tensor", "c10d::allreduce_"} & names
    assert statistics.column("tokens").sum() == len(batch.targets)
