"""What a target, a draft and a head for a part of the vocabulary are."""
