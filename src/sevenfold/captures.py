"""A step of training as a list of kernels: captured once from autograd, then run without it.

For a narrow network most of a step is bookkeeping: of Python, of modules, of autograd. The kernels that a step calls are the
same each time, so they are written down once and called directly from then on, which gives the very same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental import proxy_tensor

aten = torch.ops.aten

Kernels = Callable[..., Any]
Step = Callable[..., tuple[Tensor, list[Tensor | None]]]
"""(*inputs) -> (losses (terms,), the gradient of each leaf or None)."""

_VIEWS = {
    aten.t.default, aten.view.default, aten._unsafe_view.default, aten.transpose.int, aten.permute.default,
    aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor, aten.select.int, aten.detach.default,
    aten.alias.default, aten.split.Tensor, aten.split_with_sizes.default,
}  # fmt: skip
_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}
"""What changes nothing where nobody differentiates."""
_FILLED = {
    aten.ones_like.default, aten.zeros_like.default, aten.full_like.default, aten.full.default, aten.zeros.default,
    aten.ones.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.scalar_tensor.default,
    aten.arange.default, aten.arange.start, aten.new_zeros.default,
}  # fmt: skip
"""What depends on shapes alone."""
_DIRECT = {
    aten.mm.default: torch.mm, aten.addmm.default: torch.addmm, aten.t.default: torch.t, aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub, aten.mul.Tensor: torch.mul, aten.div.Tensor: torch.div, aten.relu.default: torch.relu,
    aten.exp.default: torch.exp, aten.pow.Tensor_Scalar: torch.pow, aten.sum.dim_IntList: torch.sum,
    aten.mean.default: torch.mean, aten.mul.Scalar: torch.mul, aten.add.Scalar: torch.add, aten.div.Scalar: torch.div,
    aten.neg.default: torch.neg, aten.sigmoid.default: torch.sigmoid, aten.tanh.default: torch.tanh,
    aten.where.self: torch.where, aten.silu.default: torch.nn.functional.silu,
}  # fmt: skip
"""The same kernels by a shorter way."""


class NotCapturedError(Exception):
    """The step is more than a list of kernels; the message says why."""


def capture(
    step: Step, fixed: Sequence[Tensor], inputs: Sequence[Tensor], buffers: Sequence[Tensor], places: Sequence[Tensor]
) -> tuple[Callable[..., Tensor], Tensor]:
    """Return `step` as kernels, and the losses of a step taken by them on these inputs.

    The kernels take tensors like `inputs` and return the losses (terms,); the gradients are where `places` says.

    Args:
        step: takes `fixed` and then `inputs`.
        fixed: tensors that lie where they are for good: weights to differentiate by, buffers.
        inputs: of one step; others must have the same shapes and types.
        buffers: those of the fixed ones that a step may change.
        places: memory for the gradients, contiguous.

    Raises:
        NotCapturedError: the kernels do not give the same losses, gradients and buffers, to the bit.
    """
    with _repeated(buffers) as again:
        expected, gradients = step(*fixed, *inputs)
        after = [buffer.clone() for buffer in buffers]
        chance = torch.get_rng_state()
        again()
        try:
            module = proxy_tensor.make_fx(step, tracing_mode="real")(*fixed, *inputs)
        except Exception as error:
            raise NotCapturedError(f"{type(error).__name__}: {error}") from error
        again()
    for place, gradient in zip(places, gradients, strict=True):
        if gradient is None:
            place.zero_()
    kernels = _Program(module, fixed, places).compiled()
    with torch.inference_mode():
        losses: Tensor = kernels(*inputs)
    same = all(g is None or _equal(p, g) for p, g in zip(places, gradients, strict=True))
    same = same and _equal(losses, expected) and all(map(_equal, buffers, after))
    if not same or not torch.equal(chance, torch.get_rng_state()):
        again()
        raise NotCapturedError("the kernels give other numbers than the step itself")
    return kernels, losses


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


@contextmanager
def _repeated(buffers: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Give a function that puts back chance and buffers as they are now."""
    kept = [buffer.clone() for buffer in buffers]
    chance = torch.get_rng_state()

    def again() -> None:
        torch.set_rng_state(chance)
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)

    yield again


class _Program:
    """The graph of a step, made shorter without a change of any number."""

    def __init__(self, module: fx.GraphModule, fixed: Sequence[Tensor], places: Sequence[Tensor]) -> None:
        self._module, self._graph = module, module.graph
        self._places = places
        self._constants: dict[fx.Node, Tensor] = {}
        placeholders = self._graph.find_nodes(op="placeholder")
        self._mutated = _mutated(self._graph)
        self._bound = dict(zip(placeholders, fixed, strict=False))
        self._pass_through()
        self._share()
        self._fold()
        self._graph.eliminate_dead_code()
        self._land()
        for node in self._graph.nodes:
            if node.op == "call_function" and node.target in _DIRECT:
                node.target = _DIRECT[node.target]

    def compiled(self) -> Kernels:
        """Return the program as a function of the inputs alone."""
        for node in list(self._bound):
            if node.users:
                self._replace(node, self._bound[node])
            self._graph.erase_node(node)
        self._graph.set_codegen(fx.graph.CodeGen())
        self._graph.lint()
        self._module.recompile()
        # Not by the module's `__call__`, which looks for hooks.
        return self._module.forward

    def _replace(self, node: fx.Node, value: Tensor) -> None:
        name = f"_fixed_{node.name}"
        self._module.register_buffer(name, value, persistent=False)
        with self._graph.inserting_before(node):
            node.replace_all_uses_with(self._graph.get_attr(name))

    def _pass_through(self) -> None:
        """Leave out what gives back what it takes."""
        for node in list(self._graph.nodes):
            if node.op != "call_function" or node in self._mutated:
                continue
            source = node.args[0] if node.args else None
            if not isinstance(source, fx.Node) or source in self._mutated:
                continue
            same = node.target in _SAME or (node.target is aten.pow.Tensor_Scalar and node.args[1] == 1)
            if node.target is aten.t.default and source.target is aten.t.default:
                source, same = source.args[0], True  # type: ignore[assignment]
            if same:
                node.replace_all_uses_with(source)
                self._graph.erase_node(node)

    def _share(self) -> None:
        """Compute once what is computed twice."""
        seen: dict[Any, fx.Node] = {}
        for node in list(self._graph.nodes):
            if not self._pure(node):
                continue
            key = (node.target, str(node.args), str(node.kwargs))
            if key in seen:
                node.replace_all_uses_with(seen[key])
                self._graph.erase_node(node)
            else:
                seen[key] = node

    def _fold(self) -> None:
        """Compute now what is the same in every step: what depends on shapes alone, and views of what stays in place."""
        values: dict[fx.Node, Tensor] = {}
        views = dict(self._bound)
        for node in list(self._graph.nodes):
            if not self._pure(node):
                continue
            sources = node.all_input_nodes
            if node.target in _FILLED:
                args = fx.map_arg(node.args, lambda n: _like(n.meta["val"]))
                found = values
            elif sources and all(source in values for source in sources):
                args, found = fx.map_arg(node.args, values.__getitem__), values
            elif sources and node.target in _VIEWS and all(source in views for source in sources):
                args, found = fx.map_arg(node.args, views.__getitem__), views
            else:
                continue
            value = node.target(*args, **node.kwargs)
            if isinstance(value, Tensor):
                found[node] = value.detach()
        for node, value in {**values, **views}.items():
            if node not in self._bound:
                self._replace(node, value)

    def _land(self) -> None:
        """Let each gradient be written where it has to be."""
        (output,) = self._graph.find_nodes(op="output")
        losses, gradients = output.args[0]
        taken: set[fx.Node] = set()
        for place, gradient in zip(self._places, gradients, strict=True):
            if gradient is None:
                continue
            source = gradient
            if source.target in (aten.view.default, aten._unsafe_view.default) and len(source.users) == 1:
                source = source.args[0]
            if source.target in (aten.mm.default, aten.sum.dim_IntList) and len(source.users) == 1 and source not in taken:
                taken.add(source)
                value = place.view(source.meta["val"].shape)
                self._module.register_buffer(name := f"_place_{source.name}", value, persistent=False)
                with self._graph.inserting_before(source):
                    source.kwargs = {**source.kwargs, "out": self._graph.get_attr(name)}
                source.target = _DIRECT[source.target]
                source.meta["landed"] = True
            else:
                self._module.register_buffer(name := f"_place_{gradient.name}_{len(taken)}", place, persistent=False)
                taken.add(gradient)
                with self._graph.inserting_before(output):
                    self._graph.call_function(aten.copy_.default, (self._graph.get_attr(name), gradient))
        output.args = (losses,)

    def _pure(self, node: fx.Node) -> bool:
        """Say whether equal calls of a node give equal values wherever they stand."""
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return False
        if node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags:
            return False
        return node not in self._mutated and not any(n in self._mutated for n in node.all_input_nodes)


def _like(fake: Tensor) -> Tensor:
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)


def _mutated(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that some kernel writes to."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
                    found |= {value, node}
    return found
