"""Training a student: the objective, the trainer on top of `transformers.Trainer`, run files.

Example:
    from xtoken.config import load_run
    from xtoken.training import train

    result = train(load_run("run.yaml"))
"""

from xtoken.training.callbacks import TrainingInterrupted, read_metrics
from xtoken.training.checkpoints import check_checkpoint, find_checkpoint
from xtoken.training.combine import Combine
from xtoken.training.dry_run import DryRun, dry_run
from xtoken.training.objective import Objective, TeacherTerm
from xtoken.training.run import TrainResult, train
from xtoken.training.trainer import XTokenTrainer

__all__ = [
    "Combine",
    "DryRun",
    "Objective",
    "TeacherTerm",
    "TrainResult",
    "TrainingInterrupted",
    "XTokenTrainer",
    "check_checkpoint",
    "dry_run",
    "find_checkpoint",
    "read_metrics",
    "train",
]
