"""A step of training as a list of kernels: written down once, and from then on run without autograd.

For a narrow network most of a step is bookkeeping: of Python, of modules, of autograd. The kernels that a step calls are the
same each time, so they are written down once and called directly from then on, which gives the very same numbers. The list
is also what a compiler takes, which fuses kernels, and rounds differently.
"""

import copy
import operator
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[..., tuple[Tensor, list[Tensor | None]]]
"""(*fixed, *inputs) -> (losses (terms,), the gradient of each weight or None)."""

_aten = torch.ops.aten
_VIEWS = {
    _aten.t.default, _aten.view.default, _aten._unsafe_view.default, _aten.transpose.int, _aten.permute.default,
    _aten.expand.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.slice.Tensor, _aten.select.int,
    _aten.detach.default, _aten.alias.default,
}  # fmt: skip
_NOTHING = {_aten.detach.default, _aten.alias.default}
"""What changes nothing where nobody differentiates."""
_FILLED = {
    _aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default, _aten.full.default, _aten.zeros.default,
    _aten.ones.default, _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.arange.default,
    _aten.scalar_tensor.default,
}  # fmt: skip
"""What depends on shapes alone."""
_SHORTER: dict[Any, Any] = {
    _aten.mm.default: torch.mm, _aten.addmm.default: torch.addmm, _aten.t.default: torch.t, _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub, _aten.mul.Tensor: torch.mul, _aten.div.Tensor: torch.div, _aten.mul.Scalar: torch.mul,
    _aten.div.Scalar: torch.div, _aten.pow.Tensor_Scalar: torch.pow, _aten.sum.dim_IntList: torch.sum,
    _aten.mean.default: torch.mean, _aten.exp.default: torch.exp, _aten.neg.default: torch.neg,
    _aten.relu.default: torch.relu, _aten.sigmoid.default: torch.sigmoid, _aten.tanh.default: torch.tanh,
    _aten.silu.default: functional.silu, _aten.where.self: torch.where,
    _aten.stack.default: torch.stack,
}  # fmt: skip
"""The same kernels, by a shorter way from Python."""
_CELLWISE: set[Any] = {
    _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.exp.default, _aten.neg.default,
    _aten.sigmoid.default, _aten.tanh.default, _aten.pow.Tensor_Scalar, _aten.relu.default,
    _aten.threshold_backward.default, _aten.mse_loss_backward.default,
}  # fmt: skip
"""What may write over an argument that is as large as what it gives."""
_INTO: dict[Any, tuple[Any, str]] = {
    kernel: (_SHORTER[kernel], "out") for kernel in _CELLWISE & set(_SHORTER) - {_aten.relu.default}
} | {
    _aten.mm.default: (torch.mm, "out"),
    _aten.addmm.default: (torch.addmm, "out"),
    _aten.sum.dim_IntList: (torch.sum, "out"),
    _aten.threshold_backward.default: (_aten.threshold_backward.grad_input, "grad_input"),
    _aten.mse_loss_backward.default: (_aten.mse_loss_backward.grad_input, "grad_input"),
}
"""The same kernels where they write to memory that is given to them, by which keyword."""


class CaptureError(Exception):
    """A step is more than a list of kernels, or cannot be compiled; the message says why."""


class Capture:
    """The kernels of a step, for batches of one shape.

    draws: whether the step draws random numbers.
    """

    def __init__(
        self,
        step: Step,
        fixed: Sequence[Tensor],
        buffers: Sequence[Tensor],
        places: Sequence[Tensor],
        inputs: Sequence[Tensor],
    ) -> None:
        """Write down what a step calls.

        Args:
            step: takes `fixed`, and then tensors like `inputs`.
            fixed: tensors that lie where they are for good: weights, buffers.
            buffers: those of the fixed ones that a step may write to.
            places: memory for each gradient.
            inputs: of one step; others must have the same shapes, types and strides.

        Raises:
            CaptureError: the kernels do not give the same losses, gradients and buffers, to the bit.
        """
        self._fixed, self._buffers, self._places = fixed, buffers, places
        with _put_back(buffers):
            self._written = _written(step, fixed, inputs)
        self.draws = any(_is_random(node) for node in self._written.graph.nodes)
        program = _Program(self._written, fixed)
        program.land(places)
        self._run = program.function()
        # On other numbers than were written down, which shows what was taken for a constant and is none.
        others = [
            t.clone().copy_(t.roll(1, 0) if t.dtype == torch.bool else t.lerp(t.roll(1, 0), 0.25)) for t in inputs
        ]
        with _put_back(buffers):
            expected, gradients = step(*fixed, *others)
            after, chance = [buffer.clone() for buffer in buffers], torch.get_rng_state()
        for place, gradient in zip(places, gradients, strict=True):
            if gradient is None:
                place.zero_()
        with _put_back(buffers):
            found = self(*others)
            same = all(g is None or _equal(p, g) for p, g in zip(places, gradients, strict=True))
            same &= _equal(found, expected) and all(map(_equal, buffers, after))
            if not same or not torch.equal(chance, torch.get_rng_state()):
                raise CaptureError("its kernels give other numbers than the step itself")

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take a step: return its losses (terms,), and leave its gradients where the places are."""
        with torch.inference_mode():
            losses: Tensor = self._run(*inputs)
        return losses

    def compile(self, inputs: Sequence[Tensor], cache: Path | None) -> None:
        """Let a compiler fuse the kernels.

        Args:
            cache: a private folder, where what was compiled is found again; without one it is compiled each time.

        Raises:
            CaptureError: there is no compiler, or it failed, or what it made gives other losses.
        """
        program = _Program(self._written, self._fixed)
        present = program.return_all(self._places)
        with _put_back(self._buffers):
            expected = self(*inputs)
        run: Any = None

        def fused(*inputs: Tensor) -> Tensor:
            with torch.no_grad():
                losses, *gradients = run(*inputs)
                torch._foreach_copy_(present, gradients)
            found: Tensor = losses
            return found

        with _put_back(self._buffers), _compiler(cache):
            try:
                run = torch.compile(program.module(), fullgraph=True, dynamic=False)
                found = fused(*inputs)
            except Exception as error:
                reason = " ".join(str(error).strip().splitlines()[:2])
                raise CaptureError(f"{type(error).__name__}: {reason}") from error
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-5, equal_nan=True):
            raise CaptureError(f"the compiled step has losses {found.tolist()} in place of {expected.tolist()}")
        self._run = fused


def _written(step: Step, fixed: Sequence[Tensor], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return what a step calls; the graph takes what the step takes and returns what it returns."""
    writer = _Writer()
    with writer:
        for tensor in (*fixed, *inputs):
            writer.name(tensor)
        losses, gradients = step(*fixed, *inputs)
    return writer.module(losses, gradients)


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every kernel that is called inside the block, below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._constants = nn.Module()
        # Tensors are told apart by their identity, so none of them may go and leave its identity to another.
        self._nodes: dict[int, tuple[fx.Node, Tensor]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To keep the compiler out of here means to import it, which takes longer than all the rest.
        return False

    def name(self, tensor: Tensor) -> None:
        self._know(tensor, self._graph.placeholder(f"tensor_{len(self._nodes)}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        values = found if isinstance(found, (tuple, list)) else (found,)
        if not all(value is None or isinstance(value, Tensor) for value in values):
            raise CaptureError(f"it looks at a value, by {func}")
        node = self._graph.call_function(func, self._arguments(args), self._arguments(kwargs or {}))
        node.meta["val"] = found
        if values is not found:
            self._know(found, node)
            return found
        for index, value in enumerate(values):
            if value is not None:
                self._know(value, self._graph.call_function(operator.getitem, (node, index)))
        return found

    def module(self, losses: Tensor, gradients: Sequence[Tensor | None]) -> fx.GraphModule:
        self._graph.output((self._node(losses), [None if g is None else self._node(g) for g in gradients]))
        for node in self._graph.nodes:
            # Their shapes are enough, and take no memory.
            value = node.meta.get("val")
            node.meta["device"] = value.device if isinstance(value, Tensor) else None
            node.meta["val"] = value.to("meta") if isinstance(value, Tensor) else None
        written: fx.GraphModule = fx.GraphModule(self._constants, self._graph)
        return written

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        # What is written to in place stays what it was.
        if id(tensor) not in self._nodes:
            node.meta["val"] = tensor
            self._nodes[id(tensor)] = node, tensor

    def _arguments(self, values: Any) -> Any:
        return pytree.tree_map(lambda value: self._node(value) if isinstance(value, Tensor) else value, values)

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._nodes:
            self._constants.register_buffer(name := f"constant_{len(self._nodes)}", tensor.detach(), persistent=False)
            self._know(tensor, self._graph.get_attr(name))
        return self._nodes[id(tensor)][0]


@contextmanager
def _put_back(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Leave chance and buffers as they are before the block."""
    kept, chance = [buffer.clone() for buffer in buffers], torch.get_rng_state()
    device = buffers[0].device if buffers else torch.device("cpu")
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(chance)
        if there is not None:
            torch.cuda.set_rng_state(there, device)
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)


@contextmanager
def _compiler(cache: Path | None) -> Iterator[None]:
    """Set up the compiler: its folder, no processes of its own, and the same random numbers as without it."""
    import torch._functorch.config as autograd
    import torch._inductor.config as settings

    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="sevenfold-", ignore_cleanup_errors=True) as passing:
        folder = Path(passing) if cache is None else cache
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        try:
            with (
                # Graphs are kept as pickles, which nothing here reads; kernels, as libraries named after their source.
                settings.patch(compile_threads=1, fallback_random=True, fx_graph_cache=False),
                autograd.patch(enable_autograd_cache=False),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # the compiler's own affairs
                yield
        finally:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            if before is not None:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


class _Program:
    """The graph of a step, made shorter without a change of any number."""

    def __init__(self, traced: fx.GraphModule, fixed: Sequence[Tensor]) -> None:
        self._module = copy.copy(traced)
        self._graph = fx.Graph()
        self._graph.output(self._graph.graph_copy(traced.graph, {}))
        self._mutated = _mutated(self._graph)
        placeholders = self._graph.find_nodes(op="placeholder")
        self._bound: Mapping[fx.Node, Tensor] = dict(zip(placeholders, fixed, strict=False))
        self._device = fixed[0].device
        self._kept = 0
        self._leave_out()
        self._share()
        self._fold()
        self._graph.eliminate_dead_code()

    def land(self, places: Sequence[Tensor]) -> None:
        """Write each gradient where it has to be, and return the losses alone."""
        losses, gradients, output = self._results()
        landed: list[fx.Node] = []
        for place, gradient in zip(places, gradients, strict=True):
            if gradient is None:
                continue
            source = gradient
            if source.target in (_aten.view.default, _aten._unsafe_view.default) and len(source.users) == 1:
                source = source.args[0]
            with self._graph.inserting_before(source):
                if source.target in (_aten.mm.default, _aten.sum.dim_IntList) and len(source.users) == 1:
                    out = self._constant(place.view(source.meta["val"].shape))
                    source.kwargs = {**source.kwargs, "out": out}
                    source.target = _SHORTER[source.target]
                    landed.append(gradient)
                    continue
            with self._graph.inserting_before(output):
                self._graph.call_function(_aten.copy_.default, (self._constant(place), gradient))
        output.args = (losses,)
        for view in landed:
            if not view.users and view.target is not torch.mm and view.target is not torch.sum:
                self._graph.erase_node(view)

    def return_all(self, places: Sequence[Tensor]) -> list[Tensor]:
        """Return the losses and all gradients that there are; here, the places of these."""
        losses, gradients, output = self._results()
        output.args = ((losses, *(g for g in gradients if g is not None)),)
        return [place for place, gradient in zip(places, gradients, strict=True) if gradient is not None]

    def module(self) -> fx.GraphModule:
        """Return the program as a module that takes the inputs alone."""
        for node, value in self._bound.items():
            if node.users:
                self._replace(node, value)
            self._graph.erase_node(node)
        self._graph.lint()
        self._module.graph = self._graph
        return self._module

    def function(self) -> Callable[..., Any]:
        """Return the program as a function of the inputs, with as little between its kernels as there can be."""
        return _Routine(self._graph, self._module, self._bound, self._pure).function()

    def _results(self) -> tuple[fx.Node, list[Any], fx.Node]:
        (output,) = self._graph.find_nodes(op="output")
        losses, gradients = output.args[0]
        return losses, list(gradients), output

    def _constant(self, value: Tensor) -> fx.Node:
        self._kept += 1
        # No buffer, which the module would look for each time.
        setattr(self._module, name := f"kept_{self._kept}", value.detach())
        return self._graph.get_attr(name)

    def _replace(self, node: fx.Node, value: Tensor) -> None:
        with self._graph.inserting_before(node):
            node.replace_all_uses_with(self._constant(value))

    def _leave_out(self) -> None:
        """Leave out what gives back what it takes."""
        for node in list(self._graph.nodes):
            if not self._pure(node) or not node.args or not isinstance(node.args[0], fx.Node):
                continue
            source = node.args[0]
            if node.target is _aten.t.default and source.target is _aten.t.default:
                node.replace_all_uses_with(source.args[0])
            elif node.target in _NOTHING or (node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1):
                node.replace_all_uses_with(source)
        self._graph.eliminate_dead_code()

    def _share(self) -> None:
        """Compute once what is computed twice."""
        seen: dict[Any, fx.Node] = {}
        for node in list(self._graph.nodes):
            if self._pure(node):
                first = seen.setdefault((node.target, str(node.args), str(node.kwargs)), node)
                if first is not node:
                    node.replace_all_uses_with(first)
                    self._graph.erase_node(node)

    def _fold(self) -> None:
        """Compute now what every step would: what depends on shapes alone, and views of what lies where it is."""
        values: dict[fx.Node, Tensor] = {}
        views = dict(self._bound)
        for node in list(self._graph.nodes):
            sources = node.all_input_nodes
            if not self._pure(node):
                continue
            if node.target in _FILLED:
                known, args = values, fx.map_arg(node.args, lambda n: self._like(n.meta["val"]))
            elif sources and all(source in values for source in sources):
                known, args = values, fx.map_arg(node.args, values.__getitem__)
            elif sources and node.target in _VIEWS and all(source in views for source in sources):
                known, args = views, fx.map_arg(node.args, views.__getitem__)
            else:
                continue
            with torch.no_grad():
                value = node.target(*args, **node.kwargs)
            if isinstance(value, Tensor):
                known[node] = value
        for node, value in {**values, **views}.items():
            if node not in self._bound:
                self._replace(node, value)

    def _like(self, value: Tensor) -> Tensor:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=self._device)

    def _pure(self, node: fx.Node) -> bool:
        """Say whether equal calls of a node give equal values wherever they stand."""
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return False
        if node.target._schema.is_mutable or _is_random(node):
            return False
        return not any(n in self._mutated for n in (node, *node.all_input_nodes))


class _Routine:
    """A program as Python's text, whose kernels write to memory that is taken once and for all.

    To take memory anew for each kernel, in each step, costs a narrow network as much as its products do.
    """

    def __init__(
        self,
        graph: fx.Graph,
        module: nn.Module,
        bound: Mapping[fx.Node, Tensor],
        pure: Callable[[fx.Node], bool],
    ) -> None:
        self._nodes = list(graph.nodes)
        self._pure = pure
        # What lies where it is for good, and is therefore a constant of the text.
        self._known = dict(bound)
        self._known |= {node: getattr(module, node.target) for node in self._nodes if node.op == "get_attr"}
        self._bases = _bases(graph)
        self._last = {source: i for i, node in enumerate(self._nodes) for source in node.all_input_nodes}
        self._base_last: dict[fx.Node, int] = {}
        for node, index in self._last.items():
            base = self._bases[node]
            self._base_last[base] = max(index, self._base_last.get(base, 0))
        self._returned = {self._bases[node] for node in self._nodes[-1].all_input_nodes}
        self._memory: dict[fx.Node, Tensor] = {}
        self._idle: dict[tuple[torch.dtype, torch.device, int], list[Tensor]] = {}
        self._space: dict[str, Any] = {}
        self._names: dict[fx.Node, str] = {}

    def function(self) -> Callable[..., Any]:
        inputs = [node for node in self._nodes if node.op == "placeholder" and node not in self._known]
        self._names |= {node: f"input_{i}" for i, node in enumerate(inputs)}
        lines = [f"def run({', '.join(self._names.values())}):"]
        for index, node in enumerate(self._nodes):
            lines += [f"    {line}" for line in self._lines(index, node)]
        exec("\n".join(lines), self._space)
        run: Callable[..., Any] = self._space["run"]
        return run

    def _lines(self, index: int, node: fx.Node) -> Iterator[str]:
        if node.op == "output":
            yield f"return {self._text(node.args[0])}"
        if node.op != "call_function":
            return
        sources = node.all_input_nodes
        if node.target in _VIEWS and all(source in self._known for source in sources):
            with torch.no_grad():
                self._known[node] = node.target(*self._filled(node.args), **self._filled(node.kwargs))
        elif (memory := self._place(index, node)) is None:
            target = _SHORTER.get(node.target, node.target)
            call = self._call(target, node.args, node.kwargs)
            yield f"{self._name(node)} = {call}" if node in self._last else call
        elif node.target is _aten.relu.default:
            yield self._call(torch.relu_, (node.args[0],), {})
            self._known[node] = memory
        else:
            target, keyword = _INTO[node.target]
            yield self._call(target, node.args, {**node.kwargs, keyword: memory})
            self._known[node] = memory
        for source in sources:
            if self._last[source] == index and self._names.get(source, "input").startswith("value"):
                yield f"del {self._names[source]}"
        for base in {self._bases[source] for source in sources}:
            if self._base_last[base] == index and base in self._memory:
                self._release(self._memory.pop(base))

    def _place(self, index: int, node: fx.Node) -> Tensor | None:
        """Return the memory that a node's value has in each step, or None where it takes its own."""
        value: Tensor | None = node.meta.get("val")
        if not (node.target in _INTO or node.target in _CELLWISE) or not self._pure(node):
            return None
        if value is None or self._bases[node] in self._returned or not _is_dense(value):
            return None
        for source in node.all_input_nodes if node.target in _CELLWISE else ():
            memory = self._memory.get(source)
            alone = [n for n in node.all_input_nodes if self._bases[n] is source] == [source]
            if memory is not None and alone and self._base_last[source] == index and _layout(memory) == _layout(value):
                self._memory[node] = self._memory.pop(source)
                return memory
        if node.target not in _INTO:
            return None
        device = node.meta["device"]
        idle = self._idle.get((value.dtype, device, value.numel()))
        flat = idle.pop() if idle else torch.empty(value.numel(), dtype=value.dtype, device=device)
        # With the very strides: by them convolutions decide how their own output lies.
        self._memory[node] = memory = flat.as_strided(value.shape, value.stride())
        return memory

    def _release(self, memory: Tensor) -> None:
        self._idle.setdefault((memory.dtype, memory.device, memory.numel()), []).append(
            memory.as_strided((memory.numel(),), (1,))
        )

    def _call(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        named = [f"{keyword}={self._text(value)}" for keyword, value in kwargs.items()]
        return f"{self._constant(target)}({', '.join([*map(self._text, args), *named])})"

    def _text(self, value: Any) -> str:
        live: list[fx.Node] = []
        fx.map_arg(value, lambda node: live.append(node) if node not in self._known else None)
        if not live:
            return self._constant(self._filled(value))
        return self._names[value] if isinstance(value, fx.Node) else f"[{', '.join(map(self._text, value))}]"

    def _filled(self, value: Any) -> Any:
        return fx.map_arg(value, self._known.__getitem__)

    def _constant(self, value: Any) -> str:
        self._space[name := f"constant_{len(self._space)}"] = list(value) if isinstance(value, list) else value
        return name

    def _name(self, node: fx.Node) -> str:
        return self._names.setdefault(node, f"value_{len(self._names)}")


def _layout(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.dtype


def _is_dense(value: Tensor) -> bool:
    """Say whether a tensor fills its memory without gaps, in whatever order."""
    return 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) == value.numel()


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _bases(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return for each node the one whose memory it shares: itself, or what it is a view of."""
    base: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        base[node] = base[node.args[0]] if _shares_memory(node) else node
    return base


def _mutated(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that some kernel writes to, and all that share their memory."""
    base = _bases(graph)
    written: set[fx.Node] = set()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
                    written.add(base[value])
    return {node for node, first in base.items() if first in written}


def _shares_memory(node: fx.Node) -> bool:
    """Say whether a node gives the memory of its first argument, in whole or in part."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target in (operator.getitem, _aten._unsafe_view.default):
        return True
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else []
    return any(value.alias_info is not None for value in returns)
