"""The entropy that the backend hf records of its answers."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from adaptsft.evals.backends.decode import choose, entropy
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.protocol import Request, Sampling
from adaptsft.model.tiny import make_tiny_model

LONGEST = 40
PROMPTS = ("The quick brown fox", "Natalia sold 48 clips in April", "Question: what", "Paris")


def test_it_is_that_of_the_distributions_that_the_answer_was_drawn_from(tmp_path):
    """Against the model's own logits along the answer, to its end or the limit."""
    folder = make_tiny_model(tmp_path / "loud", "llama", initializer_range=0.3, seed=3)
    backend = HuggingFace(str(folder), template="plain", batch_size=3)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = [Request("", 0, seed, [], text) for seed in range(7, 9) for text in PROMPTS]
    outputs, ended = backend.generate(asked, Sampling(1.0, max_tokens=LONGEST)), 0
    for request, output in zip(asked, outputs, strict=True):
        generator = torch.Generator().manual_seed(request.seed)
        ids, entropies = backend.renderer.ids(request.text), []
        for uniform in torch.rand(LONGEST, dtype=torch.float64, generator=generator):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[:, -1]
            logp = logits[0].double().log_softmax(-1)
            entropies.append(-float((logp.exp() * logp).sum()))
            ids.append(int(choose(logits, Sampling(1.0), uniform[None])))
            if ids[-1] in backend.ends:
                ended += 1
                break
        assert output.drawn == len(entropies)
        assert output.drawn == output.n_tokens + (output.finish_reason == "stop")
        assert output.entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
        assert output.entropy > 0.1
    assert 0 < ended < len(asked), "both ways of ending are there"
    for other in (Sampling(max_tokens=4), Sampling(temperature=0.7, max_tokens=4)):
        for output in backend.generate(asked[:2], other):
            assert (output.entropy, output.drawn) == (None, None), "not the model's own answers"


def test_a_token_that_cannot_come_has_no_part_in_it():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    assert entropy(logits).tolist() == pytest.approx([0.6931472, 0.0])
