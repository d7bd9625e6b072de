"""Does recovery help? A small vision-language model trained on grounding, under removal and under rerouting."""
