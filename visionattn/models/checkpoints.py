"""What the families' checkpoint filters share: unwrapping, resizing of relative tables, refusal of foreign layouts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models import clean_state_dict
from torch import nn

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def unwrap_state_dict(checkpoint: Mapping) -> dict[str, torch.Tensor]:
    """The state dict inside a training checkpoint, without the prefixes of DDP and torch.compile.

    A plain state dict comes back as it is. In a training checkpoint averaged weights go before the raw ones, as in
    timm.

    Raises:
        ValueError: where there is no mapping from names to tensors inside.
    """
    inner = checkpoint
    while not _is_state_dict(inner):
        key = next((k for k in _WRAPPERS if isinstance(inner, Mapping) and isinstance(inner.get(k), Mapping)), None)
        if key is None:
            found = sorted(map(str, inner))[:8] if isinstance(inner, Mapping) else type(inner).__name__
            raise ValueError(
                "checkpoint holds no weights: expected a mapping from names to tensors, or such a mapping under one "
                f"of {', '.join(_WRAPPERS)}, got {found}"
            )
        inner = inner[key]
    return clean_state_dict(inner)


def _is_state_dict(x) -> bool:
    return isinstance(x, Mapping) and bool(x) and all(isinstance(v, torch.Tensor) for v in x.values())


def resize_tables(state_dict: dict[str, torch.Tensor], model: nn.Module, suffix: str) -> None:
    """Fits relative tables whose name ends in ``suffix`` to the model's windows, in place.

    Tables are [heads, 2h - 1, 2w - 1], or [(2h - 1) * (2w - 1), heads] of modules that have a ``window_size``.
    Displacements keep their meaning near the centre, where most weight lies (timm's geometric interpolation).
    """
    own = dict(model.named_parameters())
    for name, table in state_dict.items():
        if not name.endswith(suffix) or name not in own or table.shape == own[name].shape:
            continue
        shape = own[name].shape
        if table.ndim == 3 and table.shape[0] == shape[0]:
            window = tuple((n + 1) // 2 for n in shape[1:])
        elif table.ndim == 2 and table.shape[1] == shape[1]:
            window = model.get_submodule(name.rpartition(".")[0]).window_size
        else:
            continue
        state_dict[name] = resize_rel_pos_bias_table(table, window, shape)


def require_layout(
    state_dict: Mapping[str, torch.Tensor],
    model: nn.Module,
    family: str,
    optional: Collection[str] = ("head.",),
) -> None:
    """Refuses a state dict that is not this model's, since timm loads non-strictly when the head differs.

    Args:
        state_dict: names as the model has them.
        model: the model to be loaded.
        family: what to call the expected layout in the message.
        optional: prefixes of names that either side may lack (a head that was cut off).

    Raises:
        ValueError: naming the first names that are missing or unknown.
    """
    own = {name for name in model.state_dict() if not name.startswith(tuple(optional))}
    theirs = {name for name in state_dict if not name.startswith(tuple(optional))}
    missing, unknown = sorted(own - theirs), sorted(theirs - own)
    if missing or unknown:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise ValueError(f"checkpoint is not one of this {family} variant: names {' and '.join(parts)}")
