"""Training on augmented images (`protocol.augmentation`), beside the plain stages.

What plain training imports knows nothing of this package: without augmentation no fingerprint holds
its code, and no result becomes stale by it.
"""
