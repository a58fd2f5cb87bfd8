"""A page that shows how a trained model routes any picture and any words, and what it finds for them; on this machine only."""
