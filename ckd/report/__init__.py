"""One page of everything in a work folder: tables, figures with their data, and what every run was."""
