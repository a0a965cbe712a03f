"""Where the modules of the branches are in a model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import nn

from rankgap.choices import Side
from rankgap.errors import UserError

# Attributes under which a wrapper keeps the model: of DDP, DataParallel and AveragedModel; of torch.compile; of
# FSDP; of activation checkpointing; and of Lightning Fabric.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
}


def branch_modules(model: nn.Module | None, given: Mapping[Side, str | nn.Module]) -> dict[Side, nn.Module] | None:
    """The modules to hook; None if there is no model."""
    if model is None and not any(isinstance(module, nn.Module) for module in given.values()):
        return None
    if model is not None and not isinstance(model, nn.Module):
        raise UserError(
            f"model must be a module, got a {type(model).__name__}: pass the modules themselves as online= and "
            "target="
        )
    found: dict[Side, nn.Module] = {}
    for side, module in given.items():
        if isinstance(module, nn.Module):
            found[side] = module
        elif model is not None:
            found[side] = find(model, module)
        else:
            raise UserError(f"the {side} module is named {module!r}, but there is no model: pass the module")
    return found


def is_ours(model: nn.Module | None, module: nn.Module) -> bool:
    """Whether a module is a box of one of rankgap's own models, whose three dimensions are views."""
    owners = [] if model is None else [owner for owner in model.modules() if module in owner.children()]
    return any(type(part).__module__.startswith("rankgap.") for part in (module, *owners))


def find(model: nn.Module, name: str) -> nn.Module:
    """A module by its dotted name in the model as its author wrote it, whatever wraps the model or its parts.

    Raises:
        UserError: the model has no such module; the nearest names are listed.
    """
    modules: dict[str, nn.Module] = {n: m for n, m in model.named_modules(remove_duplicate=False) if n}
    if name in modules:
        return modules[name]
    bare: dict[str, nn.Module] = {}
    for n, module in modules.items():
        bare.setdefault(_bare(n), module)
    if _bare(name) in bare:
        return bare[_bare(name)]
    names = [n for n in bare if n]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    near += [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2] and n not in near][:5]
    hint = ", ".join(near or names[:12])
    raise UserError(f"{type(model).__name__} has no module {name!r}; {'nearest' if near else 'it has'}: {hint}")


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
