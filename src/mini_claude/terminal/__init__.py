"""What `mini-claude` shows on a terminal."""
