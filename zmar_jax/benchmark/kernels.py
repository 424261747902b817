"""What kind of kernel a GPU runs for an instruction of XLA's, read off its HLO text."""

import dataclasses
import re
from collections.abc import Iterable

LIBRARIES = ("cuDNN", "cuBLAS", "cuSOLVER")
"""Of these only the operands and results are seen: what they read twice or keep aside is not."""


@dataclasses.dataclass(frozen=True)
class Kernels:
    """All kernels of a kind: how many a step, and the bytes they read and write.

    `estimated` is the seconds that XLA's own model gives them, `unestimated` how many of them it
    says nothing of.
    """

    kind: str
    count: int
    traffic: int
    estimated: float
    unestimated: int


def kind_of(op: str, attributes: str, inside: Iterable[str]) -> str:
    """Triton, loop, reduction or transpose, copy, one of `LIBRARIES`, or what HLO calls it.

    Args:
      attributes: what follows the operands.
      inside: attributes of what a fusion is made of.
    """
    if op == "custom-call":
        return _library(attributes)
    if op != "fusion":
        return op.removesuffix("-start")
    if "__triton" in attributes:
        return "Triton"
    if "__cudnn" in attributes:
        return "cuDNN"
    match = re.search(r"\bkind=k(\w+)", attributes)
    calls = [_library(text) for text in inside if "custom_call_target=" in text]
    if calls or not match:
        return calls[0] if calls else "fusion"
    if match[1] == "Custom":
        return "copy" if re.search("dynamic_slice_fusion|_memcpy", attributes) else "fusion"
    return {"Loop": "loop", "Input": "reduction or transpose"}.get(match[1], "fusion")


def _library(attributes: str) -> str:
    match = re.search(r'custom_call_target="([^"]+)"', attributes)
    target = match[1] if match else "custom-call"
    return next((name for name in LIBRARIES if name.lower() in target), target)


def estimate(attributes: str) -> float | None:
    """Seconds that XLA's performance model gives an instruction; None where it says nothing.

    It writes them where `compilation.gpu_options` ask for it. Of its two models the one that looks
    into fusions counts, else `sol`, which knows library products, too.
    """
    match = re.search(r'"reification_cost":\[([^\]]*)\]', attributes)
    costs = re.findall(r'"exec_time_us":([\d.e+-]+).*?"name":"(\w*)"', match[1] if match else "")
    found = {name: 1e-6 * float(microseconds) for microseconds, name in costs}
    return found.get("", found.get("sol"))


def without_scratch(type_: str, attributes: str) -> str:
    """The type of what a library call returns, less the scratch memory at its end."""
    if not re.search(r'custom_call_target="__cu', attributes):
        return type_
    return re.sub(r",\s*(?:/\*[^*]*\*/)?[su]8\[\d*\](?:\{[^}]*\})?\)$", ")", type_)
