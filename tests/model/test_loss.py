"""The loss of a pack is that of transformers for each document alone, in every architecture."""

import itertools

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from adaptsft.objectives.build import NLL
from tests.model.batches import LENGTHS, built, packed_batch

ARCHITECTURES = [
    ("llama", False),
    ("llama", True),
    ("qwen2", False),
    ("qwen2", True),
    ("qwen3", False),
    ("gemma2", True),
    ("gemma3", True),
]


@pytest.mark.parametrize(("arch", "tied"), ARCHITECTURES)
def test_a_pack_gives_what_transformers_gives_for_each_document_alone(
    tiny_model, device, arch, tied
):
    """Forward and gradient, against the model as transformers loads and runs it, one document at a
    time and eagerly."""
    folder = tiny_model(arch, tied=tied)
    model, pretrained = built(folder, device)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    model.loss_settings["chunk_size"] = 7
    loss, tokens, _ = model.token_loss(batch, NLL, None, 1.0 / len(batch.targets))
    loss.backward()

    expected = []
    for begin, end in itertools.pairwise(batch.documents.cu_seqlens):
        ids = batch.ids.flatten()[begin:end][None]
        logits = reference(input_ids=ids, use_cache=False).logits[0, :-1]
        expected.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1))
    expected = torch.cat(expected)
    (-expected.mean()).backward()
    assert (tokens.logp - expected).abs().max() < 2e-6
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        error = (parameter.grad.full_tensor() - gradients[name]).abs().max()
        assert error < 1e-6 * max(1.0, largest), name
