"""Routing inside other people's programs. Nothing here is imported by the rest of the package, nor needed by it."""
