"""The processes that train together, as far as sums over them go."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xtoken.training.metrics import Sums


class Ranks:
    """Processes that see different data; tensor-parallel ones see the same and count once.

    Args:
        accelerator: accelerate's view of the processes.
        same_data: how many processes share each batch (the tensor-parallel size).
    """

    def __init__(self, accelerator: Any, same_data: int = 1) -> None:
        self.accelerator = accelerator
        self.same_data = same_data

    @property
    def count(self) -> int:
        """How many shares the data is cut into."""
        return self.accelerator.num_processes // self.same_data

    @property
    def index(self) -> int:
        """Which share this process has."""
        return self.accelerator.process_index // self.same_data

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over shares."""
        if self.accelerator.num_processes == 1:
            return values
        values = values.to(self.accelerator.device)
        return self.accelerator.reduce(values, "sum") / self.same_data

    def means(self, sums: Sums) -> dict[str, float]:
        """Return each figure's sum divided by its count, both over all processes."""
        pairs = [sums.pairs()]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            # A process without chunks lacks names that others have, so names travel along.
            pairs = gather_object(pairs)
        return Sums.means(pairs)
