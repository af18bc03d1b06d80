"""Full runs, each one Python function that returns one typed config, and a command to run it."""
