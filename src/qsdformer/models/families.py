"""All families of networks: importing this file registers each, in our registry and in timm."""

from qsdformer.models import e_spikeformer as e_spikeformer
from qsdformer.models import metaspikeformer as metaspikeformer
from qsdformer.models import sdt as sdt
from qsdformer.models import spikformer as spikformer
from qsdformer.models.in_timm import register_in_timm
from qsdformer.models.registry import registered

for _family in registered():
    register_in_timm(_family)
