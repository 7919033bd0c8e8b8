"""The families of networks: where a name, a stored configuration or timm finds its network.

Each file in `configs/` registers a configuration and named sizes, and says where the network is,
which is imported when the first one is built: recipes are read without PyTorch. To add a family,
write such a file, import it in `configs/__init__.py`, and write the network.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from qsdformer.errors import UserError
from qsdformer.nn.config import NetworkConfig, completed

if TYPE_CHECKING:
    from qsdformer.models.base import SpikingTransformer

CONFIGS = "qsdformer.models.configs"  # importing it registers all families

DEFAULT = "metaspikeformer_15m"
# A stored configuration without a family is one from before there were several.
FIRST_FAMILY = "metaspikeformer"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A configuration, the network it builds, and the fields of each named size.

    `model` is "module:class". `inputs` are the image shapes (C, H, W) that sizes are meant for,
    where not (3, 224, 224); `feature_maps` says whether timm can make a backbone of several
    strides of it.
    """

    config: type[NetworkConfig]
    model: str
    sizes: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    first_conv: str = "stages.0.downsample.conv"
    feature_maps: bool = False

    @property
    def name(self) -> str:
        """The family's name, which its configurations carry."""
        return self.config.family

    @property
    def network(self) -> Callable[[Any], SpikingTransformer]:
        """The class of the network."""
        module, _, name = self.model.partition(":")
        return cast(Any, getattr(importlib.import_module(module), name))

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the configuration's fields that decide something."""
        names = (f.name for f in dataclasses.fields(self.config))
        return tuple(name for name in names if name not in self.config.WITHOUT_EFFECT)

    def deciding(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Stored values without those of fields that decide nothing."""
        idle = self.config.WITHOUT_EFFECT
        return {name: value for name, value in stored.items() if name not in idle}

    def check_fields(self, given: Mapping[str, Any]) -> None:
        """`UserError` for a name that is no field here, saying which family has it."""
        for name in given:
            if name not in self.fields:
                others = ", ".join(owners(name))
                hint = f"; it is for {others}" if others else f"; known: {', '.join(self.fields)}"
                raise UserError(f"{self.name} has no field {name}{hint}")

    def size(self, name: str, **fields: Any) -> NetworkConfig:
        """The configuration of a named size with some fields replaced, as `create_model` says."""
        fields = with_our_names(fields)
        self.check_fields(fields)
        return self.config(**completed({**self.sizes[name], **fields}, self.config))


class UnknownFamilyError(ValueError):
    """A configuration is of a family that is not registered here."""


_families: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family; ValueError for a name that is taken."""
    taken = [name for other in _families.values() for name in other.sizes if name in family.sizes]
    if family.name in _families:
        raise ValueError(f"a family named {family.name} is registered already")
    if taken:
        raise ValueError(f"a model named {taken[0]} is registered already")
    _families[family.name] = family


def families() -> Mapping[str, Family]:
    """All families by name: the first one, then the others in alphabetical order."""
    importlib.import_module(CONFIGS)
    names = sorted(_families, key=lambda name: (name != FIRST_FAMILY, name))
    return {name: _families[name] for name in names}


def sizes() -> dict[str, Family]:
    """The family of every named size."""
    return {name: family for family in families().values() for name in family.sizes}


def family_of(name: str) -> Family:
    """The family of a named size; `UserError` for a name that is none."""
    known = sizes()
    if name not in known:
        raise UserError(f"unknown model {name!r}: choose from {', '.join(known)}")
    return known[name]


def model_config(name: str = DEFAULT, **fields: Any) -> Any:
    """The configuration of a named size, with `fields` of its family's configuration replaced."""
    return family_of(name).size(name, **fields)


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """The inverse of a configuration's `to_dict`; ValueError for an unknown family or field."""
    name = values.get("family", FIRST_FAMILY)
    known = families()
    if name not in known:
        raise UnknownFamilyError(f"unknown model family {name!r}: known are {', '.join(known)}")
    return known[name].config.from_dict(values)


def with_our_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`in_chans` renamed to `in_channels`; a `UserError` where both are given and differ."""
    ours = dict(fields)
    if "in_chans" in ours:
        channels = ours.pop("in_chans")
        if ours.setdefault("in_channels", channels) != channels:
            raise UserError(
                f"in_chans={channels} and in_channels={ours['in_channels']}: give one of the two"
            )
    return ours


def owners(field_name: str) -> list[str]:
    """The families whose configurations have a field of this name."""
    return [family.name for family in families().values() if field_name in family.fields]
