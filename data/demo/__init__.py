"""The embedded demo corpus."""
