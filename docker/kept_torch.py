"""`python kept_torch.py FOLDER`: ends with 1 and the reason where pip has replaced the torch of pins.py, or where it is not ROCm's."""

import sys
from importlib.metadata import version
from pathlib import Path


def objections(constraints: str, *, installed: str, imported: str, hip: str | None) -> list[str]:
    """What is wrong with the torch that is there now; `imported` is `torch.__version__`, `hip` is `torch.version.hip`."""
    wanted = next(line.removeprefix("torch==") for line in constraints.splitlines() if line.startswith("torch=="))
    reasons = []
    if installed != wanted:
        reasons.append(f"torch: wanted the image's own {wanted}, got {installed}: a dependency has replaced it")
    if imported.partition("+")[0] != wanted.partition("+")[0]:
        reasons.append(f"torch: wanted to import {wanted}, got {imported}: another copy lies before it on the path")
    if not hip:
        reasons.append(f"torch {imported}: wanted a ROCm build, got torch.version.hip = {hip}")
    return reasons


def main(folder: str) -> int:
    import torch

    reasons = objections(
        (Path(folder) / "constraints.txt").read_text(), installed=version("torch"), imported=torch.__version__, hip=torch.version.hip
    )
    print("\n".join(reasons) or f"kept torch {torch.__version__}, HIP {torch.version.hip}", file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
