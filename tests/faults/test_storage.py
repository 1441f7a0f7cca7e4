"""Storage that is damaged, full or in the way."""

import contextlib
import itertools
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.faults.ranks import live

KINDS = ["manifest.json", ".metadata", "state.json", "__0_0.distcp", "__1_0.distcp"]


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


HARMS = {"flip": flip, "truncate": truncate}


@pytest.mark.parametrize(
    ("kind", "harm"),
    [
        pytest.param(*pair, marks=[] if pair == (KINDS[3], "flip") else pytest.mark.faults)
        for pair in itertools.product(KINDS, HARMS)
    ],
)
def test_damage_to_a_checkpoint_is_named_and_the_one_before_works(begun, same, tally, kind, harm):
    with tally(
        f"{'a bit flipped in' if harm == 'flip' else 'truncation of'} a checkpoint, each kind of "
        "file"
    ) as trial:
        trial.begin()
        config = begun(f"{harm}-{kind}")
        checkpoints = Path(config.run_dir) / "checkpoints"
        HARMS[harm](checkpoints / "step_00000004" / kind)
        life = live_damaged(config)
        assert life.codes == [4, 4], (life.codes, life.stderr[-3000:])
        assert (
            kind in life.stderr
            and f"resume={checkpoints / 'step_00000002'}" in life.stderr
            and "Traceback" not in life.stderr
        )
        config.resume = str(checkpoints / "step_00000002")
        last = live(config)
        assert last.codes == [0, 0] and last.steps[0] == 3, last.stderr[-3000:]
        same(config)


def live_damaged(config):
    """A life beside a checkpoint that is known to be damaged."""
    from tests.faults import ranks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks.checkpoint, "verify", lambda path: None)
        return live(config)


@pytest.mark.faults
@pytest.mark.parametrize("harm", ["truncated", "header"])
def test_a_damaged_base_model_is_named(make_config, folder, tally, harm):
    with tally("a damaged model.safetensors") as trial:
        trial.begin()
        broken = folder / f"model-{harm}"
        shutil.copytree(folder / "model", broken)
        (file,) = broken.glob("*.safetensors")
        truncate(file) if harm == "truncated" else flip(file, 7)  # the header's length
        life = live(make_config(f"base-{harm}", model__path=broken))
        assert life.codes == [2, 2], (life.codes, life.stderr[-3000:])
        assert str(broken) in life.stderr and "Traceback" not in life.stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "harm"), [(name, harm) for name in ("tokens.arrow", "sizes.npy") for harm in HARMS]
)
def test_a_damaged_token_cache_is_named_and_made_again(
    make_config, folder, same, tally, name, harm
):
    with tally("a damaged token cache") as trial:
        trial.begin()
        cache = folder / f"cache-{name}-{harm}"
        shutil.copytree(folder / "cache", cache)
        for file in cache.glob(f"*/{name}"):
            HARMS[harm](file)
        config = make_config(f"cached-{name}-{harm}", data__cache_dir=cache)
        life = live(config)
        assert life.codes in ([3, 3], [0, 0]), (life.codes, life.stderr[-3000:])
        if life.codes == [3, 3]:
            assert str(cache) in life.stderr and "Traceback" not in life.stderr
            shutil.rmtree(cache)
            assert live(config).codes == [0, 0]
        same(config)  # never a run on other tokens than those of the data


@pytest.mark.faults
@pytest.mark.parametrize(
    "tail",
    [b'{"step": 5, "lo', b"\x00" * 100, b'{"step": \xff\xfe'],
    ids=["torn", "zeros", "not UTF-8"],
)
def test_a_torn_last_line_of_the_metrics(begun, same, tally, tail):
    with tally("a torn or damaged last line of metrics.jsonl") as trial:
        trial.begin()
        config = begun(f"torn{len(tail)}")
        with (Path(config.run_dir) / "metrics.jsonl").open("ab") as file:
            file.write(tail)
        last = live(config)
        assert last.codes == [0, 0] and last.steps[0] == 5, last.stderr[-3000:]
        same(config)


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a full disk: needs root, and leave to mount a tmpfs")
    try:
        yield lambda larger: subprocess.run(
            ["mount", "-o", f"remount,size={larger}", str(folder)], check=True
        )
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("asynchronous", [False, True], ids=["", "background"])
def test_a_full_disk_stops_the_run_and_leaves_earlier_checkpoints(
    make_config, same, tally, asynchronous
):
    with tally("a full disk in a save: stop") as trial:
        config = make_config(f"full-stop{asynchronous}", checkpoint__async_save=asynchronous)
        with small_disk(
            Path(config.run_dir) / "checkpoints", "5m"
        ) as resize:  # two checkpoints fit
            trial.begin()
            life = live(config)
            assert life.codes == [4, 4], (life.codes, life.stderr[-3000:])
            assert (
                life.newest == 4
                and "CheckpointError" in life.stderr
                and config.run_dir in life.stderr
            )
            resize("50m")
            last = live(config)
            assert last.codes == [0, 0], last.stderr[-3000:]
            trial.resumed(life, last)
            same(config)


@pytest.mark.faults
@pytest.mark.parametrize("asynchronous", [False, True], ids=["", "background"])
def test_a_full_disk_does_not_stop_a_run_that_is_to_go_on(make_config, same, tally, asynchronous):
    with tally("a full disk in a save: continue") as trial:
        config = make_config(
            f"full-go{asynchronous}",
            checkpoint__on_error="continue",
            checkpoint__async_save=asynchronous,
        )
        with small_disk(Path(config.run_dir) / "checkpoints", "3m"):  # one checkpoint fits
            trial.begin()
            life = live(config)
            assert life.codes == [0, 0], (life.codes, life.stderr[-3000:])
            assert life.newest == 2 and "training continues" in life.stderr
            same(config)


@pytest.mark.faults
def test_a_disk_that_is_full_for_all_files_of_the_run(make_config, same, tally):
    with tally("a full disk for metrics and all") as trial:
        config = make_config("full-all")
        with small_disk(Path(config.run_dir), "50m"):
            trial.begin()
            life = live(
                config,
                {"rank": 0, "at": "begin", "step": 3, "do": "fill", "folder": config.run_dir},
            )
            assert life.codes == [4, 4] and "CheckpointError" in life.stderr, (
                life.codes,
                life.stderr[-3000:],
            )
            assert life.newest == 2
            (Path(config.run_dir) / "fill").unlink()
            last = live(config)
            assert last.codes == [0, 0], last.stderr[-3000:]
            trial.resumed(life, last)
            same(config)


@pytest.mark.faults
def test_metrics_that_cannot_be_written(begun, same, tally):
    """In the place of metrics.jsonl stands the device that is always full."""
    with tally("a full disk for metrics and all") as trial:
        config = begun("full-metrics")
        rows = Path(config.run_dir) / "metrics.jsonl"
        rows.rename(rows.with_suffix(".kept"))
        try:
            os.mknod(rows, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        except PermissionError:
            pytest.skip("metrics that cannot be written: needs root, and leave to make a device")
        trial.begin()
        life = live(config)
        assert life.newest == 4 and life.ended_alone
        assert life.codes == [4, 4] and "metrics.jsonl" in life.stderr, (
            life.codes,
            life.stderr[-3000:],
        )
        rows.unlink()
        rows.with_suffix(".kept").rename(rows)
        last = live(config)
        assert last.codes == [0, 0], last.stderr[-3000:]
        trial.resumed(life, last)
        same(config)


def test_an_old_checkpoint_that_cannot_be_deleted(make_config, same, tally):
    with tally("a prune that fails") as trial:
        trial.begin()
        config = make_config("prune", checkpoint__keep_last=1)
        life = live(config, {"rank": 0, "at": "run", "do": "prune", "folder": "step_00000002"})
        assert life.codes == [0, 0] and "step_00000002" in life.stderr, (
            life.codes,
            life.stderr[-3000:],
        )
        assert (
            life.newest == 6
            and not (Path(config.run_dir) / "checkpoints" / "step_00000004").exists()
        )
        same(config)
