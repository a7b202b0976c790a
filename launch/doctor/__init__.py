"""What a machine can run (`checks`), and what it was measured to do (`measure`)."""
