"""The chat page: HTML, CSS and scripts as the browser gets them, with no part from elsewhere."""
