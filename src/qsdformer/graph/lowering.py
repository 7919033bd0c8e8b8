"""From a trained float model to the integer graph.

The model is traced (`trace.py`), and each of its steps becomes operations. Every value is integer
* scale + bias per channel. Convolutions, norms and layer scales only change scale and bias, in
float64; where a neuron or a shortcut needs actual numbers, one `Rescale` is made of them. The
result depends on nothing but the model and the options; `formats.py` has the number formats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from qsdformer.data.base import sides
from qsdformer.data.preprocessing import Preprocessing
from qsdformer.errors import UserError
from qsdformer.graph.assumed import assumed_info, first_channels
from qsdformer.graph.check import check_graph
from qsdformer.graph.formats import MULTIPLIER_BITS, REAL_INPUT_BITS, membrane_fraction_of
from qsdformer.graph.integer import IntegerGraph
from qsdformer.graph.post import Post
from qsdformer.graph.spikes import require_spikes, trace_quantised
from qsdformer.graph.symbols import Lowering
from qsdformer.graph.trace import BATCH, has_logits, logits_step, plain_config
from qsdformer.nn.taps import spiking_neurons
from qsdformer.nn.timing import TimeInput

if TYPE_CHECKING:
    from qsdformer.data.base import DataInfo, ImageSize

__all__ = ["MULTIPLIER_BITS", "REAL_INPUT_BITS", "lower"]


def lower(
    model: nn.Module,
    info: DataInfo | None = None,
    *,
    image_size: ImageSize | None = None,
    membrane_bits: int = 32,
    membrane_fraction: int | None = None,
    frames: bool = False,
    post: Post | None = None,
    multiple: int = 1,
    heads: Mapping[str, IntegerGraph] | None = None,
) -> IntegerGraph:
    """The integer graph of a trained spiking model in eval mode: one of ours, or one's own.

    `info` describes the images; models read by `qsdformer.load` bring it. `image_size`, a square's
    side or (height, width), replaces that of `info`; alone it means pixels / 255 and classes
    called by their numbers. `membrane_fraction` replaces the fractional bits of membrane
    potentials. With `frames` the input has a time axis, one frame for each of the time steps that
    the model's neurons have. A model that returns feature maps gets these as outputs, in place of
    logits; `post` says what is made of them. Images are filled up to sides that are multiples of
    `multiple`. `heads` are the graphs that `post` needs. Raises `UserError`
    for a model that cannot be lowered, or whose sums could leave 32 bits.
    """
    if membrane_bits not in MULTIPLIER_BITS:
        raise ValueError(f"membrane_bits={membrane_bits}: must be 16 or 32")
    require_spikes(model)
    steps = max(neuron.time_steps for neuron in spiking_neurons(model).values())
    info = info if info is not None else getattr(model, "data_info", None)
    if info is None:
        if image_size is None:
            raise UserError(
                "the model does not say what images it takes: give info=qsdformer.DataInfo(...), "
                "or image_size= for pixels / 255"
            )
        size = sides(image_size)
        shape = (BATCH, first_channels(model, size), *size)
        info = assumed_info(model, (steps, *shape) if frames else shape)
    elif image_size is not None:
        info = dataclasses.replace(info, image_size=image_size)
    wanted = next((m.channels for m in model.modules() if isinstance(m, TimeInput)), None)
    if wanted not in (None, info.channels):
        raise UserError(f"images have {info.channels} channels, but the model takes {wanted}")
    pre = Preprocessing.of(info, multiple)
    shape = (BATCH, info.channels, *pre.sides)
    traced = trace_quantised(model, (steps, *shape) if frames else shape)
    is_classifier = has_logits(traced)
    if is_classifier and len(info.class_names) != logits_step(traced).channels:
        raise UserError(
            f"{len(info.class_names)} class names for a model of "
            f"{logits_step(traced).channels} classes"
        )
    fraction = membrane_fraction
    if fraction is None:
        fraction = membrane_fraction_of(traced, membrane_bits)
    lowering = Lowering(traced=traced, pre=pre, bits=membrane_bits, fraction=fraction)
    try:
        outputs = lowering.run(is_classifier)
        graph = IntegerGraph(
            ops=tuple(lowering.ops),
            preprocessing=pre,
            class_names=tuple(info.class_names) if is_classifier else (),
            config=plain_config(model),
            membrane_bits=membrane_bits,
            membrane_fraction=fraction,
            outputs=outputs,
            post=post,
            heads=dict(heads or {}),
        )
        check_graph(graph)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"cannot lower the model to integers: {error}") from error
    return graph
