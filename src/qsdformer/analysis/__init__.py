"""What a trained model can be asked: information, firing rates, size."""
