"""What a user may ask for, and what is not possible."""
