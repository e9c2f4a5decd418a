"""The parts of UniSRec beside the model itself."""
