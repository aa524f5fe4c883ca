"""Curves from elsewhere become loss surfaces."""
