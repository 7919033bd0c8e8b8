"""Training runs: the run folder, Lightning's trainer around a task, and what is written when."""

from qsdformer.training.once import train
from qsdformer.training.run import TrainResult

__all__ = ["TrainResult", "train"]
