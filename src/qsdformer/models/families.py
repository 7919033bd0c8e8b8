"""Importing this makes all families known to timm."""

# First: where timm is imported only now, the hook that waits for it finds this file begun.
import timm  # noqa: F401  isort: skip

from qsdformer.models.in_timm import register_in_timm
from qsdformer.models.registry import families

for _family in families().values():
    register_in_timm(_family)
