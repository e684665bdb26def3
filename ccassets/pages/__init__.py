"""Pages: what people look at, as self-contained HTML."""
