"""What one row of training data says, and how rows of any source become records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xtoken.errors import DataError

Format = Literal["text", "prompt_completion", "messages"]
FORMATS: tuple[Format, ...] = ("text", "prompt_completion", "messages")


@dataclass(frozen=True)
class Record:
    """One document, prompt with completion, or chat.

    `where` says where it was read ("train.jsonl, line 7"). `kind` decides which fields count:
    `text`; `prompt` and `completion`; `messages`, of which the last `completion_messages` are the
    completion of a prompt given as messages (None: the whole chat is one conversation).
    """

    kind: Format
    where: str
    text: str = ""
    prompt: str = ""
    completion: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    completion_messages: int | None = None


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold a record."""

    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"

    def of(self, kind: Format) -> tuple[str, ...]:
        """Return the columns that a format needs."""
        if kind == "prompt_completion":
            return (self.prompt, self.completion)
        return (self.text,) if kind == "text" else (self.messages,)

    def detect(self, names: Sequence[str], where: str) -> Format:
        """Return the format whose columns are all there; messages before prompts before text.

        Raises:
            DataError: none is.
        """
        for kind in ("messages", "prompt_completion", "text"):
            if set(self.of(kind)) <= set(names):
                return kind
        raise DataError(
            f"{where} has the columns {_listed(names)}; expected {self.text!r} (documents), "
            f"{self.prompt!r} and {self.completion!r}, or {self.messages!r} (chats). Rename them, "
            "or name yours: data.text_column, data.prompt_column, data.completion_column, "
            "data.messages_column"
        )


class RowReader:
    """Turns the rows of one source into records, all of one format.

    Args:
        format: the format, or "auto" to go by the columns of the first row.
        columns: the columns' names.
    """

    def __init__(self, format: Format | Literal["auto"], columns: Columns) -> None:
        self.columns = columns
        self.kind: Format | None = None if format == "auto" else format

    def read(self, row: Any, where: str) -> Record:
        """Return the record in a row.

        Raises:
            DataError: the row is no mapping, lacks a column, or has something else than text or
                messages in it.
        """
        if not isinstance(row, Mapping):
            raise DataError(
                f'{where}: the row is {_type(row)}; expected an object such as {{"text": "..."}}'
            )
        if self.kind is None:
            self.kind = self.columns.detect(list(row), where)
        for name in self.columns.of(self.kind):
            if name not in row:
                raise DataError(
                    f"{where}: there is no column {name!r}; the row has {_listed(list(row))}. "
                    f"Every row needs {_listed(self.columns.of(self.kind))} "
                    f"(data.format: {self.kind})"
                )
        if self.kind == "text":
            return Record("text", where, text=self._text(row, self.columns.text, where))
        if self.kind == "messages":
            messages = self._messages(row, self.columns.messages, where)
            return Record("messages", where, messages=messages)
        return self._prompt_completion(row, where)

    def _prompt_completion(self, row: Mapping[str, Any], where: str) -> Record:
        prompt, completion = self.columns.of("prompt_completion")
        if isinstance(row[prompt], str):
            return Record(
                "prompt_completion",
                where,
                prompt=self._text(row, prompt, where),
                completion=self._text(row, completion, where),
            )
        before = self._messages(row, prompt, where)
        after = self._messages(row, completion, where)
        return Record("messages", where, messages=(*before, *after), completion_messages=len(after))

    def _text(self, row: Mapping[str, Any], name: str, where: str) -> str:
        value = row[name]
        if not isinstance(value, str):
            raise DataError(f"{where}: column {name!r} is {_type(value)}; expected text")
        check_text(value, f"{where}: column {name!r}")
        return value

    def _messages(
        self, row: Mapping[str, Any], name: str, where: str
    ) -> tuple[Mapping[str, Any], ...]:
        value = row[name]
        if isinstance(value, str) or not isinstance(value, Sequence) or not len(value):
            raise DataError(
                f"{where}: column {name!r} is {_type(value)}; expected a list of messages such as "
                '[{"role": "user", "content": "..."}]'
            )
        for index, message in enumerate(value):
            if not isinstance(message, Mapping) or "role" not in message:
                raise DataError(
                    f"{where}: message {index} of column {name!r} has no role; expected "
                    '{"role": "user", "content": "..."}'
                )
            if isinstance(message.get("content"), str):
                check_text(message["content"], f"{where}: message {index} of column {name!r}")
        # Columnar files fill keys that a message doesn't have with nulls.
        return tuple(
            {key: item for key, item in message.items() if item is not None or key == "content"}
            for message in value
        )


def check_text(text: str, where: str) -> None:
    """Raise DataError if a text has half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which no text can hold; repair or drop the row"
        ) from None


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name) for name in names[:12]]
    more = [f"{len(names) - 12} more"] if len(names) > 12 else []
    return ", ".join([*shown, *more]) or "none"


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Sequence) and not len(value):
        return "an empty list"
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
