"""Built-in placement policies, one a file; each says what it ignores."""
