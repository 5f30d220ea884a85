"""Cards, the privacy check, and the push to the Hub."""
