"""Projections on disk: one safetensors file with tensors, tokenizer tables and JSON metadata."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.errors import ProjectionError, ProjectionNotFoundError
from xtoken.projection.matrix import FORMAT_VERSION, Projection
from xtoken.projection.tokens import TokenTable

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

FORMAT = "xtoken.projection"
METADATA_KEY = "xtoken"

# name -> dtype; everything that a file must hold.
TENSORS: dict[str, Any] = {
    "indices": np.int32,
    "weights": np.float32,
    "exact": np.bool_,
    "student_masked": np.bool_,
    "teacher_masked": np.bool_,
    "teacher_fold": np.int32,
    "common_student": np.int32,
    "common_teacher": np.int32,
}
TABLE_TENSORS: dict[str, Any] = {"flat_bytes": np.uint8, "byte_starts": np.int64}


def save_projection(projection: Projection, path: str | Path) -> None:
    """Write a projection; the file appears whole or not at all.

    The tensors of `Projection`, both token tables and a JSON header with version, rules,
    tokenizer names, fingerprints and roles, and a checksum over the tensors. It is written to a
    temporary file in the same directory and renamed, so that an earlier file survives a full
    disk.

    Raises:
        ProjectionError: the file can't be written, or the projection has no token tables.
    """
    from safetensors.numpy import save

    target = Path(path)
    tables = {"student": projection.student_tokens, "teacher": projection.teacher_tokens}
    tensors = {name: getattr(projection, name) for name in TENSORS}
    sides: dict[str, Any] = {}
    for side, table in tables.items():
        if table is None:
            raise ProjectionError(
                f"This projection was made from bare arrays and names no {side} tokenizer, so a "
                "file of it could not be checked later; build it with Projection.build."
            )
        for name in TABLE_TENSORS:
            tensors[f"{side}_{name}"] = getattr(table, name)
        sides[side] = {
            "name": table.name,
            "fingerprint": table.fingerprint,
            "size": len(table),
            "roles": {str(token): list(roles) for token, roles in table.roles.items()},
        }
    tensors = {
        name: np.ascontiguousarray(array, dtype=_dtype(name)) for name, array in tensors.items()
    }
    header = {
        "format": FORMAT,
        "version": projection.version,
        "rules": dict(projection.rules),
        "sha256": _checksum(tensors),
        **sides,
    }
    data = save(tensors, metadata={METADATA_KEY: json.dumps(header)})
    _write_whole(target, data)


def load_projection(
    path: str | Path,
    student_vocab: Vocabulary | None = None,
    teacher_vocab: Vocabulary | None = None,
) -> Projection:
    """Read a projection; with vocabularies, refuse one that was built for others.

    Raises:
        ProjectionError: no such file, truncated or damaged, another format or version, or built
            for other tokenizers (both names and fingerprints are in the message).
    """
    source = Path(path)
    header, tensors = _read(source)
    tables = {}
    try:
        for side in ("student", "teacher"):
            facts = header[side]
            tables[side] = TokenTable(
                name=facts["name"],
                fingerprint=facts["fingerprint"],
                flat_bytes=tensors[f"{side}_flat_bytes"],
                byte_starts=tensors[f"{side}_byte_starts"],
                roles={int(token): tuple(roles) for token, roles in facts["roles"].items()},
            )
        projection = Projection(
            **{name: tensors[name] for name in TENSORS},
            rules=header["rules"],
            student_tokens=tables["student"],
            teacher_tokens=tables["teacher"],
            version=header["version"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProjectionError(
            f"{source} is damaged: its header or tensors lack {error}. Build it again."
        ) from error
    except ProjectionError as error:
        raise ProjectionError(f"{source} is damaged: {error} Build it again.") from error
    projection.check_vocabularies(student_vocab, teacher_vocab, source=str(source))
    return projection


def _read(source: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not source.is_file():
        raise ProjectionNotFoundError(
            f"There is no projection file {source}; build one with `xtoken project build`."
        )
    try:
        with safe_open(str(source), framework="numpy") as file:
            metadata = file.metadata() or {}
            header = _header(source, metadata)
            names = [*TENSORS, *(f"{s}_{n}" for s in ("student", "teacher") for n in TABLE_TENSORS)]
            missing = sorted(set(names) - set(file.keys()))
            if missing:
                raise ProjectionError(
                    f"{source} is damaged: it lacks {', '.join(missing)}. Build it again."
                )
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise ProjectionError(
            f"{source} can't be read as a projection: it is truncated or no safetensors file "
            f"({error}). Build it again, or import a .pt file with `xtoken project import`."
        ) from error
    for name, array in tensors.items():
        if array.dtype != _dtype(name):
            raise ProjectionError(
                f"{source} is damaged: {name} is {array.dtype}, expected {np.dtype(_dtype(name))}."
            )
    if header.get("sha256") != _checksum(tensors):
        raise ProjectionError(
            f"{source} is damaged: its contents don't match their checksum. Build it again."
        )
    return header, tensors


def _header(source: Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(metadata[METADATA_KEY])
        if not isinstance(header, dict) or header["format"] != FORMAT:
            raise KeyError("format")
        version = header["version"]
    except (KeyError, ValueError) as error:
        raise ProjectionError(
            f"{source} is a safetensors file but no projection (it has no {FORMAT!r} header). "
            "Give a file that `xtoken project build` wrote."
        ) from error
    if version != FORMAT_VERSION:
        raise ProjectionError(
            f"{source} has projection format version {version}; this xtoken reads version "
            f"{FORMAT_VERSION}. Build it again with this version."
        )
    return header


def _dtype(name: str) -> Any:
    return TENSORS.get(name) or TABLE_TENSORS[name.split("_", 1)[1]]


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _write_whole(target: Path, data: bytes) -> None:
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a projection is an ordinary file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = ""
    except OSError as error:
        raise ProjectionError(
            f"The projection can't be written to {target}: {error.strerror or error}. "
            f"It needs {len(data) / 2**20:.1f} MiB in a directory that can be written to; "
            "nothing was left there, and an earlier file is unchanged."
        ) from error
    finally:  # also on Ctrl-C
        with contextlib.suppress(OSError):
            if temporary:
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
