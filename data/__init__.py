"""Where samples come from: named corpora, one's own files, and text and images as batches of numbers."""
