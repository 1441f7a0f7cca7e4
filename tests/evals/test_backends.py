"""Backends: the model's own answers, whatever the batch; a real HTTP server; recorded outputs."""

import json
import sys
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.config.schema import ControllerConfig, DataConfig, ObjectiveConfig
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals import in_training
from adaptsft.evals.backends.decode import choose
from adaptsft.evals.backends.hf import HuggingFace, label_of
from adaptsft.evals.backends.http import HTTP
from adaptsft.evals.backends.registry import open_backend
from adaptsft.evals.prompts import fill
from adaptsft.evals.protocol import Output, Request, Sampling
from adaptsft.evals.renderer import Renderer
from adaptsft.model.tiny import make_tiny_model

PROMPTS = [
    "The quick brown fox",
    "Natalia sold 48 clips in April, and half as many in May: 48 + 24 =",
    "Question: what",
    "the capital of France is",
]


@pytest.fixture(scope="module")
def loud_model(tmp_path_factory):
    """Weights ten times the usual size: greedy answers differ, and end."""
    return make_tiny_model(tmp_path_factory.mktemp("loud"), "llama", initializer_range=0.3, seed=3)


@pytest.fixture(scope="module")
def backend(loud_model):
    return HuggingFace(str(loud_model), template="plain", batch_size=3)


def requests(backend, prompts=PROMPTS, seed=0):
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [Request(str(i), 0, seed + i, m, backend.render(m)) for i, m in enumerate(asked)]


def test_runs_of_different_objectives_have_different_names():
    fixed, auto = ControllerConfig(), ControllerConfig(name="auto")
    assert label_of(ObjectiveConfig(name="nll"), fixed) == "nll"
    assert label_of(ObjectiveConfig(name="alpha", alpha=0.3), fixed) == "alpha alpha 0.3"
    assert (
        label_of(ObjectiveConfig(name="threshold", lower=0.2, params={"width": 2.0}), fixed)
        == "threshold lower 0.2 width 2"
    )
    assert label_of(ObjectiveConfig(name="concentration"), auto) == "concentration auto"
    frozen = ObjectiveConfig(name="deft", reference="base")
    assert label_of(frozen, fixed) == "deft reference base"
    pieces = ControllerConfig(name="piecewise", points=[[0.0, 0.0], [0.5, 1.0]])
    assert label_of(ObjectiveConfig(name="alpha"), pieces) == "alpha alpha 0: 0, 0.5: 1"


def test_greedy_is_the_argmax_of_the_model(backend, loud_model):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(loud_model).eval(),
        AutoTokenizer.from_pretrained(loud_model),
    )
    for prompt, output in zip(
        PROMPTS, backend.generate(requests(backend), Sampling(max_tokens=12)), strict=True
    ):
        ids, answer = tokenizer(prompt, return_tensors="pt").input_ids, []
        while len(answer) < 12:
            token = int(model(ids).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            answer.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert output.text == tokenizer.decode(answer, skip_special_tokens=True)
        assert output.finish_reason == ("length" if len(answer) == 12 else "stop")
        assert output.n_tokens == len(answer)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen2"])
def test_an_answer_does_not_depend_on_its_batch(tiny_model, arch):
    backend = HuggingFace(str(tiny_model(arch)), template="plain", batch_size=4)
    params = Sampling(temperature=1.0, max_tokens=40)
    together = backend.generate(requests(backend), params)
    alone = [backend.generate([request], params)[0] for request in requests(backend)]
    backend.batch_size = 2
    for others in (alone, backend.generate(requests(backend)[::-1], params)[::-1]):
        assert [output[:3] for output in others] == [output[:3] for output in together]
        entropies = [output.entropy for output in together]
        assert [output.entropy for output in others] == pytest.approx(entropies, rel=1e-5)
    assert len({output.text for output in together}) == 4
    before = torch.get_rng_state()
    assert together != backend.generate(requests(backend, seed=100), params)
    assert torch.equal(before, torch.get_rng_state()), "nobody else's random numbers are used"


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -50.0]).repeat(20_000, 1)
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 0.5):
        counts = choose(logits, Sampling(temperature), uniforms).bincount(minlength=4) / 20_000
        torch.testing.assert_close(counts, (logits[0] / temperature).softmax(-1), atol=0.01, rtol=0)
    nucleus = choose(logits, Sampling(1.0, top_p=0.7), uniforms).bincount(minlength=4) / 20_000
    p = logits[0].softmax(-1)
    torch.testing.assert_close(
        nucleus, torch.tensor([p[0], p[1], 0.0, 0.0]) / (p[0] + p[1]), atol=0.01, rtol=0
    )
    edges = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert choose(logits[:2], Sampling(1.0), edges).tolist() in ([0, 2], [0, 3])


def test_stop_strings_end_an_answer_and_are_not_in_it(backend):
    params = Sampling(temperature=1.0, max_tokens=60)
    free = backend.generate(requests(backend), params)
    stop = next(output.text[10:13] for output in free if len(output.text) > 20)
    for output, uncut in zip(
        backend.generate(requests(backend), Sampling(1.0, 1.0, 60, (stop,))), free, strict=True
    ):
        assert output.text == uncut.text.split(stop)[0]
        assert (output.finish_reason == "stop") or stop not in uncut.text


def test_a_prompt_that_fills_the_context_is_not_answered(backend):
    backend.context, context = 20, backend.context
    try:
        outputs = backend.generate(
            requests(backend, ["fox", "the lazy dog " * 20]),
            Sampling(max_tokens=100, temperature=1.0),
        )
    finally:
        backend.context = context
    assert outputs[1] == Output("", "prompt_too_long", 0, None, 0)
    assert 0 < outputs[0].n_tokens < 20


def test_loglikelihood_is_the_sum_over_the_continuation(backend, loud_model):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(loud_model).eval(),
        AutoTokenizer.from_pretrained(loud_model),
    )
    pairs = [
        ("The quick brown", " fox jumps"),
        ("Natalia sold 48 clips in", " April"),
        ("The quick brown ", "fox jumps"),
        ("", "Paris"),
    ]
    found = backend.loglikelihood(pairs)
    for (context, continuation), likelihood in zip(pairs[:2], found, strict=False):
        ids = tokenizer(context + continuation, return_tensors="pt").input_ids
        first = len(tokenizer(context).input_ids)
        logp = model(ids).logits[0, first - 1 : -1].log_softmax(-1)
        assert likelihood.logprob == pytest.approx(
            float(logp.gather(1, ids[0, first:, None]).sum()), abs=1e-4
        )
        assert likelihood.n_tokens == ids.shape[1] - first
    assert found[2].logprob == pytest.approx(found[0].logprob, abs=1e-4), (
        "a space at the end of the context belongs to the continuation"
    )
    greedy = backend.generate(requests(backend, ["The lazy dog"]), Sampling(max_tokens=3))[0].text
    assert backend.loglikelihood([("The lazy dog", greedy)])[0].greedy


def test_a_soft_cap_of_the_attention_is_honoured(tiny_model):
    path = tiny_model("gemma2", initializer_range=0.5)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(path)(
        "The quick brown fox jumps", return_tensors="pt"
    ).input_ids
    first = len(AutoTokenizer.from_pretrained(path)("The quick brown").input_ids)
    logp = (
        model(ids)
        .logits[0, first - 1 : -1]
        .log_softmax(-1)
        .gather(1, ids[0, first:, None])
        .sum()
        .item()
    )
    capped = HuggingFace(str(path), device="cpu", template="plain")
    assert capped.loglikelihood([("The quick brown", " fox jumps")])[0].logprob == pytest.approx(
        logp, abs=1e-3
    )
    with in_training.generating(model):
        assert model.config._attn_implementation == "eager"


def test_templates(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("qwen2"))
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "2+2?"},
    ]
    chatml = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (
        Renderer(tokenizer, DataConfig()).text(messages)
        == Renderer(tokenizer, DataConfig(), "chatml").text(messages)
        == chatml
    )
    assert (
        Renderer(tokenizer, DataConfig(), "deepseek").text(messages) == "User: 2+2?\n\nAssistant:"
    )
    trained = DataConfig(template="plain", prompt_template="Q: {prompt}\nA: ")
    assert Renderer(tokenizer, trained).text(messages) == "Q: 2+2?\nA: ", (
        "a run is asked as it was trained"
    )
    with pytest.raises(ConfigError, match="choose one of auto, chat"):
        Renderer(tokenizer, DataConfig(), "qwen")
    assert fill("{q}: \\boxed{} {x", {"q": "{a}"}) == "{a}: \\boxed{} {x"


class Server(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does; every second request is refused at first."""

    seen: ClassVar[list] = []
    refused: ClassVar[set] = set()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body, self.headers.get("Authorization")))
        if body["model"] == "none":
            return self.reply(404, {"error": "no such model"})
        if body["model"] == "proxied":
            return self.reply(200, {"error": "quota"})
        if body.get("seed", 0) % 2 and body["seed"] not in self.refused:
            self.refused.add(body["seed"])
            return self.reply(503, {"error": "busy"})
        if body.get("echo"):
            logprobs = {
                "tokens": ["The", " fox", "!"],
                "text_offset": [0, 3, 7],
                "token_logprobs": [None, -1.5, -9.0],
            }
            logprobs["top_logprobs"] = [None, {" fox": -1.5}, {"!": -1.0}]
            return self.reply(200, {"choices": [{"text": "", "logprobs": logprobs}]})
        if self.path.endswith("/chat/completions"):
            choice = {
                "message": {"content": body["messages"][-1]["content"].upper()},
                "finish_reason": "stop",
            }
        else:
            # as servers that know no stop strings
            end = body.get("stop", [""])[-1]
            choice = {"text": f"[{body['prompt'][-3:]}]{end} 2", "finish_reason": "length"}
        return self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 7}})

    def reply(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def url(monkeypatch):
    Server.seen, Server.refused = [], set()
    monkeypatch.setattr("adaptsft.evals.backends.http.time.sleep", lambda seconds: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/"
        server.shutdown()


def test_http(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-one")
    chat = HTTP(url, "m", "auto", parallel=2)
    params = Sampling(0.7, 0.9, 33, ("\n\n",))
    outputs = chat.generate(requests(chat), params)
    assert [output.text for output in outputs] == [prompt.upper() for prompt in PROMPTS]
    assert outputs[0].finish_reason == "stop" and outputs[0].n_tokens == 7
    path, body, key = Server.seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer not-a-real-one"
    sent = [body[key] for key in ("temperature", "top_p", "max_tokens", "stop")]
    assert sent == [0.7, 0.9, 33, ["\n\n"]]
    assert {body["seed"] for _, body, _ in Server.seen} == {0, 1, 2, 3}
    assert len(Server.seen) == 6, "the two that were turned away were sent again"
    assert "not-a-real-one" not in json.dumps(chat.identity)

    text = HTTP(url, "m", "deepseek", parallel=2)
    assert text.generate(requests(text, ["hello"]), params)[0][:3] == ("[nt:]", "stop", 7)
    body = Server.seen[-1][1]
    assert body["prompt"] == "User: hello\n\nAssistant:"
    assert body["stop"] == ["\n\n", "\n\nUser:"] and text.identity["stop"] == ["\n\nUser:"]
    assert "stop" not in chat.identity, "the server knows"
    found = text.loglikelihood([("The", " fox")])[0]
    assert (found.logprob, found.greedy, found.n_tokens) == (-1.5, True, 1), (
        "the token generated after the continuation is not counted"
    )
    with pytest.raises(DataError, match=r"404.*no such model"):
        HTTP(url, "none", "auto", 1).generate(requests(chat), params)
    with pytest.raises(DataError, match=r'no choices in {"error": "quota"}.*are kept'):
        HTTP(url, "proxied", "auto", 1).generate(requests(chat), params)


def test_http_server_that_stays_away(monkeypatch):
    monkeypatch.setattr("adaptsft.evals.backends.http.time.sleep", lambda seconds: None)
    away = HTTP("http://127.0.0.1:9", "m", "auto", 1)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9.*the same command resumes"):
        away.generate(requests(away, ["a"]), Sampling())


def test_replay(tmp_path):
    file = tmp_path / "outputs.jsonl"
    file.write_text(
        "".join(
            json.dumps({"task": name, "answer": text}) + "\n"
            for name, text in [("a", "1"), ("b", "2"), ("a", "3")]
        )
    )
    options = Namespace(replay=str(file), replay_fields="id=task,output=answer", model=None)
    backend = open_backend("replay", options)
    asked = [
        Request("a", 1, 0, [], None),
        Request("b", 0, 0, [], None),
        Request("a", 0, 0, [], None),
    ]
    assert [output.text for output in backend.generate(asked, Sampling())] == ["3", "2", "1"]
    with pytest.raises(DataError, match="no output 2 for item 'b'"):
        backend.generate([Request("b", 1, 0, [], None)], Sampling())
    with pytest.raises(
        DataError, match=r"record 1: 'item_id' and 'output' are wanted, it has task, answer"
    ):
        open_backend("replay", Namespace(replay=str(file), replay_fields=None, model=None))
    with pytest.raises(ConfigError, match="needs --replay FILE"):
        open_backend("replay", Namespace(replay=None, replay_fields=None, model=None))


def test_backends_that_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    options = {"model": "m", "template": "auto", "dtype": "auto", "tensor_parallel": 1}
    with pytest.raises(ConfigError, match=r"pip install 'adaptsft\[vllm\]'"):
        open_backend("vllm", Namespace(**options, max_model_len=None))
    with pytest.raises(ConfigError, match="needs --url"):
        open_backend("http", Namespace(url=None, model="m"))
    with pytest.raises(ConfigError, match="nowhere"):
        HuggingFace(str(tmp_path / "nowhere"))
