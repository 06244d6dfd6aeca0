"""Models and drafts on disk: loading, reading, writing, inspecting, cutting."""
