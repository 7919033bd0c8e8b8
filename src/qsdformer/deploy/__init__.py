"""From a trained model to integers: lowering, packed artifact, executors and their comparison."""
