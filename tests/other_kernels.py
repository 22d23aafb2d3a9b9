"""The test suite under other kernels of torch: those of other processors, as far as this one can stand in for them.

``python tests/other_kernels.py [--only SETTING ...] [arguments of pytest]`` runs pytest once per setting that this
machine can take and prints a table; without arguments of pytest it is the whole suite.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "ops"))

from variants import processor_isas  # noqa: E402

WHOLE_SUITE = ["-n", "logical", "--dist", "loadfile", "--complete"]


class Setting(NamedTuple):
    """What is different: variables, and a plugin of pytest."""

    variables: dict[str, str] = {}  # noqa: RUF012, nobody writes it
    needs: str | None = None  # instruction set
    plugin: str | None = None


SETTINGS = {
    "as it is": Setting(),
    # torch's own loops: sums, elementwise functions, random numbers
    "ATEN_CPU_CAPABILITY=default": Setting({"ATEN_CPU_CAPABILITY": "default"}),
    "ATEN_CPU_CAPABILITY=avx2": Setting({"ATEN_CPU_CAPABILITY": "avx2"}, "avx2"),
    "ATEN_CPU_CAPABILITY=avx512": Setting({"ATEN_CPU_CAPABILITY": "avx512"}, "avx512"),
    # matrix products, of oneDNN and of MKL
    "ONEDNN_MAX_CPU_ISA=SSE41": Setting({"ONEDNN_MAX_CPU_ISA": "SSE41"}, "avx2"),
    "ONEDNN_MAX_CPU_ISA=AVX2": Setting({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
    "MKL_ENABLE_INSTRUCTIONS=SSE4_2": Setting({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, "avx2"),
    "MKL_ENABLE_INSTRUCTIONS=AVX2": Setting({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, "avx2"),
    "one thread": Setting({"OMP_NUM_THREADS": "1"}),
    "two threads": Setting({"OMP_NUM_THREADS": "2"}),
    # the kernels of this package
    "VQKERNELS_ISA=portable": Setting({"VQKERNELS_ISA": "portable"}),
    "VQKERNELS_ISA=avx2": Setting({"VQKERNELS_ISA": "avx2"}, "avx2"),
    "VQKERNELS_ISA=avx2_int16": Setting({"VQKERNELS_ISA": "avx2_int16"}, "avx2_int16"),
    "VQKERNELS_ISA=avx2_int8": Setting({"VQKERNELS_ISA": "avx2_int8"}, "avx2_int8"),
    "VQKERNELS_ISA=avxvnni": Setting({"VQKERNELS_ISA": "avxvnni"}, "avxvnni"),
    "VQKERNELS_ISA=avxvnni_int8": Setting({"VQKERNELS_ISA": "avxvnni_int8"}, "avxvnni_int8"),
    "VQKERNELS_ISA=avx512": Setting({"VQKERNELS_ISA": "avx512"}, "avx512"),
    "VQKERNELS_ISA=avx512vnni": Setting({"VQKERNELS_ISA": "avx512vnni"}, "avx512vnni"),
    "VQKERNELS_ISA=avx512vnni_int8": Setting({"VQKERNELS_ISA": "avx512vnni_int8"}, "avx512vnni_int8"),
    "VQKERNELS_ISA=amx": Setting({"VQKERNELS_ISA": "amx"}, "amx"),
    "VQKERNELS_ISA=amx_int8": Setting({"VQKERNELS_ISA": "amx_int8"}, "amx_int8"),
    "VQKERNELS_ISA=neon": Setting({"VQKERNELS_ISA": "neon"}, "neon"),
    "VQKERNELS_ISA=neon_int8": Setting({"VQKERNELS_ISA": "neon_int8"}, "neon_int8"),
    # all of the lowest at a time: one run in place of five where five take too long
    "the lowest of everything": Setting(
        {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "OMP_NUM_THREADS": "1",
            "VQKERNELS_ISA": "portable",
        },
        "avx2",
    ),
    # products and sums as no processor does them
    "sums in another order": Setting({"OTHER_ORDER": "0"}, plugin="other_order"),
    "sums in a third order": Setting({"OTHER_ORDER": "1"}, plugin="other_order"),
}


class Outcome(NamedTuple):
    """What became of a setting."""

    verdict: str  # green, RED or not run
    told: str


def run(setting: Setting, arguments: list[str]) -> Outcome:
    if setting.needs is not None and setting.needs not in processor_isas():
        return Outcome("not run", f"the machine has no {setting.needs}")
    plugin = ["-p", setting.plugin] if setting.plugin else []
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    variables = setting.variables | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, *arguments],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        sys.stdout.write(done.stdout)
    return Outcome("RED" if done.returncode else "green", lines[-1] if lines else "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/other_kernels.py", description=__doc__)
    parser.add_argument("--only", action="append", choices=SETTINGS, metavar="SETTING", help=", ".join(SETTINGS))
    options, arguments = parser.parse_known_args()
    table = []
    for name in options.only or SETTINGS:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}\n")
        outcome = run(SETTINGS[name], arguments or WHOLE_SUITE)
        table.append((name, *outcome))
    sys.stdout.writelines(f"{name:<32} {verdict:<8} {told}\n" for name, verdict, told in table)
    return int(any(verdict == "RED" for _, verdict, _ in table))


if __name__ == "__main__":
    sys.exit(main())
