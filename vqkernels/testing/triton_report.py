"""What a Triton kernel compiles to, for any NVIDIA architecture, without a GPU.

Kernels are compiled in a fresh process, since the interpreter, once switched on, replaces the compiler for good:

    report, = compile_reports(KernelBuild("package.module:kernel", {"x": "*fp32", "n": "i32"}, {"BLOCK": 64}))
    report.registers, report.spill_bytes, report.count("HGMMA"), report.count("SHFL", report.loop_with("HGMMA"))
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TENSOR_CORE = r"HMMA|HGMMA|UTCHMMA|UTCQMMA|DMMA"


@dataclass(frozen=True)
class KernelBuild:
    """One kernel to compile.

    Args:
        kernel: ``"module:name"`` of a function under ``@triton.jit``.
        signature: types of run-time parameters by name: ``"*fp16"``, ``"i32"``, ``"i64"``, ``"fp32"``, ...
        constants: values by name, of ``tl.constexpr`` parameters and of those that the signature leaves out. Here
            and in the signature, names that the kernel does not have are ignored.
        capability: 80, 90 or 100: the architecture sm_80, ...
        aligned: run-time parameters that are multiples of 16, as allocated tensors are.
        options: compile options such as ``num_warps``, ``num_stages``, ``enable_fp_fusion``.
    """

    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    capability: int = 90
    aligned: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelReport:
    """What came out; instructions are in the order of the program."""

    registers: int  # per thread
    spill_bytes: int  # stack frame per thread; Triton kernels keep nothing else there
    shared_bytes: int  # per program, as launched
    ptx: str
    instructions: tuple[tuple[int, str], ...]  # (address, SASS text)

    def count(self, pattern: str, lines: tuple[str, ...] | None = None) -> int:
        """Instructions whose text matches a regular expression, in the whole kernel or in given lines."""
        texts = [text for _, text in self.instructions] if lines is None else lines
        return sum(re.search(pattern, text) is not None for text in texts)

    def loop_with(self, pattern: str) -> tuple[str, ...]:
        """The instructions of the innermost loop (shortest backward branch) that holds a match; () if none."""
        bodies = []
        for address, text in self.instructions:
            target = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+)", text)
            if target and (start := int(target[1], 16)) < address:
                body = tuple(line for at, line in self.instructions if start <= at <= address)
                if self.count(pattern, body):
                    bodies.append(body)
        return min(bodies, key=len, default=())


def compile_reports(*builds: KernelBuild) -> list[KernelReport]:
    """Compile kernels and report on them, in order.

    Args:
        *builds: what to compile; all in one process, so that Triton is loaded once.

    Returns:
        One report per build.

    Raises:
        RuntimeError: if a build fails, with the compiler's message.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps([dataclasses.asdict(build) for build in builds]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"compilation failed: {done.stderr.strip()}")
    reports = json.loads(done.stdout)
    return [KernelReport(**{**r, "instructions": tuple(map(tuple, r["instructions"]))}) for r in reports]


def _compile(build: KernelBuild) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = build.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    position = {name: i for i, name in enumerate(kernel.arg_names)}
    declared = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    constexprs = declared | (set(position) - set(build.signature))
    signature = {name: "constexpr" if name in constexprs else build.signature[name] for name in position}
    constants = {(position[name],): build.constants[name] for name in position if name in constexprs}
    attributes = {(position[name],): [["tt.divisibility", 16]] for name in build.aligned if name in position}
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", build.capability, 32)
    compiled = triton.compile(source, target=target, options=build.options)
    resources, listing = _disassemble(compiled.asm["cubin"])
    return {
        "registers": _resource("REG", resources),
        "spill_bytes": _resource("STACK", resources) + _resource("LOCAL", resources),
        "shared_bytes": compiled.metadata.shared,
        "ptx": compiled.asm["ptx"],
        "instructions": [
            (int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S[^;]*);", listing)
        ],
    }


def _resource(name: str, text: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", text)
    assert found is not None, text
    return int(found[1])


def _disassemble(cubin: bytes) -> tuple[str, str]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def cuobjdump(option: str) -> str:
            command = [knobs.nvidia.cuobjdump.path, option, str(path)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        return cuobjdump("-res-usage"), cuobjdump("-sass")


if __name__ == "__main__":
    json.dump([_compile(KernelBuild(**build)) for build in json.load(sys.stdin)], sys.stdout)
