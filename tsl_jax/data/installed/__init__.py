"""Text that installed packages bring, read where it lies and copied nowhere.

catalogue: one table of the domains: what each is, where it comes from, how to install it
stdlib: code, docstrings and tests of Python's standard library
pypi, debian, npm: a reader for each kind of package
"""
