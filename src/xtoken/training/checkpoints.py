"""Checkpoints that are either complete or not there: staged writing, checking, finding.

A checkpoint is written to a hidden folder beside its place and renamed when every file is on
disk, with a list of its files and their sizes. A full disk or a kill leaves the earlier
checkpoints as they were; a copy that was cut short is noticed before it is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtoken.errors import TrainingError

STATE_FILE = "xtoken_state.json"
TRAINER_STATE = "trainer_state.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass
class RunState:
    """What a resumed run needs beyond the Trainer's own state."""

    lagged_scale: float | None = None
    chunks_seen: list[float] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the state, and the list of the folder's files, as the checkpoint's last file."""
        files = {
            str(path.relative_to(folder)): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != STATE_FILE
        }
        content = {
            "version": 1,
            "lagged_scale": self.lagged_scale,
            "chunks_seen": self.chunks_seen,
            "files": files,
        }
        (folder / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """Read the state; a checkpoint that another trainer wrote has none and gives defaults."""
        path = folder / STATE_FILE
        if not path.exists():
            return cls()
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["lagged_scale"], list(content["chunks_seen"]))


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint folder's name, or -1."""
    match = _NAME.match(folder.name)
    return int(match.group(1)) if match else -1


def problem_of(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None if it is complete.

    With a list of files every size is compared; without one (another trainer's checkpoint) the
    Trainer's state, the optimizer's and the safetensors files' declared lengths are checked.
    """
    if not folder.is_dir():
        return "is not a folder"
    state: dict[str, Any] = {}
    for name in (STATE_FILE, TRAINER_STATE):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{name} is cut short or not JSON"
        if name == STATE_FILE:
            state = content
    if not (folder / TRAINER_STATE).exists():
        return f"{TRAINER_STATE} is missing"
    for name, size in state.get("files", {}).items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    weights = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("pytorch_model*"))
    if not weights and not state.get("files"):
        return "it holds no weights"
    for path in weights:
        if path.suffix == ".safetensors" and _short_safetensors(path):
            return f"{path.name} is cut short"
    return None


def _short_safetensors(path: Path) -> bool:
    """Whether a safetensors file is shorter than its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size:
            return True
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return True
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size < 8 + length + max(ends, default=0)


@dataclass(frozen=True)
class Found:
    """The newest complete checkpoint of a run (None: there is none) and the ones passed over."""

    path: Path | None
    skipped: tuple[str, ...] = ()


def find_checkpoint(output_dir: str | Path) -> Found:
    """Return the complete checkpoint with the highest step, naming the broken ones above it."""
    root = Path(output_dir)
    folders = [path for path in root.glob("checkpoint-*") if step_of(path) >= 0]
    skipped: list[str] = []
    for folder in sorted(folders, key=step_of, reverse=True):
        problem = problem_of(folder)
        if problem is None:
            return Found(folder, tuple(skipped))
        skipped.append(f"{folder}: {problem}")
    return Found(None, tuple(skipped))


def check_checkpoint(folder: str | Path) -> Path:
    """Return the folder if it is a complete checkpoint.

    Raises:
        TrainingError: it is not; the message names the file and the newest complete one.
    """
    folder = Path(folder)
    problem = problem_of(folder)
    if problem is None:
        return folder
    found = find_checkpoint(folder.parent).path
    other = f"resume from {found} instead" if found else "there is no complete one beside it"
    raise TrainingError(f"checkpoint {folder} can't be used: {problem}; {other}")


def resolve_checkpoint(resume: str | Path | bool | None, output_dir: str | Path) -> Path | None:
    """Return the checkpoint to resume from: True takes the newest complete one, a path that one.

    Raises:
        TrainingError: there is none, or the one named is not complete.
    """
    if resume is None or resume is False:
        return None
    if resume is not True:
        return check_checkpoint(resume)
    found = find_checkpoint(output_dir)
    if found.path is None:
        reasons = "".join(f"\n  {reason}" for reason in found.skipped)
        raise TrainingError(
            f"there is no complete checkpoint in {output_dir} to resume from; start the run "
            f"without resuming{reasons}"
        )
    return found.path


@contextlib.contextmanager
def staged(final: Path, *, main: bool = True) -> Iterator[Path]:
    """Give a hidden folder to write to, and rename it to `final` when the block succeeds.

    Args:
        final: where the folder shall be; an existing one is replaced only at the very end.
        main: whether this process cleans up and renames; other ranks only write.

    Raises:
        TrainingError: the disk is full (or a quota is); everything staged is removed.
    """
    staging = final.parent / f".{final.name}.incomplete"
    if main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True, exist_ok=True)
    try:
        yield staging
        if main:
            _replace(staging, final)
    except BaseException as error:
        if main:
            shutil.rmtree(staging, ignore_errors=True)
        if full := disk_full(error):
            earlier = find_checkpoint(final.parent).path
            kept = f"the checkpoint {earlier} is intact" if earlier else "no checkpoint was lost"
            raise TrainingError(
                f"could not save {final}: {full}; {kept}. "
                "Free some space (or set training.save_total_limit) and resume the run"
            ) from error
        raise


def _replace(staging: Path, final: Path) -> None:
    if not final.exists():
        os.replace(staging, final)
        return
    old = final.parent / f".{final.name}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    os.replace(final, old)
    os.replace(staging, final)
    shutil.rmtree(old, ignore_errors=True)


def disk_full(error: BaseException | None) -> str | None:
    """Return a phrase if `error` (or what caused it) says that nothing more fits on the disk.

    torch and safetensors wrap the system's error in their own and keep only its text.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
        text = str(error)
        if "No space left" in text or "os error 28" in text or "Disk quota" in text:
            return "the disk is full"
        # torch's archive writer reports a short write without its cause.
        if isinstance(error, RuntimeError) and (
            "file write failed" in text or "inline_container" in text
        ):
            return "the disk is full or can't be written to"
        error = error.__cause__ or error.__context__
    return None


def clear_staging(output_dir: str | Path) -> None:
    """Remove what a killed process left half-written in a run's folder."""
    root = Path(output_dir)
    for path in [*root.glob(".checkpoint-*.incomplete"), *root.glob(".*.replaced")]:
        final = root / path.name[1:].removesuffix(".replaced").removesuffix(".incomplete")
        if path.name.endswith(".replaced") and not final.exists():
            os.replace(path, final)  # killed between the two renames
        else:
            shutil.rmtree(path, ignore_errors=True)
