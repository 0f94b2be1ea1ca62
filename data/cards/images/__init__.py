"""The cards of named sets of images: files, hashes, counts, licence, source."""
