"""Parts that several students share."""
