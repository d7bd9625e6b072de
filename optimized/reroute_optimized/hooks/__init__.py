"""What stands in transformers' place: swapped classes, requests read and checked, the router."""
