"""What the course needs beyond the method: recipes, their stages, and models that are shipped."""
