"""The parts of Recformer: tokens, network, starting weights, pre-training, fine-tuning."""
