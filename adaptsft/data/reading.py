"""The records of a file as examples, with what was noticed on the way: bad records, and columns
that nothing reads."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from adaptsft.config.schema import SourceConfig
from adaptsft.data.ids import NONE, IdCheck, digest
from adaptsft.data.layout import Layout
from adaptsft.data.messages import ABOUT, Message, printable
from adaptsft.data.readers import Entry
from adaptsft.data.sources import Records
from adaptsft.data.template import Example, Template
from adaptsft.errors import ConfigError, DataError

LOOK_AHEAD = 1000  # records in which others like the first bad one are counted
NAMED = 5  # of these


@dataclass
class Facts:
    """What was noticed while a file was tokenised; kept with its tokens."""

    unread: list[str] = field(default_factory=list)  # columns
    # line and why, of records left out by data.on_bad_record=skip
    skipped: list[str] = field(default_factory=list)
    # field -> number of examples in which the template does not show its text
    lost: dict[str, int] = field(default_factory=dict)
    highest_id: int = 0  # of all tokens


class Read(NamedTuple):
    example: Example
    place: int  # of its record: line, item or row
    digest: int  # of its record's id; of the record's first example only
    share: float  # of the file read so far


class RecordReader:
    """Iterates over the examples of one file. `facts` are complete when it has ended."""

    def __init__(self, source: SourceConfig, records: Records, template: Template) -> None:
        self.source, self.records, self.template = source, records, template
        self.layout: Layout | None = None
        self.ids = IdCheck(source, records.place)
        self.facts, self.columns = Facts(), dict[str, None]()
        self.switches: dict[str, None] = {}
        self.entries = records.read()
        self.skip = template.config.on_bad_record == "skip"

    def __iter__(self) -> Iterator[Read]:
        """Raises DataError for a bad record, or notes it."""
        for entry in self.entries:
            found = self._read(entry)
            if isinstance(found, DataError):
                self.bad(found)
            else:
                for read in found:
                    for name in read.example.lost:
                        self.facts.lost[name] = self.facts.lost.get(name, 0) + 1
                yield from found
        if self.layout is not None:
            self._check_columns(self.layout)

    def bad(self, error: DataError) -> None:
        """Note the error, or raise it with the number of others like it that follow."""
        if self.skip:
            self.facts.skipped.append(printable(str(error)).removeprefix(self.records.place))
            return
        following = list(islice(self.entries, LOOK_AHEAD))
        bad = [isinstance(self._read(entry), DataError) for entry in following]
        if any(bad):
            others = [str(entry[0]) for entry, is_bad in zip(following, bad, strict=True) if is_bad]
            named = ", ".join(others[:NAMED]) + (", …" if len(others) > NAMED else "")
            raise DataError(
                f"{error}. Of the next {len(bad):,} records {len(others):,} are bad too ({named}); "
                "data.on_bad_record=skip trains without such records, and lists them"
            )
        raise error

    def _read(self, entry: Entry) -> list[Read] | DataError:
        """The examples of a record; any exception is an error of this record."""
        place, record, share = entry
        if isinstance(record, DataError):
            return record
        where = f"{self.records.place}{place}"
        self.columns |= dict.fromkeys(record)
        try:
            self.layout = self.layout or Layout.of(record, self.source.fields)
            conversation = self.layout.conversation(record)
            examples = self.template.examples(conversation)
            value = record.get(self.layout.names["id"])
            self.ids.check(value, place)
        except ConfigError:  # not of this record
            raise
        except DataError as error:
            return DataError(f"{where}: {error}")
        except RecursionError:
            return DataError(f"{where}: is nested too deeply; remove the record or flatten it")
        except Exception as error:  # of a chat template, which may raise anything
            return DataError(
                f"{where}: the record cannot be rendered: {type(error).__name__}: {error}; "
                "repair or remove it"
            )
        self._note_switches(conversation.messages)
        digests = [digest(value)] + [NONE] * (len(examples) - 1)
        return [
            Read(example, place, of_id, share)
            for example, of_id in zip(examples, digests, strict=True)
        ]

    def _check_columns(self, layout: Layout) -> None:
        for name, column in self.source.fields.items():
            if column not in self.columns and column != "none":
                raise DataError(
                    f"{self.source.path}: no record has the field {column!r}, which "
                    f"data.fields.{name} asks for; write none to read no such field"
                )
        unread = [column for column in self.columns if column not in layout.columns]
        self.facts.unread = [printable(column) for column in [*unread, *self.switches]]

    def _note_switches(self, messages: list[Message]) -> None:
        """Keys of messages that are true or false and that nothing here reads: one may be meant to
        keep a turn from being learned."""
        for message in messages:
            for name, value in message.items():
                if isinstance(value, bool) and name not in ABOUT:
                    self.switches[f"{name} of messages"] = None
