"""hub.push: the bytes of final/ arrive; what cannot work is refused before the run computes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from adaptsft.config.load import save_config
from adaptsft.config.schema import Config
from adaptsft.errors import ConfigError
from adaptsft.training.hub import check_push
from tests.conftest import REPO
from tests.hub_server import READ_TOKEN, TOKEN, Hub, serve
from tests.runs import metrics_of, small_config


@pytest.fixture
def hub():
    with serve() as server:
        yield server


@pytest.fixture
def here(hub, monkeypatch, tmp_path):
    """This process talks to the stand-in."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "all"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def run(config: Config, hub: Hub, ranks: int = 1) -> subprocess.CompletedProcess:
    """The whole command: its exit code is part of what is promised."""
    file = Path(config.run_dir).parent / "config.yaml"
    save_config(config, file)
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    paths = {"PYTHONPATH": f"{REPO}:{REPO / 'kernels'}", "HF_HOME": str(file.parent / "hf")}
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, *(program if ranks > 1 else []), "-m", "adaptsft.train", str(file)],
        env=os.environ | paths | settings | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.nightly
def test_final_arrives_and_a_push_that_fails_is_tried_again(tmp_path, tiny_model, hub):
    model = tiny_model("llama", tied=False)
    config = small_config(
        tmp_path,
        model,
        train__max_steps=2,
        hub__push="lab/sums",
        log__trackers=["tensorboard"],
        log__profile=[0, 1],
    )
    hub.refuses_commits = True
    done = run(config, hub, ranks=2)
    assert done.returncode == 1 and "exitcode  : 8" in done.stderr, done.stderr[-3000:]
    final = Path(config.run_dir) / "final"
    assert done.stderr.count("adaptsft.train: HubError: hub.push=lab/sums: not uploaded") == 1
    assert f"hf upload lab/sums {final} . --private" in done.stderr
    assert hub.repositories["lab/sums"]["visibility"] == "private" and hub.commits == []
    # rank 0 alone talks to trackers, and every rank leaves its trace
    assert len(list((final.parent / "tensorboard").iterdir())) == 1
    traces = {path.name[-14:] for path in (final.parent / "profile").iterdir()}
    assert traces == {"rank_0.json.gz", "rank_1.json.gz"}

    hub.refuses_commits = False
    done = run(config, hub)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(metrics_of(config)) == 2 and "is finished already" in done.stderr
    assert hub.files["lab/sums", "main"] == contents(final)
    assert {"README.md", "config.json", "model.safetensors"} <= contents(final).keys()
    assert hub.commits == ["Upload run with adaptsft"]


@pytest.mark.slow
def test_a_branch_of_a_public_repository(tmp_path, tiny_model, hub):
    model = tiny_model("llama", tied=False)
    config = small_config(
        tmp_path,
        model,
        train__max_steps=1,
        hub__push="ann/sums",
        hub__private=False,
        hub__revision="second",
    )
    done = run(config, hub)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"is at {hub.url}/ann/sums" in done.stderr
    assert hub.repositories["ann/sums"]["visibility"] == "public"
    assert hub.files["ann/sums", "second"] == contents(Path(config.run_dir) / "final")


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("sums", TOKEN, "must be USER/NAME"),
        ("ann/su ms", TOKEN, "Repo id must use alphanumeric"),
        ("ann/sums", "", "no token of the hub: run `hf auth login`"),
        ("ann/sums", "hf_expired", "the hub refuses: Invalid user token"),
        ("ann/sums", READ_TOKEN, "the token 'mine' may only read"),
        ("bob/sums", TOKEN, "ann may not write there, but to ann, lab, club"),
        ("club/sums", TOKEN, "ann may only read in club"),
        ("ann/others", TOKEN, "the hub refuses: .*403"),
    ],
)
def test_what_cannot_be_pushed_is_refused(here, hub, monkeypatch, name, token, message):
    config = Config()
    config.hub.push = name
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match=rf"hub\.push={name}: {message}"):
        check_push(config)
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["ann/sums", "lab/sums"])
def test_what_can_be_pushed_is_only_asked_for(here, hub, name):
    config = Config()
    config.hub.push = name
    check_push(config)
    assert hub.repositories == {}
    hub.repositories[name] = {}  # it exists, and may be written to
    check_push(config)


def test_a_hub_out_of_reach(here, monkeypatch):
    config = Config()
    config.hub.push = "ann/sums"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=rf"hub\.push=ann/sums: .*{port} does not answer"):
        check_push(config)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        check_push(config)


def test_the_model_card_tells_how_the_model_was_made_and_no_paths(tmp_path, tiny_model):
    from adaptsft.train import train

    config = small_config(
        tmp_path,
        tiny_model("llama", tied=False),
        train__max_steps=2,
        data__validation_examples=4,
        objective__name="alpha",
        controller__name="linear",
        controller__end=0.5,
    )
    train(config)
    card = (Path(config.run_dir) / "final" / "README.md").read_text()
    _, facts, text = card.split("---\n", 2)
    assert yaml.safe_load(facts) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["adaptsft", "sft"],
    }
    assert str(tmp_path) not in card and "/" not in text
    assert "| controller | linear, end: 0.5 |" in text and "| data | data |" in text
    assert "| base model | model (a local folder) |" in text
    assert "| steps | 2 of 5 examples |" in text and "held-out data | NLL " in text


def test_the_model_card_names_what_the_hub_has(tmp_path):
    from adaptsft.training.model_card import model_card

    config = small_config(tmp_path, Path("Qwen/Qwen2.5-0.5B"), data__path="openai/gsm8k")
    facts = yaml.safe_load(model_card(config, 10, {}).split("---\n")[1])
    assert facts["base_model"] == "Qwen/Qwen2.5-0.5B" and facts["datasets"] == ["openai/gsm8k"]
