"""What operators deploy: the shipped files are checked by their own tools, and run where they can be run."""
