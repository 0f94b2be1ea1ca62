"""Presets: one YAML file each, named on the command line by `--config NAME`."""
