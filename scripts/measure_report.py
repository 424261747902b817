"""What measure_gpu.py has found, as Markdown."""

from typing import Any

Result = dict[str, Any]
COLUMNS = (
    *("what", "batch x height x width", "policy", "framework", "seconds", "PyTorch / this"),
    *("images/s", "MFU", "peak memory GiB", "difference", "first call s"),
)


def markdown(about: dict[str, Any], done: list[Result]) -> str:
    """A table of what was timed, then kernels, tests and failures."""
    said = [f"* {name}: {value}" for name, value in about.items()]
    timed = [r for r in done if "seconds" in r and r["what"] != "profile"]
    profiles = [r for r in done if r["what"] == "profile"]
    lines = ["# Measured", "", *said, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [_line(result, done) for result in timed]
    for result in profiles:
        lines += ["", *_profile(result)]
    tests = [r["tests"] for r in done if "tests" in r]
    lines += [f"\nTests: {', '.join(f'{n} {word}' for word, n in t.items())}." for t in tests]
    failed = [f"| {r['row']} | {_cell(r['failed'])} |" for r in done if "failed" in r]
    if failed:
        lines += ["", "| failed | why |", "|---|---|", *failed]
    return "\n".join(lines) + "\n"


def _line(result: Result, done: list[Result]) -> str:
    seconds, shape = result["seconds"], result["shape"]
    eager = _same(done, result, framework="torch")
    peak = _same(done, result | {"what": "profile"}, framework="jax")
    mfu = peak["peak_seconds"] / seconds if peak and "peak_seconds" in peak else None
    cells = (
        result["what"],
        " x ".join(map(str, shape)),
        result["policy"],
        result["framework"],
        f"{seconds:.4g}",
        f"{eager['seconds'] / seconds:.2f}" if eager else "-",
        f"{shape[0] / seconds:.3g}",
        f"{mfu:.1%}" if mfu and result["what"] == "train" else "-",
        f"{result['peak_memory'] / 2**30:.2f}",
        "-" if result.get("difference") is None else f"{result['difference']:.1e}",
        f"{result['first_call']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _same(done: list[Result], like: Result, framework: str) -> Result | None:
    """The first of that framework with the same work and policy."""
    keys = ("what", "policy", "shape")
    return next(
        (
            result
            for result in done
            if result.get("framework") == framework
            and all(result.get(key) == like[key] for key in keys)
        ),
        None,
    )


def _profile(result: Result) -> list[str]:
    share = f", {result['mfu']:.1%} of the chip's peak" if "mfu" in result else ""
    lines = [
        f"A train step in {result['policy']}, traced: {result['seconds']:.4g} s{share}; "
        f"{result['kernel_launches']} kernels, busy for {result['busy_seconds']:.4g} s.",
        *("", "| kernel | count | ms | share |", "|---|---|---|---|"),
    ]
    for kernel in result["kernels"]:
        seconds, count = kernel["seconds"], kernel["count"]
        share = seconds / max(result["busy_seconds"], 1e-12)
        name = _cell(kernel["name"])[:80]
        lines.append(f"| {name} | {count} | {1e3 * seconds:.3f} | {share:.1%} |")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
