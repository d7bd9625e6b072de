"""What becomes of a run of the bench: terminal, tables, plots, a page, a comparison."""
