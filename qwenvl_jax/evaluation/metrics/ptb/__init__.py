"""Tokens of English captions as Stanford's PTBTokenizer 3.4.1 makes them, without Java."""
