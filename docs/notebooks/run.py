"""Runs the notebooks of this folder and stores them again, with what their cells printed and drew.

    python docs/notebooks/run.py             # all
    python docs/notebooks/run.py first_steps # or those that are named

What changes from one run to the next and says nothing (times, versions of the kernel) is not stored. A cell that fails ends
the run, and the notebook on the disk stays as it was.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
MINUTES = 10
METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}
SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore:IProgress"}


def run(path: Path, folder: Path) -> Any:
    """The notebook at `path`, run top to bottom by a fresh kernel of this interpreter, in `folder` as its working directory.
    Raises nbclient's `CellExecutionError` at the first cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="nb") as own:  # short: the kernel's sockets lie in it
        manager = AsyncKernelManager(transport="ipc", ip=f"{own}/kernel", connection_file=f"{own}/kernel.json")
        manager._kernel_spec = KernelSpec(  # of this interpreter, whichever kernels are installed
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], **METADATA["kernelspec"]
        )
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=60 * MINUTES,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute(cleanup_kc=True, env=os.environ | SETTINGS | {"IPYTHONDIR": f"{own}/ipython"})
    return bare(notebook)


def bare(notebook: Any) -> Any:
    """Without metadata that differs from run to run; what a cell prints in several pieces is one."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    nbformat.validate(notebook)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    joined: list[Any] = []
    for output in outputs:
        if "metadata" in output:
            output.metadata = nbformat.from_dict({})
        last = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def main() -> None:
    paths = [FOLDER / f"{Path(name).stem}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(path, Path(folder))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
