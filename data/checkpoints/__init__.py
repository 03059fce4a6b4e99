"""Others' checkpoint files, to tensors with names and back. Knows no model."""
