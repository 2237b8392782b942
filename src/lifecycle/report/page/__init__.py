"""The parts of pages: numbers as text, blocks as Markdown and HTML, the canvas of a picture."""
