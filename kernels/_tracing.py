"""What is done with the code that runs, besides running it."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def exporting() -> bool:
    """Whether a graph is being made by ``torch.export``, which has to serve every size; not for ``torch.compile``.

    Dynamo of torch 2.11 answers torch's own question with yes under ``torch.compile`` as well, so what Dynamo traces
    counts as compiled. (``torch.export`` uses Dynamo with ``strict=True`` alone.)
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def transformed() -> bool:
    """Whether torch carries more along than values: tangents of forward-mode derivatives, levels of torch.func.

    Our operators and autograd.Functions know nothing of these; what the references are made of does.
    """
    if torch.compiler.is_dynamo_compiling():     # transforms are in the graph then, around what is traced
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
