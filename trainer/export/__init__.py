"""A trained model written for others to use: whole, or with only what one modality and its tokens need."""
