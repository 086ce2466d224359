"""Pages with the text and the quadrilateral of every line: synthetic ones, PDF files, HTML files."""
