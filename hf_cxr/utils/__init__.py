"""Files written whole, and the look of pages and plots."""
