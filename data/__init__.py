"""Where samples come from: named corpora, one's own files, and text as batches of numbers."""
