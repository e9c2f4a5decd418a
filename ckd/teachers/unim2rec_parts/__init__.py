"""Parts of UniM²Rec: what an item looks like in each modality, and pre-training over several domains."""
