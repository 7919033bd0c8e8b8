"""Training runs: the run folder, Lightning's trainer around a task, and what is written when."""

from qsdformer.training.run import TrainResult, train

__all__ = ["TrainResult", "train"]
