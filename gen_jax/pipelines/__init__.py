"""Published parts to pictures."""
