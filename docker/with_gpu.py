"""`python with_gpu.py COMMAND...`: becomes the command where torch sees a GPU, and ends with 1 where it sees none.

Without it a worker whose devices are closed to it would take the GPU's runs and train them on the CPU.
"""

import os
import sys


def main(command: list[str]) -> None:
    import torch

    if not torch.cuda.is_available():
        print(
            f"torch {torch.__version__}, HIP {torch.version.hip}: wanted a GPU, got none; are /dev/kfd and /dev/dri in the container, "
            "and is RENDER_GID in docker/.env the group that owns /dev/kfd on the host (stat -c %g /dev/kfd)?",
            file=sys.stderr,
        )
        sys.exit(1)
    print(f"GPU: {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}", file=sys.stderr, flush=True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
