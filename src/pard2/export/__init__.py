"""What a draft is given to others with: its card, made of what its files and measurements say."""
