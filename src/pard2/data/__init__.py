"""Conversations: records on disk, the target's own answers, and tokens with their loss mask."""
