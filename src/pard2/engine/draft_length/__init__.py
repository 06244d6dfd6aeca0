"""How many tokens to propose in a cycle."""
