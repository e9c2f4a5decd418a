"""What RecGURU is made of."""
