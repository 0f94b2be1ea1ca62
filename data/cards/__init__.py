"""The cards of named corpora: files, hashes, counts, licence, source."""
