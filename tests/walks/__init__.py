"""Random walks through the life of a project: commands typed, real runs, kills, lost files."""
