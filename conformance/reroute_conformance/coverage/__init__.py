"""Whether every rule of the text is kept: by a line of the reference, a check and a mutant."""
