"""The pages are true: their commands are accepted by the programs that they name, and the trainer's
are run, in small; files that they link to exist.
"""

import argparse
import itertools
import json
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptsft import chat, diagnose, export, plan, report, train as trainer
from adaptsft.config.resolve import load_config
from tests.conftest import REPO

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
STARTS = ("python ", "torchrun ", "make ", "pip ", "sbatch ", "tools/", "export ", "…")
IN_TEXT = (
    "python -m adaptsft",
    "python -m benchmarks.",
    "python benchmarks",
    "python tools",
    "make ",
)
# what stands for something of the reader's
PLACEHOLDERS = {"N": "1", "GRADER": "math-robust", "CONFIG": "configs/sft.yaml"}
# what a machine without data, model hub or GPU makes of a training run
SMALL = [
    "train.max_steps=2",
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
    "train.device=cpu",
    "data.max_length=256",
    "data.cache_dir=cache",
    "checkpoint.every=1",
    "eval.limit=2",
]
RUN_HERE = {"train": trainer, "diagnose": diagnose, "plan": plan, "chat": chat, "export": export}
RUN_HERE["report"] = report


def in_blocks(page: Path) -> Iterator[str]:
    """Commands in the page's shell blocks. Those with shell variables are for a GPU machine:
    tests/test_gpu_suite.py."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.split(r"\s+#\s", line)[0].strip()
            if command.startswith(STARTS) and "$" not in command:
                yield from (part.strip() for part in command.split("&&"))


def commands_of(page: Path) -> Iterator[str]:
    """Those, and the commands in the page's text."""
    yield from in_blocks(page)
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith(IN_TEXT) and "$" not in code:
            yield code


COMMANDS = {
    f"{page.relative_to(REPO)} {number}": command
    for page in PAGES
    for number, command in enumerate(dict.fromkeys(commands_of(page)), 1)
}


def words_of(command: str) -> list[str]:
    """The words of a command, without redirections and "…", which stands for more arguments."""
    words = shlex.split(re.split(r"\s[<>|]\s", command)[0])
    return [PLACEHOLDERS.get(word, word) for word in words if word != "…"]


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """(module or script, its arguments) of a python or torchrun command."""
    if "-m" in words:
        place = words.index("-m") + 1
    else:
        place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[place], words[place + 1 :]


class Accepted(Exception):
    """A parser has taken all arguments."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, method)

        def and_stop(self, arguments=None, namespace=None, parse=parse):
            parse(self, arguments, namespace)
            raise Accepted

        monkeypatch.setattr(argparse.ArgumentParser, method, and_stop)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_is_accepted_by_its_program(command, parse_only, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    words = words_of(command)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert all(
            re.search(rf"^{target}:", (REPO / "Makefile").read_text(), re.M) for target in targets
        )
    elif words[0] == "pip":
        project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
        extras = set(re.findall(r"\[(\w+)\]", command))
        assert words[1] == "install" and extras <= project["optional-dependencies"].keys()
    elif words[0] == "sbatch" or words[0].startswith("tools/"):
        script = next(word for word in words if word.endswith((".sbatch", ".sh")))
        assert (REPO / script).is_file()
    elif words[0] == "export":
        assert all("=" in word for word in words[1:])
    elif command.startswith("…"):
        settings(words)
    else:
        program, arguments = program_of(words)
        if program.startswith("examples/"):  # tests/test_examples.py runs them
            assert (REPO / program).is_file()
            return
        # "… more arguments", or only the name of a command with its own
        check_python(program, arguments if "…" not in command else [*arguments, "--help"])


def check_python(program: str, arguments: list[str]) -> None:
    if program in ("adaptsft.train", "adaptsft.diagnose", "adaptsft.plan"):
        if program == "adaptsft.diagnose":
            _, arguments = diagnose.Options.parse(arguments)
        settings(arguments)
        return
    if not [word for word in arguments if not word.islower()] and len(arguments) < 2:
        arguments = [*arguments, "--help"]  # named in a text, without what it needs
    is_script = program.endswith(".py")
    run = runpy.run_path if is_script else runpy.run_module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        patch.syspath_prepend((REPO / program).parent if is_script else REPO)
        try:
            run(program, run_name="__main__")
        except Accepted:
            return
        except SystemExit as ended:
            if ended.code not in (0, None):
                pytest.fail(f"{program} refuses {arguments}")
        except ModuleNotFoundError as error:
            if error.name not in ("trl", "liger_kernel"):
                raise
            pytest.skip(f"needs the extra bench: {error}")


def settings(arguments: list[str]) -> None:
    """Configuration arguments, whatever they leave out, are a configuration."""
    given = [word for word in arguments if "=" in word and not word.startswith("-")]
    files = [word for word in arguments if word.endswith(".yaml")]
    names = {word.split("=")[0] for word in given}
    wanted = {"run_dir": "runs/x", "model.path": "org/name", "data.path": "train.jsonl"}
    if files and "paper" in files[0]:
        wanted = {}
    load_config([*files, *given, *(f"{k}={v}" for k, v in wanted.items() if k not in names)])


def runnable() -> list[str]:
    """Pages with training commands in their shell blocks."""
    return [
        str(page.relative_to(REPO)) for page in PAGES if "-m adaptsft.train" in page.read_text()
    ]


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md", "docs/lora.md"])
def test_the_pages_jobs_run_in_small(name, tmp_path, tiny_model, monkeypatch, capsys):
    """In the page's order, with a generated file for train.jsonl and a tiny model for any other."""
    for folder in ("configs", "tools", "benchmarks"):
        (tmp_path / folder).symlink_to(REPO / folder)
    write_train_file(tmp_path / "train.jsonl", 300)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = set()
    for command in in_blocks(REPO / name):
        words = words_of(command)
        if words[0] not in ("python", "torchrun") or "…" in command or "RUN" in command:
            continue
        program, arguments = program_of(words)
        short = program.removeprefix("adaptsft.")
        if "--help" in arguments or not (
            program == "tools/make_tiny_model.py" or short in RUN_HERE
        ):
            continue
        ran.add(program)
        if program.endswith(".py"):
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            runpy.run_path(program, run_name="__main__")
            continue
        assert RUN_HERE[short].main(in_small(short, arguments, tiny_model)) == 0, command
    assert "adaptsft.train" in ran and len(ran) > 1


def in_small(program: str, arguments: list[str], tiny_model) -> list[str]:
    model = tiny_model("qwen2", tied=True)
    hub = re.compile(r"model\.path=[\w-]+/[\w.-]+$")
    arguments = [
        f"model.path={model}" if hub.match(word) and not word.endswith("runs/tiny") else word
        for word in arguments
    ]
    if program == "chat":
        return [*arguments, "--prompt", "2 + 2?", "--max-new-tokens", "2"]
    return [*arguments, *SMALL] if program in ("train", "diagnose") else arguments


def write_train_file(path: Path, examples: int) -> None:
    """Sums, as GSM8K names its fields and as the trainer does."""
    with path.open("w") as file:
        for a, b in itertools.islice(itertools.product(range(20), repeat=2), examples):
            texts = {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}"}
            texts |= {"prompt": texts["question"], "completion": texts["answer"]}
            file.write(json.dumps(texts) + "\n")


LINKS = [
    (page, target)
    for page in PAGES
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    if not target.startswith(("http", "mailto"))
]


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda value: os.path.basename(str(value)))
def test_links_lead_to_files(page, target):
    assert (page.parent / target).exists(), f"{page.relative_to(REPO)} links to {target}"
