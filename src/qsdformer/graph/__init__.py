"""From a trained model to integers: lowering, the integer graph, its checks, its packed file."""
