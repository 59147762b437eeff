"""Built-in schedule policies, one a file."""
