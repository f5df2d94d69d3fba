"""The run file: YAML in, one checked `RunConfig` out. The only part that knows pydantic.

Example:
    run = load_run("run.yaml", ["loss.kind=h_kl", "training.max_steps=100"])
    run.student.model, run.loss_of(0).kind, run.training_arguments()
    run.dump_yaml("runs/first/run.yaml")   # with every default filled in; loads again
"""

from xtoken.config.load import load_run, to_yaml
from xtoken.config.losses import (
    GOLD,
    HKL,
    LOSS_CLASSES,
    PKL,
    ULD,
    Direct,
    LossConfig,
    LossSettings,
)
from xtoken.config.sections import (
    CombineSettings,
    Data,
    Lora,
    Model,
    ProjectionSettings,
    RunConfig,
    Source,
    Student,
    Teacher,
)

__all__ = [
    "GOLD",
    "HKL",
    "LOSS_CLASSES",
    "PKL",
    "ULD",
    "CombineSettings",
    "Data",
    "Direct",
    "Lora",
    "LossConfig",
    "LossSettings",
    "Model",
    "ProjectionSettings",
    "RunConfig",
    "Source",
    "Student",
    "Teacher",
    "load_run",
    "to_yaml",
]
