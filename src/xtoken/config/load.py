"""From a YAML file and overrides to a checked run, and back."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from xtoken.config.base import Section
from xtoken.config.checks import combination_problems
from xtoken.config.problems import Problem, describe_value, explain
from xtoken.config.sections import RunConfig
from xtoken.config.yaml_text import dump_yaml_text, parse_yaml
from xtoken.errors import ConfigError


def load_run(file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply overrides such as `loss.kind=h_kl` or `teachers.0.weight=0.5`.

    An override's value is read as YAML (`student.lora={r: 8}` works), and stands for what the
    file says at that path. Paths inside the file are relative to the current directory.

    Raises:
        ConfigError: no such file, broken YAML, unknown keys, wrong types, combinations that can't
            work: all of them in one message, each with its line (or override) and key path.
    """
    source = os.fspath(file)
    data, lines = parse_yaml(_read(Path(source)), source)
    if not isinstance(data, dict):
        given = "is empty" if data is None else f"holds {describe_value(data)}"
        raise ConfigError(
            f"{source} {given}; expected a mapping with at least student, teachers, data and "
            "output_dir."
        )
    origins = {key: f"{source}, line {line}" for key, line in lines.items()}
    for override in overrides:
        path = _apply(data, override)
        origins = {key: at for key, at in origins.items() if not key.startswith(f"{path}.")}
        origins[path] = f"override {override}"
    return parse_run(data, source=source, origins=origins)


def parse_run(
    data: Mapping[str, Any], *, source: str = "the run", origins: Mapping[str, str] | None = None
) -> RunConfig:
    """Make a run from plain values; `origins` says where each dotted path was written."""
    run: RunConfig | None = None
    problems: list[Problem] = []
    try:
        run = RunConfig.model_validate(dict(data))
    except ValidationError as error:
        problems += explain(error, RunConfig)
        valid = _valid_sections(data, problems)
    else:
        valid = {name: getattr(run, name) for name in RunConfig.model_fields}
    problems += combination_problems(valid)
    if problems or run is None:
        raise ConfigError(_message(problems, source, origins or {}))
    return run


def _read(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; expected a run file (YAML).")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no run file {path}; expected the path of a YAML file."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}. Save "
            "it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}.") from None


# ------------------------------------------------------------------ overrides


def _apply(data: dict[str, Any], override: str) -> str:
    """Set one `path.to.key=value` in plain values; returns the path."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path or not all(path.split(".")):
        raise ConfigError(
            f"The override {override!r} is not of the form key=value, such as loss.kind=h_kl or "
            "training.max_steps=100."
        )
    value, _ = parse_yaml(text, f"the override {override!r}")
    keys = path.split(".")
    here: Any = data
    for depth, key in enumerate(keys):
        where = ".".join(keys[:depth])
        last = depth == len(keys) - 1
        if isinstance(here, dict):
            if last:
                here[key] = value
            elif here.get(key) is None:
                here[key] = {}
            here = here[key]
        elif isinstance(here, list):
            index = _index(key, here, override, where)
            if last:
                here[index] = value
            here = here[index]
        else:
            raise ConfigError(
                f"The override {override!r} reaches into {where}, which is "
                f"{describe_value(here)}; replace it as a whole: {where}=..."
            )
    return path


def _index(key: str, items: list[Any], override: str, where: str) -> int:
    """Return the position that `key` names; the one after the last makes a new entry."""
    if not key.isdecimal() or int(key) > len(items):
        raise ConfigError(
            f"The override {override!r} names entry {key!r} of {where}, a list of {len(items)}; "
            f"expected a number from 0 to {len(items)} ({len(items)} adds an entry)."
        )
    if int(key) == len(items):
        items.append({})
    return int(key)


# ------------------------------------------------------------------ problems


def _valid_sections(data: Mapping[str, Any], problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the top-level values that are right by themselves, defaults included."""
    broken = {problem.path.split(".")[0] for problem in problems}
    valid: dict[str, Any] = {}
    for name, field in RunConfig.model_fields.items():
        if name in broken:
            continue
        if name in data:
            adapter: Any = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
            with contextlib.suppress(ValidationError):
                valid[name] = adapter.validate_python(data[name], strict=True)
        elif not field.is_required():
            valid[name] = field.get_default(call_default_factory=True)
    return valid


def _message(problems: Sequence[Problem], source: str, origins: Mapping[str, str]) -> str:
    order = {path: number for number, path in enumerate(origins)}
    told = sorted(problems, key=lambda problem: order.get(_written(problem.path, origins), -1))
    lines = [
        f"{origins.get(_written(problem.path, origins), source)}: {problem.path} {problem.message}"
        for problem in told
    ]
    if len(lines) == 1:
        return lines[0] if lines[0].endswith("?") else f"{lines[0]}."
    return "\n".join([f"{len(lines)} things are wrong with {source}:", *(f"  {x}" for x in lines)])


def _written(path: str, origins: Mapping[str, str]) -> str:
    """Return the longest part of a path that stands in the file or in an override."""
    while path and path not in origins:
        path = path.rpartition(".")[0]
    return path


# ------------------------------------------------------------------ writing


def resolved(run: RunConfig) -> dict[str, Any]:
    """Return a run as plain values, without the settings that have no effect."""
    plain = _plain(run)
    arguments = run.training_arguments()
    plain["training"] = {
        key: value for key, value in arguments.items() if key not in ("output_dir", "seed")
    }
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        left_out = value.ignored()
        names = [name for name in type(value).model_fields if name not in left_out]
        # `kind` first: it says how to read the rest.
        names.sort(key=lambda name: name != "kind")
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_yaml(run: RunConfig) -> str:
    """Return the resolved run as the text of a run file, every default filled in."""
    return dump_yaml_text(resolved(run))


def write_run(run: RunConfig, path: str | os.PathLike[str]) -> None:
    """Write the resolved run; an earlier file is replaced only by a whole new one."""
    from xtoken._version import __version__

    target = Path(path)
    text = f"# The resolved run, as xtoken {__version__} read it. Paths are relative to the\n"
    text += "# directory that the command was started in.\n" + to_yaml(run)
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        temporary = ""
    except OSError as error:
        raise ConfigError(
            f"The run file can't be written to {target}: {error.strerror or error}. Choose an "
            "output_dir that can be written to."
        ) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
