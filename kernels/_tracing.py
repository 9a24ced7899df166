"""Whether the code that runs is being exported."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether a graph is being made by ``torch.export``, which has to serve every size; not for ``torch.compile``.

    Dynamo of torch 2.11 answers torch's own question with yes under ``torch.compile`` as well, so what Dynamo traces
    counts as compiled. (``torch.export`` uses Dynamo with ``strict=True`` alone.)
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
