"""The algorithms: one file each, tensors in, anomaly maps and scores out."""
