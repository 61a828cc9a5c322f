"""How the runs of a study are made: here or by an engine, each once, and kept in a folder."""
