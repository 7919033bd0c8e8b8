"""Images in, batches out: one data module for all sources, one file for each source."""

from qsdformer.data.base import DataConfig, DataInfo
from qsdformer.data.images import load_images
from qsdformer.data.module import DataModule

__all__ = ["DataConfig", "DataInfo", "DataModule", "load_images"]
