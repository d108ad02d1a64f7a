"""Plans: questions split into subtasks that refer to each other's results."""
