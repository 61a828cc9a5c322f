"""What is made of the results of a study: its file, its figure, and its part of a page."""
