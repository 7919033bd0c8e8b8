"""A model's own forward, run once on shapes and recorded: torch.fx with our layers as leaves.

Beside its node every recorded value knows its shape (a tensor on the meta device), so that a
forward may ask for shapes, compute with them and decide by them as always; only decisions by the
values of tensors are refused. Errors are `UserError`s of one line that name the module.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qsdformer.errors import UserError, one_line
from qsdformer.nn.attention import LayerScale, SpikeAttention
from qsdformer.nn.blocks import border_conv
from qsdformer.nn.neurons import SpikingNeuron
from qsdformer.nn.pointwise import PlanePool
from qsdformer.nn.timing import TimeInput, TimeMean, TimeRepeat

OURS = (SpikingNeuron, SpikeAttention, LayerScale, PlanePool, TimeInput, TimeMean, TimeRepeat)
# Modules without parameters, whose own forward tells the shape of their result.
SHAPED = (
    SpikeAttention,
    PlanePool,
    TimeInput,
    TimeMean,
    TimeRepeat,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Upsample,
    nn.Identity,
    nn.modules.dropout._DropoutNd,
)
# Methods that bring values of tensors into the program, which a graph does not have.
READ_VALUES = ("item", "tolist", "numpy", "nonzero")
SUPPORTED = (
    "supported are QuantConv2d and QuantLinear, batch norms, IELIF and LIF, SpikeAttention, sums "
    "and products, max and average pools, means over the map or over time, repetition in time, "
    "flattening, upsampling by 2 and concatenation (docs/graph.md)"
)
# Packages whose layers compute what their classes are known for.
KNOWN = ("qsdformer", "torch", "torchvision")
_BORDER_CONV = border_conv  # the name without underscore is another function during recording
ROOT = "model"  # where the traced model lies in the module that is traced


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm, torchvision's frozen one included.

    A module can be that only where torchvision is imported already, which takes seconds.
    """
    frozen = getattr(sys.modules.get("torchvision.ops.misc"), "FrozenBatchNorm2d", ())
    return isinstance(module, (_BatchNorm, frozen))


class _Root(nn.Module):
    """Calls the model with its images alone, whatever else its forward could take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


class _Value(fx.Proxy):
    """A recorded value that answers questions about its shape."""

    @property
    def shape(self) -> torch.Size:
        return shape_of(self.node).shape

    @property
    def ndim(self) -> int:
        return shape_of(self.node).ndim

    @property
    def dtype(self) -> torch.dtype:
        return shape_of(self.node).dtype

    def dim(self) -> int:
        return shape_of(self.node).ndim

    def size(self, dim: int | None = None) -> Any:
        shape = shape_of(self.node).shape
        return shape if dim is None else shape[dim]

    def numel(self) -> int:
        return shape_of(self.node).numel()

    def __len__(self) -> int:
        found = self.node.meta["shape"]
        return len(found)

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, change: Callable[[Any, Any], Any], other: Any) -> Any:
        """torch.fx by itself would record `x += y` as a new value, and leave x the old one."""
        return self.tracer.create_proxy("call_function", change, (self, other), {})

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))  # type: ignore[index]


def shape_of(node: fx.Node) -> Tensor:
    """The shape of a node's value, as a tensor on the meta device."""
    found = node.meta["shape"]
    assert isinstance(found, Tensor)
    return found


def model_path(path: str) -> str:
    """The dotted name inside the model of a module of the traced root."""
    return path.removeprefix(ROOT).removeprefix(".")


def called(path: str) -> str:
    """What to call the module `path` in a message."""
    return path or "the model"


class _Tracer(fx.Tracer):
    """Records operations; layers of ours and of torch.nn are not looked into."""

    def __init__(self, images: Tensor, root: nn.Module) -> None:
        super().__init__(autowrap_functions=(border_conv,))
        self.proxy_buffer_attributes = True
        self.images = images
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.paths = [ROOT]
        self.recording = True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if not self.recording:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = m.__module__.startswith(("torch.nn", "torch.ao.nn"))
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        ours = isinstance(m, (*OURS, nn.Conv2d, nn.Linear, nn.ConvTranspose2d)) or is_norm(m)
        return ours or (inside and not isinstance(m, containers))

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.paths.append(self.path_of_module(m))
        try:
            self._check_state(m)
            if self.is_leaf_module(m, self.paths[-1]):
                self._check_leaf(m)
            return super().call_module(m, forward, args, kwargs)
        except UserError:
            raise
        except fx.proxy.TraceError as error:
            raise UserError(
                f"{self._where()}: its forward decides by the values of a tensor, which a graph "
                "cannot hold: decide by shapes or settings, or let a layer of qsdformer.nn do it"
            ) from error
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(
                f"{self._where()}: its forward cannot be traced: {one_line(error)}"
            ) from error
        finally:
            self.paths.pop()

    def _where(self) -> str:
        path = self.paths[-1]
        module = self.modules[path]
        return f"{called(model_path(path))} ({type(module).__name__})"

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, nn.Module):
            module = self.create_node("get_attr", self.path_of_module(a), (), {})
            module.meta["shape"] = a
            return module
        argument = super().create_arg(a)
        if isinstance(a, Tensor) and isinstance(argument, fx.Node):
            argument.meta["shape"] = a.detach().to("meta")
        return argument

    def _check_state(self, m: nn.Module) -> None:
        kept = next((k for k, v in vars(m).items() if isinstance(v, Tensor)), None)
        if kept is None:
            return
        if f"{kept}_orig" in m._parameters or f"{kept}_g" in m._parameters:
            raise UserError(
                f"{self._where()}: its {kept} is made of other parameters in each pass: make it "
                f"one again, with torch.nn.utils.prune.remove(layer, {kept!r}) or "
                "remove_weight_norm(layer)"
            )
        if m is not self.root:
            raise UserError(
                f"{self._where()}: it keeps a tensor {kept!r} that is neither parameter nor "
                "buffer, a state left from another batch: set it to None, or use the neurons of "
                "qsdformer.nn, which keep none"
            )

    def _check_leaf(self, m: nn.Module) -> None:
        """A layer that is not looked into must compute what its class is known for."""
        source = type(m).forward.__module__
        if source.partition(".")[0] not in KNOWN:
            raise UserError(
                f"{self._where()}: its class has a forward of its own ({source}), which a graph "
                "does not follow inside a layer: put what it does in a module around the layer"
            )
        hooks = [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
        if any(not _is_ours(hook) for hook in hooks):
            raise UserError(
                f"{self._where()}: it has forward hooks, which a graph does not call: remove them"
            )

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        node = proxy.node
        if kind != "placeholder" and "shape" not in node.meta:
            self.recording = False
            try:
                node.meta["shape"] = self._shape(node)
            finally:
                self.recording = True
        found = node.meta.get("shape")
        plain = found is not None and not isinstance(found, (Tensor, tuple, list))
        return found if plain or isinstance(found, torch.Size) else proxy

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        fn, proxies = super().create_args_for_root(*args, **kwargs)
        proxies[1].node.meta["shape"] = self.images
        return fn, proxies

    def _shape(self, node: fx.Node) -> Any:
        """What a node's result looks like, computed on the meta device."""
        given: Any = (node.args, node.kwargs)
        args, kwargs = cast(Any, fx.node.map_arg(given, lambda n: n.meta["shape"]))
        if node.op == "get_attr":
            found = _attribute(self.root, str(node.target))
            return found.detach().to("meta") if isinstance(found, Tensor) else found
        if node.op == "call_module":
            return self._module_shape(self.modules[str(node.target)], *args, **kwargs)
        if node.target is _BORDER_CONV:
            return _conv_shape(args[0], args[2])
        if node.op == "call_method":
            if node.target in READ_VALUES:
                raise fx.proxy.TraceError(f"{node.target} reads values")
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _module_shape(self, m: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if isinstance(m, SHAPED):
            return m.forward(*args, **kwargs)  # not called: calls are being recorded
        x = args[0] if args else next(iter(kwargs.values()))
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            return _conv_shape(x, m)
        if isinstance(m, nn.Linear):
            if x.shape[-1] != m.in_features:
                raise ValueError(f"{m.in_features} inputs are asked for, and {x.shape[-1]} given")
            return x.new_empty(*x.shape[:-1], m.out_features)
        if isinstance(m, (SpikingNeuron, LayerScale)) or is_norm(m):
            return x
        raise UserError(f"{self._where()}: {type(m).__name__} is not supported: {SUPPORTED}")


def _is_ours(hook: Any) -> bool:
    """Whether a hook only looks: taps do, and what torch keeps masked weights with."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.startswith(("qsdformer.", "torch.nn.utils."))


def _conv_shape(x: Tensor, m: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    if x.dim() == 4 and x.shape[1] != m.in_channels:
        raise ValueError(f"{m.in_channels} channels are asked for, and {x.shape[1]} given")
    weight = torch.empty(m.weight.shape, device="meta")
    if isinstance(m, nn.ConvTranspose2d):
        return F.conv_transpose2d(
            x, weight, None, m.stride, m.padding, m.output_padding, m.groups, m.dilation  # type: ignore[arg-type]
        )  # fmt: skip
    return F.conv2d(x, weight, None, m.stride, m.padding, m.dilation, m.groups)


def _attribute(root: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def record(model: nn.Module, shape: tuple[int, ...]) -> tuple[fx.Graph, nn.Module]:
    """The operations of `model` on images of `shape`, and the root module that they refer to.

    The model lies in the root as "model". It must be in eval mode, and is not changed.
    """
    if hasattr(model, "_orig_mod"):
        raise UserError("the model is compiled: give the one that torch.compile was given")
    busy = next((n for n, m in model.named_modules() if m.training), None)
    if busy is not None:
        raise UserError(f"{called(busy)} is in training mode: call model.eval() first")
    if len(shape) not in (4, 5):
        raise UserError(f"images of shape {shape}: (B, C, H, W) or (T, B, C, H, W)")
    root = _Root(model)
    tracer = _Tracer(torch.empty(shape, device="meta"), root)
    with _unchanged(model), torch.no_grad():
        return tracer.trace(root), root


def _holds_proxy(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    several = isinstance(value, (dict, list))
    return any(isinstance(x, fx.Proxy) for x in inside) if several else isinstance(value, fx.Proxy)


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Refuse modules that store what they are given; their attributes are put back."""
    before = {m: (dict(vars(m)), dict(m._buffers)) for m in model.modules()}
    held = [value for m in model.modules() for key, value in vars(m).items() if key[0] != "_"]
    containers = [(value, value.copy()) for value in held if isinstance(value, (dict, list))]
    kept = None
    try:
        yield
    finally:
        for name, m in model.named_modules():
            stored = {k: v for k, v in vars(m).items() if k[0] != "_"} | m._buffers
            key = next((k for k, value in stored.items() if _holds_proxy(value)), None)
            kept = kept if key is None else (name, key)
        for container, content in containers:
            container.clear()
            if isinstance(container, dict):
                container.update(content)
            else:
                container.extend(content)
        for m, (attributes, buffers) in before.items():
            m.__dict__.clear()
            m.__dict__.update(attributes)
            m._buffers.clear()
            m._buffers.update(buffers)
    if kept is not None:
        name, key = kept
        raise UserError(
            f"{called(name)}: its forward keeps a tensor in {key!r} for the next batch, which a "
            "graph cannot: use the neurons of qsdformer.nn, which keep no state between batches"
        )
