"""Configurations and sizes of all families: importing this registers them, without PyTorch."""

from qsdformer.models.configs import e_spikeformer as e_spikeformer
from qsdformer.models.configs import metaspikeformer as metaspikeformer
from qsdformer.models.configs import sdt as sdt
from qsdformer.models.configs import spikformer as spikformer
