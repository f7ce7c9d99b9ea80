"""One loop of XLA for layers that are alike: its body is traced and compiled once, however many layers there are.

torch_xla's own scan differs in what matters here: its counter and outputs lie on the device, which no manual region can
hold, it traces with torch's compiler, and it takes one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch_xla
import torch_xla.core.xla_builder as xb
from torch import Tensor

_C = torch_xla._XLAC
_S32 = xb.Type.S32

Body = Callable[[list[Tensor], list[list[Tensor]], list[Tensor]], tuple[list[Tensor], list[list[Tensor]]]]
"""(carry, slices, constants) -> (carry, results): slices[n] and results[n] are those of the n-th layer of a period."""


def scan(
    body: Body,
    carry: Sequence[Tensor],
    stacks: Sequence[Tensor],
    constants: Sequence[Tensor],
    period: int,
    periods: int,
    reverse: bool = False,
    reads: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the body once for each period of layers, from the first or, `reverse`, from the last.

    Args:
        carry: what a pass hands to the next; shapes and dtypes stay.
        stacks: [L, ...] with at least periods * period layers; a pass gets slices of its own layers.
        constants: what every pass reads.
        reads: all that lies on the device and the body reads besides. torch_xla could name it, too, but a tensor that
            it has named cannot give up its memory any more to the one that takes its place.

    Returns:
        the last carry, and the results of all layers, [periods * period, ...] each.
    """
    fake_carry = [_placeholder(t.shape, t.dtype) for t in carry]
    fake_slices = [[_placeholder(t.shape[1:], t.dtype) for t in stacks] for _ in range(period)]
    fake_constants = [_placeholder(t.shape, t.dtype) for t in constants]
    with torch.no_grad():
        carried, produced = body(list(fake_carry), [list(one) for one in fake_slices], list(fake_constants))
    made = len(produced[0])
    context = _C.lowering.LoweringContext("Body")
    context.set_name_string("body")
    context.build([*carried, *(t for one in produced for t in one)])
    computation = xb.computation_from_module_proto("body", context.hlo())
    given = [*fake_carry, *(t for one in fake_slices for t in one), *fake_constants, *reads]
    numbers = [context.tensor_parameter_id(t) for t in given]
    place = {number: at for at, number in enumerate(numbers) if number != -1}
    if sorted(place) != list(range(len(place))):
        raise RuntimeError("the body of a scan reads a tensor on the device that is not among `reads`")

    builder = xb.create_builder("scan")
    tensors = [*carry, *stacks, *constants, *reads]
    parameters = [xb.mkparam(builder, n, xb.tensor_shape(t)) for n, t in enumerate(tensors)]
    results = [_zeros(builder, (periods * period, *t.shape), t.dtype) for t in produced[0]]
    ends = [1 + len(carry), 1 + len(carry) + len(stacks), 1 + len(carry) + len(stacks) + made]

    def unfinished(count: xb.Op, *_: xb.Op) -> xb.Op:
        return count < _number(count, periods)

    def one_pass(count: xb.Op, *others: xb.Op) -> tuple[xb.Op, ...]:
        state = (count, *others)
        first = (_number(count, periods - 1) - count if reverse else count) * _number(count, period)
        layers = [first + _number(count, n) for n in range(period)]
        stacked, written, read = state[ends[0] : ends[1]], list(state[ends[1] : ends[2]]), state[ends[2] :]
        arguments = [*state[1 : ends[0]], *(_layer(t, at) for at in layers for t in stacked), *read]
        out = xb.Op.call(computation, [arguments[place[n]] for n in range(len(place))])
        new = [out.get_tuple_element(n) for n in range(len(carry) + period * made)]
        for n, at in enumerate(layers):
            for k in range(made):
                written[k] = _with_layer(written[k], new[len(carry) + n * made + k], at)
        return (count + _number(count, 1), *new[: len(carry)], *stacked, *written, *read)

    before = len(carry) + len(stacks)
    zero = xb.Op.scalar(builder, 0, dtype=_S32)
    loop = xb.Op.mkwhile([zero, *parameters[:before], *results, *parameters[before:]], unfinished, one_pass)
    kept = [*range(1, ends[0]), *range(ends[1], ends[2])]
    program = xb.Op.tuple([loop.get_tuple_element(n) for n in kept]).build("scan")
    out = list(_C._xla_user_computation("xla::scan", tensors, program))
    return out[: len(carry)], out[len(carry) :]


def _number(like: xb.Op, value: int) -> xb.Op:
    return xb.Op.scalar(like.builder(), value, dtype=_S32)


def _placeholder(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return xb.create_placeholder_tensor(tuple(shape), dtype)


def _zeros(builder: object, shape: tuple[int, ...], dtype: torch.dtype) -> xb.Op:
    return xb.Op.scalar(builder, 0, dtype=xb.Op.from_torch_type(dtype)).broadcast(list(shape))


def _layer(stack: xb.Op, at: xb.Op) -> xb.Op:
    sizes = list(stack.shape().sizes)
    start = [at] + [at.zeros_like()] * (len(sizes) - 1)
    return stack.dynamic_slice(start, [1, *sizes[1:]]).reshape(sizes[1:])


def _with_layer(stack: xb.Op, layer: xb.Op, at: xb.Op) -> xb.Op:
    start = [at] + [at.zeros_like()] * (len(stack.shape().sizes) - 1)
    return stack.dynamic_update_slice(layer.broadcast([1]), start)
