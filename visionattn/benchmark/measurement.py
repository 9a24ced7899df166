"""What the measuring of every op shares: passes, errors that become notes, lines of the records."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .cases import AnyCase
from .records import Records
from .timing import HOST_BOUND_MS, Rates, measure, measure_graph, peak_mib

PASSES = ("forward", "forward_backward")


class Measurement:
    """Measures calls on one case and adds them to the records."""

    def __init__(
        self,
        records: Records,
        case: AnyCase,
        device: torch.device,
        dtype: torch.dtype,
        rep_ms: float,
        graphs: bool,
        origin: dict[str, str],
    ):
        self.records, self.device, self.rep_ms, self.graphs = records, device, rep_ms, graphs and device.type == "cuda"
        self.fixed = dict(
            op=case.op,
            dtype=str(dtype).removeprefix("torch."),
            **case.columns,
            **origin,
        )

    def add(self, implementation: str, name: str, **values: object) -> None:
        self.records.add(**self.fixed, implementation=implementation, **{"pass": name}, **values)

    def call(self, implementation: str, name: str, fn: Callable[[], object], timing=None, **values: object) -> None:
        """Times ``fn`` (unless ``timing`` is given) and adds it; an error becomes the line's note, without a figure."""
        try:
            timing = timing or measure(fn, self.device, self.rep_ms)
            # where the CPU may be what is measured the figure without it is reported too
            graph = measure_graph(fn, self.rep_ms / 2) if self.graphs and timing.p50 < HOST_BOUND_MS else None
            memory = peak_mib(fn, self.device)
        except Exception as error:  # the other measurements of a long run must not be lost
            message = str(error).strip().splitlines()
            self.add(implementation, name, note=f"{type(error).__name__}: {message[0][:120] if message else ''}")
            return
        values = dict(p20_ms=timing.p20, p50_ms=timing.p50, p80_ms=timing.p80, peak_mib=memory) | values
        self.add(implementation, name, graph_p50_ms=graph.p50 if graph else None, **values)

    def floor(self, case: AnyCase, element_bytes: int, rates: Rates) -> None:
        """Adds the least times that the hardware could take."""
        for name in PASSES:
            floor = case.floor_ms(element_bytes, *rates, backward=name == "forward_backward")
            self.add("floor", name, p50_ms=floor, config=str(rates))

    def line(self) -> str:
        """The medians of the case, forward / forward+backward in ms, for the progress line."""
        wanted = {key: str(self.fixed[key]) for key in self.records.key if key in self.fixed}
        found: dict[str, list[str]] = {}
        for row in self.records.rows.values():
            if row["pass"] in PASSES and all(row[key] == value for key, value in wanted.items()):
                found.setdefault(row["implementation"], []).append(row["p50_ms"] or "-")
        return ", ".join(f"{name} {'/'.join(values)}" for name, values in found.items())


def passes(fn: Callable[[], Tensor], inputs: Sequence[Tensor], grad: Tensor) -> dict[str, Callable[[], object]]:
    """``fn`` by pass: without a graph, and with the gradients of ``inputs``."""

    def forward() -> Tensor:
        with torch.no_grad():
            return fn()

    return dict(forward=forward, forward_backward=lambda: torch.autograd.grad(fn(), inputs, grad))


def difference(a: Tensor, b: Tensor) -> float:
    """Relative norm of a - b."""
    return (torch.linalg.vector_norm(a.float() - b.float()) / torch.linalg.vector_norm(b.float())).item()
