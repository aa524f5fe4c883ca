"""What position_law.py measures, and how it is drawn."""
