"""Checkpoints of published programs: their names and quirks, one file a family."""

from qsdformer.models.published.loader import import_reference as import_reference
