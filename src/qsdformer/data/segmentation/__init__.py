"""Images with masks: which files belong together, what is done to them, batches.

The section of the recipe is read without PyTorch.
"""
