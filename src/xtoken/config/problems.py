"""What is wrong with a run file, in plain words, with the key's full path."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from xtoken.config.losses import LOSS_CLASSES, LossSettings


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the dotted path of the key and what to say about it."""

    path: str
    message: str


def join_or(words: Sequence[str]) -> str:
    """Return "a", "a or b", "a, b or c"."""
    head, last = ", ".join(words[:-1]), words[-1]
    return f"{head} or {last}" if head else last


def describe_value(value: Any) -> str:
    """Return a value as a run file would write it, with its type where that may be the trouble."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        shown = value if len(value) <= 60 else value[:57] + "..."
        return f'the text "{shown}"'
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    return "a list" if value else "an empty list"


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return pydantic's complaints about a `model` as problems, in the order of the file."""
    return [_explain(details, model) for details in error.errors(include_url=False)]


# ------------------------------------------------------------------ one complaint

_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "of at most"),
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value lines)",
    "model_type": "a mapping (key: value lines)",
    "model_attributes_type": "a mapping (key: value lines)",
}


def _explain(details: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    place = _Place.find(model, details["loc"])
    kind, value = details["type"], details["input"]
    path = place.path
    if kind == "extra_forbidden":
        return Problem(path, unknown_key(path, place.section, model))
    if kind == "missing":
        return Problem(path, f"is missing; expected {_expected(place.field)}")
    if kind == "union_tag_invalid":
        given = value.get("kind") if isinstance(value, dict) else value
        return Problem(f"{path}.kind", _not_one_of(given, list(LOSS_CLASSES)))
    if kind == "literal_error":
        return Problem(path, _not_one_of(value, place.choices()))
    if kind == "too_short":
        return Problem(path, "is an empty list; expected at least one entry")
    if kind == "string_too_short":
        return Problem(path, "is an empty text; expected a name or a path")
    if kind == "xtoken":
        return Problem(path, f"is {describe_value(value)}; {details['msg']}")
    if kind in _LIMITS or kind == "finite_number":
        return Problem(path, f"is {describe_value(value)}; expected {_range(place.field)}")
    if kind in _TYPES:
        expected = _TYPES[kind] + (" or null" if _nullable(place.field) else "")
        return Problem(path, f"is {describe_value(value)}; expected {expected}")
    return Problem(path, f"is {describe_value(value)}: {details['msg']}")


def _not_one_of(value: Any, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"is {describe_value(value)}; expected {join_or(choices)}{hint}"


def unknown_key(path: str, section: type[BaseModel] | None, model: type[BaseModel]) -> str:
    """Say that the key at `path` is unknown, and the nearest that is known, by its full path."""
    prefix, _, key = path.rpartition(".")
    own = [] if section is None else list(section.model_fields)
    if section is not None and issubclass(section, LossSettings):
        kind = section.model_fields["kind"].default
        holders = [k for k, loss in LOSS_CLASSES.items() if key in loss.model_fields]
        if holders:
            return (
                f"is a setting of {join_or(holders)}, not of {kind}; set {prefix}.kind: "
                f"{holders[0]}, or remove it ({kind} takes "
                f"{', '.join(name for name in own if name != 'kind')})"
            )
    everywhere = dict(_all_keys(model))
    near = difflib.get_close_matches(key, own, n=1)
    known = [path for path, name in everywhere.items() if name == key][:3]
    if near and not known:
        known = [f"{prefix}.{near[0]}" if prefix else near[0]]
    if not known:
        far = difflib.get_close_matches(key, everywhere.values(), n=1, cutoff=0.75)
        known = [path for path, name in everywhere.items() if name in far][:3]
    if known:
        return f"is unknown; did you mean {join_or(known)}?"
    return f"is unknown; known here: {', '.join(own)}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, key) of every setting, with the training arguments among them."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path, name
        if path == "training":
            from xtoken.config.training_keys import MANAGED, training_fields

            for key in training_fields():
                if key not in MANAGED:
                    yield f"training.{key}", key
            continue
        for section in _sections(field.annotation):
            # A teacher's own loss has the settings of `loss`, which says enough.
            if not (prefix and issubclass(section, LossSettings)):
                yield from _all_keys(section, f"{path}.")


# ------------------------------------------------------------------ where a complaint belongs


@dataclass(frozen=True)
class _Place:
    """Where pydantic's `loc` leads: the path in the file, and the class and field there."""

    path: str
    section: type[BaseModel] | None
    field: FieldInfo | None

    @classmethod
    def find(cls, model: type[BaseModel], loc: Iterable[int | str]) -> _Place:
        path: list[str] = []
        section: type[BaseModel] | None = None
        field: FieldInfo | None = None
        annotation: Any = model
        for part in loc:
            sections = _sections(annotation, through_lists=False)
            if len(sections) > 1 and part in LOSS_CLASSES:  # the union's tag, not a key
                annotation = LOSS_CLASSES[str(part)]
                continue
            if isinstance(part, int):
                path.append(str(part))
                annotation = next(iter(get_args(_bare(annotation))), None)
                continue
            if sections:
                section = sections[0]
                field = section.model_fields.get(part)
                annotation = None if field is None else field.annotation
            elif annotation not in (None, Any) and get_origin(_bare(annotation)) is not dict:
                break  # a member of a union of plain types
            path.append(str(part))
        return cls(".".join(path), section, field)

    def choices(self) -> list[str]:
        return [str(c) for c in _literals(None if self.field is None else self.field.annotation)]


def _bare(annotation: Any) -> Any:
    """Return an annotation without Annotated and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if len(rest) == 1:
            return _bare(rest[0])
    return annotation


def _sections(annotation: Any, *, through_lists: bool = True) -> list[type[BaseModel]]:
    """Return the section classes that an annotation may hold."""
    annotation = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [s for member in get_args(annotation) for s in _sections(member)]
    if through_lists and get_origin(annotation) is list:
        return _sections(get_args(annotation)[0])
    return []


def _literals(annotation: Any) -> list[Any]:
    annotation = _bare(annotation)
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return [value for member in get_args(annotation) for value in _literals(member)]
    return []


def _nullable(field: FieldInfo | None) -> bool:
    return field is not None and type(None) in get_args(field.annotation)


def _range(field: FieldInfo | None) -> str:
    """Return the numbers that a field takes: "a number above 0 and of at most 1"."""
    if field is None:
        return "another number"
    metadata = [*field.metadata]
    for member in get_args(field.annotation):
        if get_origin(member) is Annotated:
            metadata += [
                m for item in get_args(member)[1:] for m in getattr(item, "metadata", [item])
            ]
    limits = [
        f"{words} {getattr(item, name):g}"
        for item in metadata
        for name, words in _LIMITS.values()
        if getattr(item, name, None) is not None
    ]
    noun = "a whole number" if _bare(field.annotation) is int else "a finite number"
    return f"{noun} {' and '.join(limits)}".strip()


def _expected(field: FieldInfo | None) -> str:
    """Return what a required field holds."""
    annotation = None if field is None else _bare(field.annotation)
    if annotation is str:
        return "a name or a path"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        needed = [n for n, f in annotation.model_fields.items() if f.is_required()]
        return f"a mapping with at least {join_or(needed)}"
    if get_origin(annotation) is list:
        return "a list with at least one entry"
    return "a value"
