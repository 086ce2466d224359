"""How each task is asked, read and scored."""
