"""``import vqkernels`` in a fresh process: light, without side effects, and without what is optional."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from needs import needs_extension

ROOT = Path(__file__).parents[2]


def run_fresh(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def block(*modules: str) -> str:
    """Statements after which importing any of ``modules`` raises ImportError."""
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in modules)


def test_import_is_light() -> None:
    """It loads the package and nothing else, initialises no CUDA and starts no thread."""
    heavy = ["torch._dynamo", "torch._inductor", "triton", "torchvision", "accelerate", "matplotlib", "scipy"]
    output = run_fresh(f"""
import sys, threading
import numpy, torch
before = set(sys.modules)
import vqkernels
new = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
print(sorted(new), [name for name in {heavy} if name in sys.modules])
print(torch.cuda.is_initialized(), threading.active_count())
""")
    assert output.splitlines() == ["['vqkernels'] []", "False 1"]


def test_without_the_extension_the_reference_backend_serves_and_says_so_once() -> None:
    output = run_fresh(
        block("vqkernels._C")
        + """
import runpy, torch, warnings
import vqkernels
x, codebook = torch.randn(5, 3), torch.randn(4, 3, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        vqkernels.quantize(x, codebook).quantized.sum().backward()
messages = [str(w.message) for w in caught]
assert len(messages) == len(set(messages)) == 4, messages  # lookup, gather, range and sum in the backward
assert all("reference backend" in m and "compiled extension not available" in m for m in messages), messages
cpu, reference = (c for c in vqkernels.explain("nearest_code") if c.backend in ("cpu", "reference"))
assert not cpu.selected and "compiled extension not available" in cpu.reasons[0]
assert reference.selected
try:
    vqkernels.nearest_code(x, codebook, backend="cpu")
except NotImplementedError as error:
    assert "compiled extension not available" in str(error)
else:
    raise AssertionError("an explicit backend fell back")
runpy.run_module("vqkernels.info", run_name="__main__")
"""
    )
    assert "nearest_code" in output
    assert "compiled extension not available" in output


def test_numpy_and_torch_are_enough() -> None:
    """Every module imports, and a lookup runs, with all other installed packages out of reach, Triton too."""
    output = run_fresh("""
import importlib, importlib.abc, pkgutil, sys
import numpy, torch

class OnlyStandard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("vqkernels", "numpy", "torch"):
            raise ImportError(f"{name} is no runtime dependency")

sys.meta_path.insert(0, OnlyStandard())
import vqkernels
names = [m.name for m in pkgutil.walk_packages(vqkernels.__path__, "vqkernels.") if "triton" not in m.name]
names.remove("vqkernels.onnx.translations")
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert len(names) > 20, names
print(vqkernels.nearest_code(torch.zeros(2, 3), torch.ones(4, 3), backend="reference").indices.tolist())
""")
    assert output.strip() == "[0, 0]"


@needs_extension
def test_the_extension_is_built() -> None:
    """Without it the suite would test the reference backend against itself and look green."""
    from vqkernels._core import extension
    from vqkernels._core.env import ISA_CODES

    assert extension.load_error == ""
    assert extension.build_info()["isa"] in ISA_CODES
