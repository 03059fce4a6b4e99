"""Section 4 of the paper: everything that is measured. Never `import eval`, which hides Python's own."""
