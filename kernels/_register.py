"""One way for every attention op into torch: dispatcher, autograd, autocast, shape inference and FLOP counts.

An op is *composite* off the GPU: calling it there is calling its reference, so that autograd of any order, export and
ONNX see plain torch operators and nothing opaque. On a GPU it is an `autograd.Function` over two functional operators,
`<op>_forward` and `<op>_backward`, whose outputs are contiguous and whose shapes are known without running them, so
that compilers can plan around them. Each form of an op (q, k, v apart, or packed into fewer tensors) is registered by
itself and gets one gradient tensor for each tensor it takes, the kernels writing straight into views of it.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _dispatch, _tape
from ._tracing import transformed

LIBRARY = torch.library.Library("visionattn", "FRAGMENT")
FUNCTIONS: dict[str, "Function"] = {}  # by the name of the public function


class Form(NamedTuple):
    """How a form of an op takes q, k and v."""

    suffix: str                                      # of the op's name
    tensors: tuple[str, ...]                         # names, in order
    split: Callable[..., tuple[Tensor, ...]]         # those tensors -> views q, k, v


SEPARATE = Form("", ("q", "k", "v"), lambda q, k, v: (q, k, v))
PACKED = Form("_packed", ("qkv",), lambda qkv: qkv.unbind(3))           # [B, H, W, 3, heads, D]
PACKED_KV = Form("_packed_kv", ("q", "kv"), lambda q, kv: (q, *kv.unbind(3)))   # kv [B, H, W, 2, heads, D]
PACKED_QK = Form("_packed_qk", ("qk", "v"), lambda qk, v: (*qk.unbind(3), v))   # qk [B, H, W, 2, heads, D]
HEADS_OF_KV = Form("_packed_kv", ("q", "kv"),                           # kv [B, H, W, heads, D + Dv]
                   lambda q, kv: (q, kv[..., :q.shape[-1]], kv[..., q.shape[-1]:]))


class AttentionOp(NamedTuple):
    """An attention op. Wherever its functions take `...`, that is the extra tensors, then what `prepare` returned."""

    name: str
    extras: tuple[str, ...]          # names of further differentiable tensors, each may be None
    parameters: str                  # the rest, as torch's schema language writes it
    prepare: Callable[..., tuple]    # the parameters as torch hands them over -> as the functions below take them
    check: Callable[..., None]       # (q, k, v, ...): raises on arguments that no implementation may see
    reference: Callable[..., Tensor]  # (q, k, v, ...) -> out
    fused: str                       # module with unsupported, forward and backward; imported when first needed
    shapes: Callable[..., tuple]     # (q, k, v, ...) -> (shape of out, shape of lse)
    pairs: Callable[..., int]        # (shapes of q, v, extras, parameters) -> how many (query, key) pairs attend
    guest: str | None = None         # module of another library's implementation: NAME, refuses, loses
    products: tuple = ((1, 1), (3, 2))  # forward and backward: over all pairs, of q's and of v's head dimension
    cast: tuple[str, ...] = ()       # those of the extras that autocast casts as it does q, k and v


class Function(NamedTuple):
    """A registered form of an op."""

    op: AttentionOp
    arguments: Callable[..., tuple]  # the public function's arguments -> the torch operator's
    form: Form
    tapes: tuple[_tape.Tapes, _tape.Tapes]  # of the forward and the backward operator

    def resolve(self, *args: Any, **kwargs: Any) -> tuple:
        """A public call's arguments as the op's functions take them: q, k, v, extras, parameters. Checks them."""
        arguments, n = self.arguments(*args, **kwargs), len(self.form.tensors)
        m = n + len(self.op.extras)
        resolved = *self.form.split(*arguments[:n]), *arguments[n:m], *self.op.prepare(*arguments[m:])
        self.op.check(*resolved)
        return resolved


def lse_shape(q: Tensor) -> tuple[int, ...]:
    """Shape of the float32 log-sum-exp of q [B, H, W, heads, D]: [B, heads, H, W], two numbers each for float32."""
    batch, height, width, heads, _ = q.shape
    return (batch, heads, height, width, 2) if q.dtype == torch.float32 else (batch, heads, height, width)


_PLAIN = (Tensor, torch.nn.Parameter)


def _plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nothing watches or stands in for these tensors, so that an operator's kernel may be called directly."""
    for x in tensors:
        if x is not None and (type(x) not in _PLAIN or x.is_meta):
            return False
    return torch._C._len_torch_dispatch_stack() == 0 and not transformed()


def _differentiable(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a graph is made of what is done with these tensors."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


def _on_device(function: Callable, q: Tensor, *args: Any) -> Any:
    """Call `function` with q's device current: Triton launches on the current device."""
    if q.is_cuda and q.device.index != torch.cuda.current_device():
        with torch.cuda.device(q.device):
            return function(q, *args)
    return function(q, *args)


def register(op: AttentionOp, form: Form, arguments: Callable[..., tuple]) -> Callable[..., Tensor]:
    """Register a form of an op and return a function that calls its torch operator.

    `arguments` maps the arguments of the public function to the operator's.
    """
    name = op.name + form.suffix
    n, m = len(form.tensors), len(form.tensors) + len(op.extras)       # where the extras and the parameters begin
    inputs = ", ".join([f"Tensor {t}" for t in form.tensors] + [f"Tensor? {t}" for t in op.extras])
    LIBRARY.define(f"{name}({inputs}, {op.parameters}) -> Tensor")
    LIBRARY.define(f"{name}_forward({inputs}, {op.parameters}) -> (Tensor out, Tensor lse)")
    gradients = ", ".join(f"Tensor d{t}" for t in form.tensors + op.extras)
    LIBRARY.define(f"{name}_backward(Tensor grad_out, {inputs}, Tensor out, Tensor lse, {op.parameters}, "
                   f"bool[{len(op.extras) or ''}] wanted) -> ({gradients})")
    packets = [getattr(torch.ops.visionattn, name + part) for part in ("", "_forward", "_backward")]
    operator, forward_operator, backward_operator = (packet.default for packet in packets)

    # The two functional operators.

    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        fused, given = _dispatch.load(op.fused), (*form.split(*args[:n]), *args[n:m], *op.prepare(*args[m:]))
        reason = fused.unsupported(*given[:-1])     # compiled code chose this operator before it knew its sizes
        if reason is not None:
            raise RuntimeError(f"visionattn::{name}_forward cannot run: {reason}")
        return _on_device(fused.forward, *given)

    def forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
        q, k, v = form.split(*args[:n])
        out, lse = op.shapes(q, k, v, *args[n:m], *op.prepare(*args[m:]))
        return q.new_empty(out), q.new_empty(lse, dtype=torch.float32)

    def empty_gradients(*args: Any) -> list[Tensor]:
        return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in args[1:n + 1]]

    def returned(like: Tensor, gradients: list[Tensor | None]) -> Any:
        """As an operator returns them: no None, no two alike, which torch takes for one; one without a tuple."""
        found = [like.new_empty((0,) * (i + 1)) if x is None else x for i, x in enumerate(gradients)]
        return tuple(found) if len(found) > 1 else found[0]

    def backward(*args: Any) -> tuple[Tensor | None, ...]:
        grads, extras, wanted = empty_gradients(*args), args[n + 1:m + 1], args[-1]
        found = _on_device(
            lambda q, *rest: _dispatch.load(op.fused).backward(args[0], q, *rest),
            *form.split(*args[1:n + 1]), *extras, args[m + 1], args[m + 2], *op.prepare(*args[m + 3:-1]),
            *form.split(*grads), *wanted)
        found = found if isinstance(found, tuple) else (found,)
        return (*grads, *(x.to(extra.dtype) if want else None
                          for x, extra, want in zip(found, extras, wanted, strict=True)))

    def backward_fake(*args: Any) -> Any:
        wanted = zip(args[n + 1:m + 1], args[-1], strict=True)
        return returned(args[0], [*empty_gradients(*args), *(x.new_empty(x.shape) if want else None
                                                             for x, want in wanted)])

    # The same, remembered: what follows from shapes, strides and parameters is worked out once.

    forward_tapes, backward_tapes = _tape.Tapes(forward), _tape.Tapes(backward)

    def remembered_forward(*args: Any) -> tuple[Tensor, Tensor]:
        return forward_tapes.run(args[:m], args[m:])

    def remembered_backward(*args: Any) -> Any:
        return returned(args[0], backward_tapes.run(args[:m + 3], args[m + 3:]))

    # Autograd on a GPU.

    def attend(ctx: Any, kind: _tape.Kind | None, *args: Any) -> Tensor:
        tensors, parameters = args[:m], args[m:]
        out, lse = forward_operator(*args) if kind is None else kind.run(tensors, parameters)
        ctx.save_for_backward(*tensors, out, lse)
        ctx.kind, ctx.parameters = kind, parameters
        return out

    def differentiate(ctx: Any, grad_out: Tensor) -> tuple:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[1:m + 1]
        if torch.is_grad_enabled():          # a graph of the gradient is asked for: the reference has one of any order
            # of views, since a gradient is that through one input alone, even where another is made of the same
            given = [x.view_as(x) if need else x for x, need in zip(saved, needs)]
            with torch.autocast(grad_out.device.type, enabled=False):
                again = op.reference(*form.split(*given[:n]), *given[n:], *op.prepare(*ctx.parameters))
            found = iter(torch.autograd.grad(again, [x for x, need in zip(given, needs) if need], grad_out,
                                             create_graph=True))
            grads = [next(found) if need else None for need in needs]
        else:
            wanted = needs[n:]
            if ctx.kind is not None and _plain((grad_out,)):
                kind = ctx.kind.backward(backward, grad_out, saved, wanted)
                grads = kind.run((grad_out, *saved), (*ctx.parameters, wanted))
            else:
                grads = backward_operator(grad_out, *saved, *ctx.parameters, list(wanted))
                grads = grads if isinstance(grads, tuple) else (grads,)
            grads = [x if need else None for x, need in zip(grads, needs)]
        return (None, *grads, *[None] * len(ctx.parameters))

    title = "".join(part.capitalize() for part in name.split("_"))    # what grad_fn and profilers show
    function = type(title, (torch.autograd.Function,),
                    {"forward": staticmethod(attend), "backward": staticmethod(differentiate)})

    # The op itself.

    def composite(*args: Any) -> Tensor:
        tensors, given, kind = args[:m], args[m:], None
        key = forward_tapes.key(tensors, given) if _dispatch.may_fuse(args[0]) and _plain(tensors) else None
        if key is not None:
            kind = forward_tapes.found.get(key)
        if kind is None:
            parameters = op.prepare(*given)
            with torch._C._AutoDispatchBelowAutograd():      # looking at the arguments is no part of the graph
                q, k, v = form.split(*args[:n])
                op.check(q, k, v, *args[n:m], *parameters)
                fused = not transformed() and _dispatch.takes_fused(op, q, k, v, *args[n:m], *parameters)
            if not fused:
                return op.reference(*form.split(*args[:n]), *args[n:m], *parameters)
            if key is not None:
                kind = forward_tapes.kind(key)
        if _differentiable(tensors):
            return function.apply(kind, *args)
        return forward_operator(*args)[0] if kind is None else kind.run(tensors, given)[0]

    casts = [i < n or op.extras[i - n] in op.cast for i in range(m)]

    def autocast(device: str, *args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        cast = [x.to(dtype) if wanted and x is not None and x.is_floating_point() and x.dtype != torch.float64
                and x.device.type == device else x for x, wanted in zip(args, casts)]
        key = torch._C.DispatchKey.AutocastCUDA if device == "cuda" else torch._C.DispatchKey.AutocastCPU
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return operator(*cast, *args[m:])

    LIBRARY.impl(name, composite, "CompositeImplicitAutograd")
    LIBRARY.impl(name, functools.partial(autocast, "cuda"), "AutocastCUDA")
    LIBRARY.impl(name, functools.partial(autocast, "cpu"), "AutocastCPU")
    for part, kernel, fake in (("_forward", remembered_forward, forward_fake),
                               ("_backward", remembered_backward, backward_fake)):
        for device in ("CUDA", "CPU"):                  # CPU: under Triton's interpreter
            LIBRARY.impl(name + part, kernel, device)
        torch.library.register_fake(f"visionattn::{name}{part}", fake, lib=LIBRARY)

    # FLOPs: two products forward; backward usually scores again, and two products each for the gradients of both. The
    # box that a kernel computes and masks is not counted: these are the FLOPs of the mathematics.

    def flops(shapes: tuple, parameters: tuple, products: tuple[int, int]) -> int:
        q, k, v = (x.shape for x in form.split(*(torch.empty(shape, device="meta") for shape in shapes[:n])))
        pairs = op.pairs(q, v, *shapes[n:m], *op.prepare(*parameters))
        return 2 * pairs * (products[0] * q[-1] + products[1] * v[-1])

    @register_flop_formula(packets[:2])
    def forward_flops(*args: Any, **kwargs: Any) -> int:
        return flops(args[:m], args[m:], op.products[0])

    @register_flop_formula(packets[2])
    def backward_flops(*args: Any, **kwargs: Any) -> int:
        return flops(args[1:m + 1], args[m + 3:-1], op.products[1])

    def call(*args: Any) -> Tensor:
        first = args[0]
        if torch.compiler.is_compiling() or not _plain((first,)) or torch._C._is_any_autocast_enabled():
            return operator(*args)
        return composite(*args)      # what the operator would do, without the dispatcher's round through C++ and back

    FUNCTIONS[name] = Function(op, arguments, form, (forward_tapes, backward_tapes))
    return call
