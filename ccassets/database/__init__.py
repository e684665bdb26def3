"""Feature databases of format 1.0: one writer, one reader, one validator for parts and finished files alike."""
