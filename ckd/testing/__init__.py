"""Contracts as test classes: whoever writes a plug-in inherits one and runs it with pytest."""
