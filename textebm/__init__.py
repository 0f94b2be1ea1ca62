"""textebm."""
