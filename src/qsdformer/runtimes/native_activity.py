"""How much the layers of a network did in the native engine, which counts as it runs."""

from __future__ import annotations

from qsdformer.errors import UserError
from qsdformer.graph.integer import IntegerGraph
from qsdformer.nn.neurons import firing_rate
from qsdformer.runtimes import native
from qsdformer.runtimes.onnx_predict import OnnxModel
from qsdformer.runtimes.runnable import RunnableGraph
from qsdformer.tasks.activity import overall_activity


class NativeActivity:
    """Counts from now on; `UserError` for a `model` that the native engine does not run."""

    def __init__(self, model: IntegerGraph | OnnxModel) -> None:
        if not isinstance(model, RunnableGraph):
            raise UserError("activity is measured on a checkpoint or a .qsd file: give one of them")
        if not isinstance(model.engine, native.NativeModel):
            raise UserError(
                f"activity is measured on a checkpoint or in the native engine: {native.absence()}"
            )
        self._graph, self._engine = model, model.engine
        self._engine.reset_statistics()

    def shares(self, images: int) -> dict[str, dict[str, float]]:
        """Activity in the last so many `images`, as `measure_activity` gives it; and over all."""
        found = self._engine.statistics()
        layers = {}
        for neuron in self._graph.neurons():
            did, rows = found[neuron.name], images * neuron.steps
            layers[neuron.name] = {
                "firing_rate": firing_rate(did.spikes, did.elements, neuron.levels),
                "active_groups": did.active_groups / did.groups,
                "neurons": did.elements / rows,
                "groups": did.groups / rows,
            }
        return {**layers, "all layers": overall_activity(layers)}
