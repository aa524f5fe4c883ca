"""Text that installed packages bring: the catalogue of its domains, and a reader for each kind of package."""
