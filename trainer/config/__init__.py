"""What a user may ask for, and what cannot be."""
