"""Where and how long work runs: in this process, in local jobs, or in Slurm jobs."""
