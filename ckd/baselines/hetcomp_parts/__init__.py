"""What HetComp is made of."""
