"""Finding the messages' contents in what a chat template made of them.

Templates strip contents, put a system message before them, drop or rebuild `<think>` sections.
Searching for the content is not safe (a user may write "user", which the header holds too), so the
template itself is asked: rendered again with every content replaced by a mark, it shows its own
text between the marks. Where a template's own text depends on a content, the contents are replaced
one at a time and the two renderings compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from xtoken.errors import DataError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class Located:
    """Where a message's content stands: characters [start, stop) of the rendered chat.

    They are the content's characters from `content_start` on.
    """

    message: int
    start: int
    stop: int
    content_start: int


def read_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check a chat and make every content a string (text parts joined, None as "")."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise DataError(
            f"A chat is a {type(messages).__name__}; expected a list of messages such as "
            '[{"role": "user", "content": "..."}].'
        )
    if not messages:
        raise DataError("A chat has no messages; expected at least one.")
    plain = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(
                f"Message {index} of a chat has no role: {_short(message)}; expected "
                '{"role": "user", "content": "..."}.'
            )
        plain.append({**message, "content": _content(index, message)})
    return plain


def _content(index: int, message: Message) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        strings = [text for text in texts if isinstance(text, str)]
        if len(strings) == len(texts):
            return "".join(strings)
    raise DataError(
        f"Message {index} ({message['role']}) has a content that is no text: {_short(content)}; "
        "expected a string or a list of text parts."
    )


def locate_contents(render: Render, messages: Sequence[Message], rendered: str) -> list[Located]:
    """Find every non-empty content, in order; raises `DataError` naming the one that is lost."""
    filled = [index for index, message in enumerate(messages) if message["content"]]
    marks = {index: f"\ue000xtoken{index}\ue001" for index in filled}
    marked = render([_replaced(message, marks.get(i)) for i, message in enumerate(messages)])
    located = _by_template(messages, rendered, marked, marks)
    if located is None:
        located = [
            piece
            for index in filled
            if (piece := _by_difference(render, messages, rendered, index, marks[index]))
        ]
    for before, after in pairwise(located):
        if after.start < before.stop:
            raise DataError(
                f"The chat template moves or merges message {after.message} "
                f"({messages[after.message]['role']}), so its content can't be told from the "
                "others; pass a chat_template=... that writes the messages in order."
            )
    return located


def _replaced(message: Message, mark: str | None) -> Message:
    return message if mark is None else {**message, "content": mark}


def _by_template(
    messages: Sequence[Message], rendered: str, marked: str, marks: Mapping[int, str]
) -> list[Located] | None:
    """Walk the template's own text and the contents in turn; None where they don't fit."""
    located: list[Located] = []
    rest, reached = marked, 0
    pending: int | None = None
    for index in [*marks, None]:
        own, mark, rest = rest.partition(marks[index]) if index is not None else (rest, "", "")
        if index is not None and not mark:
            return None
        if pending is None:
            if not rendered.startswith(own):
                return None
            reached = len(own)
        else:
            content = messages[pending]["content"]
            for start, stop in _strippings(content):
                end = reached + stop - start
                if rendered.startswith(content[start:stop], reached) and rendered.startswith(
                    own, end
                ):
                    break
            else:
                return None
            if start == stop:
                return None
            located.append(Located(pending, reached, end, start))
            reached = end + len(own)
        pending = index
    return located if reached == len(rendered) else None


def _strippings(content: str) -> Iterator[tuple[int, int]]:
    """Yield what templates leave of a content: all, or without white space at an end or both."""
    left = len(content) - len(content.lstrip())
    right = len(content.rstrip())
    yield 0, len(content)
    yield left, max(left, right)
    yield left, len(content)
    yield 0, right


def _by_difference(
    render: Render, messages: Sequence[Message], rendered: str, index: int, mark: str
) -> Located | None:
    """Compare the chat with the chat in which one content is a mark."""
    content = messages[index]["content"]
    changed = [*messages[:index], _replaced(messages[index], mark), *messages[index + 1 :]]
    before, found, after = render(changed).partition(mark)
    low = _common_prefix(before, rendered)
    tail = _common_prefix(after[::-1], rendered[low:][::-1])
    high = len(rendered) - tail
    region = rendered[low:high]
    if not found or not region.strip():
        if not content.strip():
            return None
        raise _lost(messages, index)
    offset = content.rfind(region)
    if offset < 0:
        # The template rebuilt the beginning (a thinking section); its end is still the content's.
        region = region.rstrip()
        right = len(content.rstrip())
        kept = _common_prefix(content[:right][::-1], region[::-1])
        if not kept:
            raise _lost(messages, index)
        high = low + len(region)
        return Located(index, high - kept, high, right - kept)
    # Where the template's own text changed too, the comparison may have taken the content's first
    # or last characters for the template's.
    stop = offset + len(region)
    if low < len(before):
        grown = _common_prefix(content[:offset][::-1], rendered[:low][::-1])
        low, offset = low - grown, offset - grown
    if tail < len(after):
        high += _common_prefix(content[stop:], rendered[high:])
    return Located(index, low, high, offset)


def _lost(messages: Sequence[Message], index: int) -> DataError:
    message = messages[index]
    return DataError(
        f"The chat template drops or rewrites message {index} ({message['role']}): its content "
        f"{_short(message['content'])} can't be found in the rendered chat. Leave the message out, "
        "or pass a chat_template=... that keeps it."
    )


def _common_prefix(one: str, other: str) -> int:
    for count, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return count
    return min(len(one), len(other))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
