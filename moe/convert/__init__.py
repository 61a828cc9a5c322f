"""Models of other projects in and out, and runs made of runs."""
