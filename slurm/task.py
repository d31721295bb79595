"""Starts a task of a job: `python -m slurm.task -u -m submitit.core._submit FOLDER`.

The imports of a task may take longer than the time that Slurm gives it until SIGUSR2, which would
end the process. The signal is held back until slurm/worker.py handles it.
"""

import runpy
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    module, folder = sys.argv[-2:]
    sys.argv = [module, folder]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
