"""What is tried to break SkyMask, and what became of it."""
