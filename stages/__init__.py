"""The pipeline's commands: files in, files out. Each runs alone: `python -m stages.<name> JOB`."""
