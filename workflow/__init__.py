"""What to run and when: the plan, its fingerprints, and Snakemake's rules."""
