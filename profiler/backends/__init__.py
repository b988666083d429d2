"""Three ways to time the same scripts. One schema: a row says which one it came from."""
