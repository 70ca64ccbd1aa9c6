"""Models from other programs, and to them: GGUF files, model folders, cards of models."""
