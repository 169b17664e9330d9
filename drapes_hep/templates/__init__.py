"""Where background comes from."""
