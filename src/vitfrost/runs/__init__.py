"""The verb `run`: recipes, and the stages that they ask for."""
