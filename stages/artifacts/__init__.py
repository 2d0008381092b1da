"""The formats of what stages read and write (``docs/formats.md``)."""
