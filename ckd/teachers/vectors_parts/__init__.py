"""Parts of the teacher that is read from files: the files' forms, and which vector belongs to which instance."""
