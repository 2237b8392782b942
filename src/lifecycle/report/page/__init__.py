"""How a page is made: numbers in words, blocks as Markdown and HTML, the canvas of a picture."""
