"""Streams: their shards, of which two at most are on the disk, and what is refused. For kills see
tests/faults/test_stream.py."""

import itertools
import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from adaptsft import plan as planner
from adaptsft.config.schema import Config
from adaptsft.data.remote import copy_of
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.shards import Shard, folder_of, list_files, make_shard
from adaptsft.data.stream import Tokeniser
from adaptsft.data.tokenized import open_data
from adaptsft.errors import CheckpointError, ConfigError, DataError
from adaptsft.objectives.base import register
from adaptsft.objectives.library.functions import nll
from adaptsft.train import train
from tests.data.sizes import sizes_only
from tests.data.test_remote import serving
from tests.runs import metrics_of, small_config, write_data

# two files in a shard, five examples in a step: shards of 2, 2, 1, 2, 2 steps
FILES, EACH, STEPS = 5, 7, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("stream")
    (made / "shards").mkdir()
    for number in range(FILES):
        write_data(made / "shards" / f"{number}.jsonl", EACH, seed=number)
    return made


@pytest.fixture(scope="module")
def stream_config(folder, tiny_model):
    def config(name: str, path: str = "shards/*.jsonl", **overrides) -> Config:
        settings = {
            "data__path": f"file://{folder / path}",
            "data__stream": 2,
            "train__max_steps": STEPS,
            "checkpoint__every": 1,
        } | overrides
        return small_config(folder, tiny_model("qwen2"), name, **settings)

    return config


mapped_but_deleted: list[str] = []


@register("nll_looking_at_memory_maps")
def nll_looking_at_memory_maps(logp):
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped_but_deleted.extend(line for line in maps if "tokens.arrow (deleted)" in line)
    return nll(logp)


class Watch:
    """Which folders of shards exist, looked at every few milliseconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.over = folder, threading.Event()
        self.seen: set[tuple[str, ...]] = set()
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self.over.wait(0.005):
            self.seen.add(tuple(sorted(path.name for path in self.folder.glob("part_*"))))

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.thread.join()


@pytest.fixture(scope="module")
def whole(stream_config):
    """A run through a pass and two thirds of the next, and what was watched meanwhile."""
    config = stream_config("whole", objective__name="nll_looking_at_memory_maps")
    with Watch(folder_of(config)) as watch:
        train(config)
    return config, watch


def shard_of(number: int, first: int, config: Config) -> Shard:
    return make_shard(config, [f"{i}.jsonl" for i in range(7)], number, first)


def test_a_pass_has_every_file_once_and_passes_differ():
    config = Config(seed=3)
    config.data.stream = 3
    passes = [
        [shard_of(turn * 3 + place, 0, config).files for place in range(3)] for turn in range(4)
    ]
    for files in passes:
        assert sorted(map(len, files)) == [2, 2, 3]
        assert sorted(itertools.chain(*files)) == [f"{i}.jsonl" for i in range(7)]
    assert len({json.dumps(files) for files in passes}) == 4
    config.seed = 4
    assert shard_of(0, 0, config).files != passes[0][0]


def test_the_sampler_of_a_shard_counts_steps_over_the_whole_stream():
    config = Config(seed=3)
    config.data.stream, config.train.global_batch_size, config.data.max_length = 3, 16, 64
    config.train.micro_batch_size = 1
    data = sizes_only((100,))
    fourth, fifth = (BatchSampler(data, config, 1, shard_of(n, 40, config)) for n in (4, 5))
    for sampler in (fourth, fifth):
        assert (sampler.first, sampler.end) == (40, 46)
        seen = np.concatenate([sampler.examples(step) for step in range(40, 46)])
        assert len(np.unique(seen)) == len(seen) == 96
    assert not np.array_equal(fourth.examples(40), fifth.examples(40)), "another order in each"
    assert fourth.epoch(40) == pytest.approx(4 / 3)
    assert fourth.epoch(45) == pytest.approx((4 + 0.8) / 3)
    samplers = [BatchSampler(data, config, world, shard_of(4, 40, config)) for world in (1, 4)]
    for step in range(40, 46):
        one, four = (
            Counter(
                example
                for rank in range(sampler.world_size)
                for packs in sampler.micro_batches(step, rank)
                for pack in packs
                for example in pack
            )
            for sampler in samplers
        )
        assert one == four


def test_a_checkpoint_where_shards_meet_belongs_to_the_shard_that_begins():
    config = Config()
    config.data.stream, config.train.global_batch_size, config.data.max_length = 3, 16, 64
    one, two = (
        BatchSampler(
            sizes_only((100,), seed=number), config, 1, shard_of(number, 6 * number, config)
        )
        for number in (0, 1)
    )
    assert one.position(6) == two.position(6)
    assert one.position(5)["part"] == 0
    assert two.position(7)["part"] == 1
    other = BatchSampler(sizes_only((100,), seed=9), config, 1, one.shard)
    assert one.position(5)["fingerprint"] != other.position(5)["fingerprint"]


def test_a_shard_smaller_than_a_step_is_refused():
    config = Config()
    config.data.stream, config.train.global_batch_size = 1, 1000
    data = sizes_only((100,))
    too_small = r"data\.stream=1: a shard .* 100 examples.*global_batch_size=1000: raise data\.st"
    with pytest.raises(ConfigError, match=too_small):
        BatchSampler(data, config, 1, shard_of(0, 0, config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__stream": -1}, r"data\.stream=-1: must not be negative"),
        ({"train__max_steps": 0}, r"data\.stream=2: .* set train\.max_steps"),
        ({"data__validation_examples": 3}, r"data\.stream=2: .* set data\.validation_path"),
        ({"data__split": "test"}, r"data\.stream=2: .*data\.split mean nothing"),
        (
            {"data__path": "", "data__sources": [{"path": "a.jsonl"}]},
            r"data\.stream=2 works with data\.path",
        ),
        (
            {"objective__name": "threshold", "objective__lower_quantile": 0.1},
            r"data\.stream=2: quantiles .* set objective\.lower",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_refused(stream_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        stream_config("refused", **overrides)


def test_names_on_the_hub_and_urls_are_refused_with_the_way_to_read_them(stream_config, folder):
    config = stream_config("hub", data__path="org/name")
    with pytest.raises(
        ConfigError, match=r"data\.path=org/name is neither .* hf://datasets/ORG/NAME"
    ):
        list_files(config.data)
    with pytest.raises(DataError, match=r"none/\*\.jsonl: no file matches"):
        list_files(stream_config("none", "none/*.jsonl").data)
    with pytest.raises(DataError, match=r"nosuch://x: cannot be read: .*nosuch"):
        list_files(stream_config("protocol", data__path="nosuch://x").data)
    with pytest.raises(DataError, match=r"URLs are read for training with data\.stream"):
        train(stream_config("whole-url", data__stream=0))


def test_two_shards_at_most_are_on_the_disk(whole):
    _, watch = whole
    names = [f"part_{number:06d}" for number in range(5)]
    assert set(names) == {name for seen in watch.seen for name in seen}, "each was there once"
    assert max(map(len, watch.seen)) == 2
    assert watch.seen <= {(), *((name,) for name in names), *itertools.pairwise(names)}, (
        "this shard and the next"
    )
    assert mapped_but_deleted == [], "a deleted file that is still mapped keeps its space"


def test_a_pass_is_learned_but_for_what_fills_no_step(whole, folder):
    config, _ = whole
    lines = metrics_of(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    listing, seen, first = list_files(config.data), [], 0
    for number in range(3):
        shard = replace(make_shard(config, listing, number, first), cache=folder / "look")
        data, _ = open_data(config.data, tokenizer, config.seed, log=lambda line: None, shard=shard)
        sampler = BatchSampler(data, config, 1, shard)
        for step in range(sampler.first, sampler.end):
            seen += sampler.where(step)
            assert lines[step]["all_tokens"] == sampler.tokens(step)
        first = sampler.end
    assert first == 5 and len(seen) == len(set(seen)) == 25
    assert lines[4]["epoch"] == pytest.approx((2 + 5 / 7) / 3)


def test_it_resumes_bitwise_from_a_shard_that_was_deleted(whole, stream_config, capfd):
    config, _ = whole
    again = stream_config("again", objective__name=config.objective.name)
    # the middle of shard 4
    again.resume = str(Path(config.run_dir) / "checkpoints" / "step_00000006")
    train(again)
    assert metrics_of(again) == metrics_of(config)[6:]
    final = "final/model.safetensors"
    assert (Path(again.run_dir) / final).read_bytes() == (Path(config.run_dir) / final).read_bytes()
    begun = "shard 4 of the stream: steps 6 to 7; 4 of its 14 examples are left over at its end"
    assert begun in capfd.readouterr().err


def test_changed_files_are_noticed_where_it_resumes(whole, stream_config, folder):
    config, _ = whole
    shutil.copytree(folder / "shards", folder / "changed")
    again = stream_config("changed", "changed/*.jsonl", objective__name=config.objective.name)
    saved = Path("checkpoints") / "step_00000006"
    shutil.copytree(config.run_dir / saved, again.run_dir / saved)
    fourth = make_shard(again, list_files(again.data), 3, 5)
    changed = Path(fourth.files[0].removeprefix("file://"))
    content = changed.read_text()
    changed.write_text(content.replace("Add", "Sum", 1))
    with pytest.raises(CheckpointError, match="data has changed"):
        train(again)
    changed.write_text(content)
    write_data(folder / "changed" / "9.jsonl", 7)
    with pytest.raises(CheckpointError, match="data has changed"):
        train(again)


def test_a_bad_record_of_a_later_shard_ends_the_run_with_its_place(whole, stream_config, folder):
    """Of files on a web server. Once repaired, the file is fetched again, and the run goes on to
    the end of that of the same files here."""
    shutil.copytree(folder / "shards", folder / "broken")
    with serving(folder) as server:
        config = stream_config("bad", data__path=f"{server.url}/broken/*.jsonl")
        url = make_shard(config, list_files(config.data), 1, 2).files[1]
        bad = folder / url.removeprefix(f"{server.url}/")
        lines = bad.read_text().splitlines()
        bad.write_text("\n".join([*lines[:4], "{}", *lines[5:]]))
        with pytest.raises(DataError, match=re.escape(f"{url}:5: ")):
            train(config)
        assert sorted(path.name for path in (Path(config.run_dir) / "checkpoints").iterdir()) == [
            "step_00000001",
            "step_00000002",
        ]
        bad.write_text("\n".join(lines))
        train(config)
    assert metrics_of(config) == metrics_of(whole[0])


def test_a_tokeniser_that_is_killed_is_an_error(stream_config):
    tokeniser = Tokeniser(stream_config("killed"), None)
    os.kill(tokeniser.process.pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match="ended with code -9: out of memory"):
        tokeniser.result()


def test_the_planner_opens_one_shard(stream_config):
    config = stream_config("planned")
    lines, packs = planner.steps_of(config, 2, AutoTokenizer.from_pretrained(config.model.path))
    assert packs == 5, "of the next shard, each example may need one of its own"
    assert (
        lines[0]
        == "steps: 9 of 5 examples, about 1.07 passes of 3 shards; this shard has 14 examples"
    )
    first = make_shard(config, list_files(config.data), 0, 0)
    assert [path.name for path in folder_of(config).iterdir()] == [first.cache.name]
    assert all(copy_of(url, first.cache).is_file() for url in first.files)
