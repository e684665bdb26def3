"""Pages: self-contained HTML, and the images and Markdown that asset pages show."""
