"""From recorded operations to steps: what each node of an fx graph means, or why it cannot be.

Layers are recognised by their type, functions and methods of torch by their name. Operations that
change nothing in evaluation (dropout, identity, contiguous) leave no step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from qsdformer.errors import UserError, one_line
from qsdformer.graph.arithmetic import PRODUCTS, SUMS, concatenated, multiplied, summed
from qsdformer.graph.call import Call
from qsdformer.graph.layout import axes_text, reduced, repeated, reshaped
from qsdformer.graph.naming import IN_PLACE, Names, spelled
from qsdformer.graph.steps import Constant, Step, Traced
from qsdformer.graph.tracer import SUPPORTED, called, is_norm, model_path, shape_of
from qsdformer.graph.windows import conv_options, pool_options
from qsdformer.nn.attention import LayerScale, SpikeAttention
from qsdformer.nn.blocks import border_conv
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.pointwise import PlanePool
from qsdformer.nn.timing import TimeInput, TimeMean, TimeRepeat

NOTHING = ("contiguous", "clone", "detach", "float")
DROPOUTS = ("dropout", "dropout2d", "alpha_dropout")
RESHAPES = ("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "getitem")
# What gives the same memory another shape, of constants too.
VIEWS = (*RESHAPES, "expand", "transpose", "permute", "swapaxes", "contiguous", "detach")
# All arguments of the pools in their order, apart from what is pooled.
POOLS = {
    "max_pool2d": (
        "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices",
    ),
    "avg_pool2d": (
        "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
}  # fmt: skip
INTERPOLATE = (
    "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias",
)  # fmt: skip


def read(graph: fx.Graph, root: nn.Module, shape: tuple[int, ...]) -> Traced:
    """The steps of a recorded graph; `UserError` for what is not supported."""
    reader = _Reader(graph, root)
    for node in graph.nodes:
        try:
            reader.add(node)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            path, owner = reader.names.where(node)
            raise UserError(
                f"{called(path)} ({owner}): {spelled(node)} cannot be read: {one_line(error)}"
            ) from error
    return Traced(steps=tuple(reader.steps), outputs=reader.outputs, shape=shape)


class _Reader:
    """Goes through the nodes once and makes steps."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.root = root
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.steps: list[Step] = []
        self.outputs: dict[str, Step] = {}
        self.found: dict[fx.Node, Any] = {}  # Step, Constant or module
        self.names = Names(graph)
        self.memory: dict[fx.Node, fx.Node] = {}  # the node whose memory a view lies in
        self.overwritten: dict[fx.Node, fx.Node] = {}  # by which in-place operation

    def add(self, node: fx.Node) -> None:
        self._refuse_overwritten(node)
        if node.op == "placeholder":
            self._image(node)
        elif node.op == "output":
            self._outputs(node)
        elif node.op == "get_attr":
            self.found[node] = self._attribute(str(node.target))
        else:
            self.found[node] = self._operation(node)

    def _refuse_overwritten(self, node: fx.Node) -> None:
        """Steps are never changed, so the old value would be read where torch reads the new one."""
        changed = next((n for n in node.all_input_nodes if n in self.overwritten), None)
        if changed is None:
            return
        value, change = self.found[changed], self.overwritten[changed]
        raise UserError(
            f"{called(value.name)}: the value is read again, as it is or through a view, after "
            f"{spelled(change)} in place has changed it: make a new tensor (y = x + z instead of "
            "x += z)"
        )

    def _note_memory(self, node: fx.Node, result: Any, inputs: tuple[Step, ...]) -> None:
        """Which memory the value lies in, and which earlier values are changed with it."""
        if not node.all_input_nodes:
            return
        source, name = node.all_input_nodes[0], spelled(node)
        base = self.memory.get(source, source)
        if node.target in IN_PLACE:
            if base.op == "get_attr":
                raise UserError(
                    f"{called(model_path(str(base.target)))}: {name} in place changes it for the "
                    "next batch, which a graph cannot"
                )
            earlier = [n for n in self.found if self.memory.get(n, n) is base]
            self.overwritten.update(dict.fromkeys(earlier, node))
            self.memory[node] = base
        elif isinstance(result, Step):
            same = result in inputs or result.kind == "view" or name == "expand"
            if same and name != "clone":
                self.memory[node] = base
        elif name in VIEWS:
            self.memory[node] = base

    def _image(self, node: fx.Node) -> None:
        shape = shape_of(node).shape
        framed = len(shape) == 5
        step = Step(
            name="image",
            kind="image",
            inputs=(),
            time=shape[0] if framed else 1,
            size=(shape[-3], shape[-2], shape[-1]),
            axes="tbchw" if framed else "nchw",
        )
        self.steps.append(step)
        self.found[node] = step

    def _outputs(self, node: fx.Node) -> None:
        given = node.args[0]
        if isinstance(given, fx.Node):
            named = {"output": given}
        elif isinstance(given, dict):
            named = dict(given)
        else:
            several = given if isinstance(given, (list, tuple)) else [given]
            named = {f"output{i}": value for i, value in enumerate(several)}
        for name, value in named.items():
            step = self.found.get(value) if isinstance(value, fx.Node) else None
            if not isinstance(step, Step):
                raise UserError("the model must return a tensor, or a list or dict of tensors")
            self.outputs[str(name)] = step

    def _attribute(self, target: str) -> Any:
        owner, _, name = target.rpartition(".")
        value = getattr(self.root.get_submodule(owner), name)
        if isinstance(value, nn.Module):
            return value
        return Constant(lambda: getattr(self.root.get_submodule(owner), name))

    def _operation(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.found[n])
        function = _function(node, self.modules)
        given = tree_flatten((args, kwargs))[0]
        inputs = tuple(dict.fromkeys(x for x in given if isinstance(x, Step)))
        if not inputs:
            constants = (args, kwargs)
            constant = Constant(lambda: _evaluate(function, *constants))
            self._note_memory(node, constant, inputs)
            return constant
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        result = Operation(node, function, args, kwargs, inputs, self.names).step(module)
        if result not in inputs:
            self.steps.append(result)
        self._note_memory(node, result, inputs)
        return result


class Operation(Call):
    """What a call means: the step that it becomes."""

    def step(self, module: nn.Module | None) -> Step:
        """The step, or the one it reads where nothing is done."""
        if module is not None:
            return self._module(module)
        name = spelled(self.node)
        if self.node.target is border_conv:
            norm, conv = self._module_of(1), self._module_of(2)
            options = {**conv_options(conv, self.fail), "norm": norm, "norm_name": self._path(1)}
            return self.make("border_conv", module=conv, name=self._path(2), **options)
        if name in NOTHING or (name == "to" and shape_of(self.node).dtype == torch.float32):
            return self.x
        if name in DROPOUTS:
            return self._dropout()
        if name in RESHAPES:
            if name == "getitem" and not _in_order(self.args[1]):
                raise self.fail("a choice of entries is not supported: only whole values are")
            return reshaped(self)
        if name in SUMS:
            return summed(self, name)
        if name in PRODUCTS:
            return multiplied(self, divide="div" in name)
        if name in ("mean", "sum"):
            dim, keepdim, dtype = self.arguments("dim", "keepdim", "dtype")
            if dtype not in (None, torch.float32):
                raise self.fail(f"a {name} with dtype={dtype} is not supported")
            return reduced(self, name, dim, keepdim)
        if name == "stack" and (self.arguments("dim")[0] or 0) % len(self.shape()):
            raise self.fail("copies must be stacked along a new first axis, which is time")
        if name in ("repeat", "expand", "stack"):
            return repeated(self)
        if name in ("cat", "concat", "concatenate"):
            return concatenated(self)
        if name in ("transpose", "permute", "swapaxes"):
            return self._transposed()
        if name in POOLS:
            return self._pool(name, self._named(*POOLS[name]))
        if name == "adaptive_avg_pool2d":
            return self._adaptive_pool("avg_pool")
        if name == "adaptive_max_pool2d":
            return self._adaptive_pool("max_pool")
        if name == "interpolate":
            return self._upsample(self._named(*INTERPOLATE))
        raise self.fail(f"{name} is not supported: {SUPPORTED}")

    def _module(self, m: nn.Module) -> Step:
        if isinstance(m, (nn.Identity, nn.modules.dropout._DropoutNd)):
            return self.x
        if isinstance(m, nn.Conv2d):
            return self.make("conv", module=m, **conv_options(m, self.fail))
        if isinstance(m, nn.ConvTranspose2d):
            self.arguments()  # no output_size
            plain = (m.kernel_size, m.stride, m.padding, m.dilation, m.groups)
            if plain != ((2, 2), (2, 2), (0, 0), (1, 1), 1) or any(m.output_padding):
                raise self.fail("a transposed convolution must be 2x2 with stride 2, in one group")
            return self.make("conv_transpose", module=m)
        if isinstance(m, nn.Linear):
            return self._linear(m)
        if is_norm(m):
            return self._norm(m)
        if isinstance(m, LayerScale):
            return self.make("scale", module=m, factor=Constant(lambda: m.scale))
        if isinstance(m, SpikingNeuron):
            return self._neuron(m)
        if isinstance(m, SpikeAttention):
            return self._attention(m)
        if isinstance(m, TimeInput):
            same = shape_of(self.node).shape == self.input_shape()
            still = len(self.input_shape()) == 4
            return self.x if same else (repeated(self) if still else reshaped(self))
        if isinstance(m, TimeRepeat):
            # A step in any case: its value is a membrane potential, made once for all readers.
            self.inputs = self.inputs[:1]  # the images only say whether they are frames
            times = self.shape()[0] // self.input_shape()[0]
            self.call = (lambda x: x.repeat(times, *[1] * (x.dim() - 1)), (self.x,), {})
            return self.make("repeat", time=times * self.x.time)
        if isinstance(m, TimeMean):
            if m.steps != self.x.time:
                raise self.fail(f"the mean of {m.steps} time steps, but there are {self.x.time}")
            return self.x if m.steps == 1 else reduced(self, "mean", 0, False, folded=True)
        if isinstance(m, (nn.Flatten, nn.Unflatten)):
            return reshaped(self)
        if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d)):
            name = "max_pool2d" if isinstance(m, nn.MaxPool2d) else "avg_pool2d"
            return self._pool(name, vars(m))
        if isinstance(m, PlanePool):
            return self.make("plane_pool", heads=m.heads)
        if isinstance(m, nn.AdaptiveAvgPool2d):
            return self._adaptive_pool("avg_pool")
        if isinstance(m, nn.AdaptiveMaxPool2d):
            if m.return_indices:
                raise self.fail("a pool with return_indices is not supported")
            return self._adaptive_pool("max_pool")
        if isinstance(m, nn.Upsample):
            return self._upsample(vars(m))
        raise self.fail(f"{type(m).__name__} is not supported: {SUPPORTED}")

    def _named(self, *names: str) -> dict[str, Any]:
        """The arguments after the first, by name."""
        return dict(zip(names, self.arguments(*names), strict=True))

    def _dropout(self) -> Step:
        p, training, _, train = self.arguments("p", "training", "inplace", "train")
        if p and (training or train):
            raise self.fail("a dropout is on in evaluation too: give it training=self.training")
        return self.x

    def _module_of(self, index: int) -> Any:
        return self.args[index]

    def _path(self, index: int) -> str:
        node = self.node.args[index]
        assert isinstance(node, fx.Node)
        return model_path(str(node.target))

    def _linear(self, m: nn.Linear) -> Step:
        if not self.x.axes.endswith("c"):
            raise self.fail(f"a linear layer must read channels last, {axes_text(self.x)} given")
        return self.make("linear", module=m)

    def _norm(self, m: Any) -> Step:
        if m.running_mean is None or m.running_var is None:
            raise self.fail("a norm without running statistics is not supported")
        if self.x.axes[1] != "c":
            raise self.fail(f"the norm must find channels second, {axes_text(self.x)} given")
        return self.make("norm", module=m)

    def _neuron(self, m: SpikingNeuron) -> Step:
        if m.time_steps not in (1, self.x.time):
            raise self.fail(
                f"a neuron with time_steps={m.time_steps} gets {self.x.time} of them: repeat "
                "the images with TimeInput, or build the neuron with the network's time steps"
            )
        return self.make("neuron", module=m)

    def _attention(self, m: SpikeAttention) -> Step:
        q, k, v = (*self.args, *(self.kwargs[n] for n in ("q", "k", "v") if n in self.kwargs))
        self.inputs = (q, k, v)
        self.x = v
        self.call = (m, self.inputs, {})
        for letter, x in zip("qkv", (q, k, v), strict=True):
            if x.kind not in ("neuron", "view", "max_pool", "repeat"):
                raise self.fail(
                    f"{letter} comes from {x.name}: attention reads the spikes of a neuron, or a "
                    "view, max pool or repetition of them"
                )
        return self.make("attention", module=m)

    def _transposed(self) -> Step:
        """Tokens before channels or after them; nothing else."""
        if self.kwargs:
            raise self.fail("axes that are exchanged must be given by their places, not by name")
        swapped = {"ncp": "npc", "npc": "ncp", "tbcp": "tbpc", "tbpc": "tbcp"}.get(self.x.axes)
        found = self.args[1:] if len(self.args) != 2 else tuple(self.args[1])
        last = len(self.x.axes)
        order = list(range(last))
        if len(found) == 2 and all(isinstance(i, int) for i in found):
            i, j = (a % last for a in found)
            order[i], order[j] = j, i
        else:
            order = [a % last for a in found]
        expected = [*range(last - 2), last - 1, last - 2]
        if swapped is None or order != expected:
            raise self.fail(
                f"axes of {axes_text(self.x)} are exchanged; only tokens and channels can be"
            )
        return self.make("view", axes=swapped)

    def _pool(self, name: str, given: Mapping[str, Any]) -> Step:
        options = pool_options(given, self.fail)
        if self.x.axes != "nchw":
            raise self.fail(f"a pool of {axes_text(self.x)} is not supported")
        if name == "max_pool2d":
            return self.make("max_pool", **options)
        if options["padding"] == 0 and self.x.size[1:] == (options["kernel"],) * 2:
            return self.make("spatial_sum", mean=True)
        if options["padding"] and given.get("count_include_pad") not in (None, True):
            raise self.fail("an average pool must count its padding")
        return self.make("avg_pool", **options)

    def _adaptive_pool(self, kind: Literal["avg_pool", "max_pool"]) -> Step:
        height, width = self.shape()[-2:]
        if self.x.axes != "nchw":
            raise self.fail(f"a pool of {axes_text(self.x)} is not supported")
        if (height, width) == self.x.size[1:]:
            return self.x
        if kind == "avg_pool" and (height, width) == (1, 1):
            return self.make("spatial_sum", mean=True)
        kernel = self.x.size[1] // height
        if self.x.size[1:] != (kernel * height, kernel * width):
            raise self.fail("an adaptive pool must divide the map into equal squares")
        return self.make(kind, kernel=kernel, stride=kernel, padding=0)

    def _upsample(self, given: Mapping[str, Any]) -> Step:
        height, width = self.x.size[1:]
        mode, scale = given.get("mode") or "nearest", given.get("scale_factor")
        # Without recomputing, 2.01 doubles the map too, and takes its pixels from other places.
        doubled = scale in (None, 2, (2, 2), [2, 2]) or given.get("recompute_scale_factor")
        doubled = doubled and self.shape()[-2:] == (2 * height, 2 * width)
        odd = given.get("align_corners") or given.get("antialias")
        if mode not in ("nearest", "bilinear") or odd or not doubled:
            raise self.fail(
                "upsampling must be by 2, nearest or bilinear without align_corners and antialias"
            )
        return self.make("upsample", mode=mode)


def _in_order(index: Any) -> bool:
    """Whether an index takes entries in their order, as slices do, and lists need not."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or isinstance(part, (int, slice, type(...))) for part in parts)


def _function(node: fx.Node, modules: Mapping[str, nn.Module]) -> Callable[..., Any]:
    if node.op == "call_module":
        return modules[str(node.target)]
    if node.op == "call_method":
        method = str(IN_PLACE.get(node.target, node.target))
        return lambda x, *args, **kwargs: getattr(x, method)(*args, **kwargs)
    assert callable(node.target)
    return IN_PLACE.get(node.target, node.target)


def _evaluate(function: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
    def compute(a: Any) -> Any:
        return a.compute() if isinstance(a, Constant) else a

    return function(*tree_map(compute, args), **tree_map(compute, kwargs))
