"""The commands of `ckd` by subject; `ckd.cli` puts them together. Nothing heavy is imported before one runs."""
