"""The server: OpenAI's API over one engine that answers everybody in its batches."""
