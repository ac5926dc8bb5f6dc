"""Models of configs/ and the reading of YAML into them."""
