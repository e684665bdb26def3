"""Studies: the typed model of a study file, how it is loaded, and where a study's files lie."""
