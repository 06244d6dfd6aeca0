"""A draft for others: in the form that their engines load, and with a card."""
