"""What a cohort run will take, before it is run: slides surveyed, a few pieces timed, the rest arithmetic."""
